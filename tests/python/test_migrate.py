"""What `stoker migrate` says of configurations of LLM Foundry."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("omegaconf")

import stoker  # after the check
from mds import write_dataset
from stoker.cli import main
from stoker.foundry.migration import LoaderReport, migrate

TEXT = {
    "name": "text",
    "drop_last": True,
    "num_workers": 8,
    "dataset": {"local": "/data", "split": "train", "shuffle": True, "max_seq_len": 2048},
}
CHAT = {
    "name": "finetuning",
    "num_workers": 4,
    "dataset": {
        "streams": {"a": {"local": "/a"}},
        "max_seq_len": 64,
        "decoder_only_format": True,
        "packing_ratio": 4.5,
        "eos_token_id": 3,
        "shuffle": True,
    },
}


def report_of(loader: dict[str, Any], **top: Any) -> LoaderReport:
    (report,) = migrate({"train_loader": loader, "global_train_batch_size": 16, **top}, world_size=4)
    return report


def with_dataset(loader: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**loader, "dataset": {**loader["dataset"], **changes}}


def statuses(report: LoaderReport) -> dict[str, str]:
    return {key.name: key.status for key in report.keys}


def called(report: LoaderReport) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The arguments of the streams and, as code, of the loader."""
    assert report.call is not None
    call = ast.parse(report.call).body[0].value  # type: ignore[attr-defined]
    assert ast.unparse(call.func) == "stoker.DataLoader"
    streams = [{k.arg: ast.literal_eval(k.value) for k in stream.keywords} for stream in call.args[0].elts]
    return streams, {k.arg: ast.unparse(k.value) for k in call.keywords}


def test_a_text_loader_is_a_call_of_stokers() -> None:
    report = report_of(TEXT)
    streams, arguments = called(report)
    assert report.place == "train_loader" and report.error is None and report.is_supported
    assert stoker.Stream(**{**streams[0], "prepare": None}) == stoker.Stream(
        local="/data", split="train", kind="text", download_retry=2
    )
    assert arguments == {
        "seq_len": "2048",
        "batch_size": "4",
        "layout": "'pad'",
        "order": "'streaming'",
        "pad_id": "tokenizer.pad_token_id",
        "padding_side": "tokenizer.padding_side",
        "field_rules": "'foundry'",
        "seed": "9176",
        "num_workers": "8",
        "prefetch_factor": "16",
        "pin_memory": "True",
    }


def test_a_packed_loader_names_its_packers_and_its_order() -> None:
    report = report_of(with_dataset(CHAT, shuffle_algo="py1s"))
    _, arguments = called(report)
    assert arguments["order"] == "stoker.StreamingSettings(shuffle_algo='py1s', num_packers=4)"
    assert (arguments["packing"], arguments["packing_ratio"]) == ("'foundry'", "4.5")
    assert statuses(report)["dataset.eos_token_id"] == "better"


def test_documents_and_packing_without_a_ratio_are_stokers_own() -> None:
    _, arguments = called(report_of(with_dataset(TEXT, eos_token_id=2)))
    assert (arguments["documents"], arguments["eos_token_id"]) == ("'eos'", "2")
    auto = report_of(with_dataset(CHAT, packing_ratio="auto", max_leftover_bins_to_keep=2))
    assert auto.call is not None and auto.call.startswith("# packing_ratio: auto looks at the data first")
    assert called(auto)[1]["layout"] == "'pack'" and "order" not in called(auto)[1]


@pytest.mark.parametrize("more", [{"order": "stoker"}, {"layout": "concat"}, {"layout": "pack"}])
def test_the_call_makes_a_loader(more: dict[str, Any], tmp_path: Path) -> None:
    write_dataset(tmp_path, "web", [[5, 9, 30]] * 8)
    write_dataset(tmp_path, "chat", [[5, 9, 30]] * 8, labels="int32")
    streams = {
        "web": {"local": str(tmp_path / "web"), "kind": "text", "proportion": 1},
        "chat": {"local": str(tmp_path / "chat"), "proportion": 2},
    }
    dataset = {"streams": streams, "max_seq_len": 16, "decoder_only_format": True, "shuffle": True, **more}
    report = report_of({"name": "finetuning", "num_workers": 0, "pin_memory": False, "dataset": dataset})
    assert report.call is not None
    tokenizer = SimpleNamespace(pad_token_id=0, padding_side="right")
    with eval(report.call, {"stoker": stoker, "tokenizer": tokenizer}) as loader:
        batch = next(iter(loader))
    assert list(batch) == ["input_ids", "labels", "attention_mask", "sequence_id"]
    assert batch["input_ids"].shape == (4, 16)


def test_every_key_has_a_status() -> None:
    dataset = {
        "predownload": 5,
        "stream_name": "stream",
        "max_seq_len": 8,
        "shufle": True,
        "layout": "pad",
        "streams": {"a": {"local": "/a", "keep_zip": True, "propotion": 1}},
    }
    report = report_of({"name": "text", "drop_last": True, "num_wokers": 2, "order": "stoker", "dataset": dataset})
    assert {key.name: (key.status, key.note) for key in report.keys} == {
        "name": ("same", ""),
        "drop_last": ("same", ""),
        "num_wokers": ("unknown", "did you mean 'num_workers'?"),
        "order": ("stoker's own", ""),
        "dataset.predownload": ("without effect", "shards are fetched ahead as the order needs them"),
        "dataset.stream_name": ("same", ""),
        "dataset.max_seq_len": ("same", ""),
        "dataset.shufle": ("unknown", "did you mean 'shuffle'?"),
        "dataset.layout": ("stoker's own", ""),
        "dataset.streams.a.local": ("same", "is enough by itself"),
        "dataset.streams.a.keep_zip": (
            "without effect",
            "compressed shards stay as they are and are decoded in memory",
        ),
        "dataset.streams.a.propotion": ("unknown", "did you mean 'proportion'?"),
    }
    assert not report.is_supported and report.call is None
    assert report.error is not None and "unexpected keyword argument 'num_wokers'" in report.error


def test_settings_of_streamings_order_have_no_effect_in_stokers() -> None:
    assert statuses(report_of(with_dataset(TEXT, shuffle_algo="py1s")))["dataset.shuffle_algo"] == "same"
    own = report_of(with_dataset(TEXT, shuffle_algo="py1s", layout="concat"))
    assert statuses(own)["dataset.shuffle_algo"] == "without effect"


def test_what_is_made_in_python_has_no_call() -> None:
    for loader in (with_dataset(TEXT, mlm_probability=0.1), with_dataset(CHAT, decoder_only_format=False)):
        loader = with_dataset(loader, packing_ratio=None) if loader["name"] == "finetuning" else loader
        report = report_of(loader)
        assert report.is_supported and report.call is None


def test_what_can_not_be_built_is_told() -> None:
    assert "there are loaders named 'text'" in str(report_of({"name": "pairs", "dataset": {}}).error)
    assert "max_seq_len must be an integer" in str(report_of(with_dataset(TEXT, max_seq_len=2.5)).error)
    assert "missing 1 required positional argument: 'max_seq_len'" in str(report_of({**TEXT, "dataset": None}).error)
    with pytest.raises(ValueError, match="has neither `train_loader` nor `eval_loader`"):
        migrate({"seed": 1})
    with pytest.raises(ValueError, match=r"Unused parameters \['train_loadr'\]"):
        migrate({"train_loader": TEXT, "train_loadr": {}})


YAML = """
train_loader: {name: text, drop_last: true, num_workers: 2, dataset: {local: /x, max_seq_len: 8}}
eval_loader:
  - {name: text, label: a, drop_last: false, num_workers: 0, dataset: {local: /e, max_seq_len: 8}}
global_train_batch_size: 16
"""


def test_the_command_tells_every_loader_and_whether_all_is_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(YAML)
    assert main(["migrate", str(path), "train_loader.dataset.max_seq_len=16", "--world-size", "4"]) == 0
    told = capsys.readouterr().out
    assert "train_loader: can be built\n" in told and "eval_loader/a: can be built\n" in told
    assert "    seq_len=16,\n    batch_size=4,\n" in told and "    seq_len=8,\n    batch_size=1,\n" in told
    assert "  dataset.local        same: is enough by itself\n" in told
    assert main(["migrate", str(path), "train_loader.dataset.shufle=1"]) == 1
    assert "  dataset.shufle       unknown: did you mean 'shuffle'?\n" in capsys.readouterr().out
    assert main(["migrate", str(tmp_path / "nothing.yaml")]) == 1
    assert "nothing.yaml" in capsys.readouterr().err
