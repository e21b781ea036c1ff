"""Finetuning loaders of Hugging Face's data, by the package datasets, from files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
datasets = pytest.importorskip("datasets")

import stoker.foundry as foundry  # noqa: E402  # after the checks
from foundry_tokenizers import make_tokenizer  # noqa: E402
from stoker.foundry import errors, huggingface  # noqa: E402

PAD, EOS = 1, 2


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setenv("MAX_NUM_PROC", "1")


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(number: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{10 + i}", "response": f"{50 + i} 60"} for i in range(number)]


def load(path: Path, **changes: Any) -> Any:
    dataset = {
        "hf_name": "json",
        "hf_kwargs": {"data_files": str(path)},
        "split": "train",
        "shuffle": False,
        "max_seq_len": 8,
        "decoder_only_format": True,
        **changes,
    }
    cfg = {"name": "finetuning", "num_workers": 0, "pin_memory": False, "dataset": dataset}
    return foundry.build_dataloader(cfg, make_tokenizer(PAD, EOS), 2).dataloader


def test_examples_are_tokenized_filtered_and_dealt_out(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [*rows_of(3), {"prompt": "", "response": "9"}])
    with pytest.warns(UserWarning, match="Dropped 1 examples where the prompt was longer than 8, the prompt or resp"):
        batches = list(load(tmp_path / "a.jsonl"))
    assert [batch["input_ids"].tolist() for batch in batches] == [
        [[10, 50, 60, EOS, *[PAD] * 4], [11, 51, 60, EOS, *[PAD] * 4]],
        [[12, 52, 60, EOS, *[PAD] * 4]],
    ]
    assert batches[0]["total_tokens"] == [4, 4] and batches[0]["loss_generating_tokens"] == [3, 3]


def test_examples_are_packed_and_shuffled_by_torchs_sampler(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", rows_of(8))
    loader = load(tmp_path / "a.jsonl", shuffle=True, packing_ratio=2.0)
    order = list(torch.utils.data.DistributedSampler(range(8), num_replicas=1, rank=0, shuffle=True, seed=0))
    first = next(iter(loader))
    assert first["sequence_id"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]] * 2
    assert sorted(i for row in first["input_ids"].tolist() for i in row[::4]) == sorted(10 + i for i in order[:4])


def test_rows_of_other_columns_are_made_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jsonl", [{"q": "10", "a": "11"}] * 2)
    by_columns = next(iter(load(tmp_path / "a.jsonl", preprocessing_fn={"prompt": "q", "response": "a"})))
    (tmp_path / "mine.py").write_text("def make(row):\n    return {'prompt': row['q'], 'response': row['a']}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    by_function = next(iter(load(tmp_path / "a.jsonl", preprocessing_fn="mine:make")))
    sys.modules.pop("mine")
    assert by_columns["input_ids"].tolist() == by_function["input_ids"].tolist()
    with pytest.raises(errors.InvalidPromptResponseKeysError, match='to have keys "prompt" and "response"'):
        load(tmp_path / "a.jsonl", preprocessing_fn={"response": "a"})
    with pytest.raises(ValueError, match="Failed to import preprocessing function from string = x:y"):
        load(tmp_path / "a.jsonl", preprocessing_fn="x:y")
    with pytest.raises(errors.UnknownExampleTypeError, match="Unknown example type"):
        load(tmp_path / "a.jsonl")
    assert huggingface.find_preprocessing(None, "tatsu-lab/alpaca") is not None


def test_files_of_a_url_are_found_by_their_split(tmp_path: Path) -> None:
    write(tmp_path / "far" / "my-split.jsonl", rows_of(2))
    url = f"file://{tmp_path / 'far'}"
    found = huggingface._download(url, "my-split")
    assert (Path(found) / "data" / "my_split-00000-of-00001.jsonl").exists()
    with pytest.raises(errors.FinetuningFileNotFoundError, match="Could not find a file with any of the supported ext"):
        huggingface._download(url, "other")


@pytest.mark.parametrize(
    ("name", "is_safe"), [("a.jsonl", True), ("a.csv", True), (".gitignore", True), ("a.lock", True), ("a.py", False)]
)
def test_safe_directories_have_files_of_known_kinds_alone(name: str, is_safe: bool, tmp_path: Path) -> None:
    write(tmp_path / "data" / name, rows_of(1))
    if is_safe:
        assert huggingface._load_safely(str(tmp_path / "data"), {}) == str(tmp_path / "data")
        return
    with pytest.raises(errors.InvalidFileExtensionError, match=r"safe extensions \['.csv', '.json', '.jsonl', '.par"):
        huggingface._load_safely(str(tmp_path / "data"), {})


def test_what_can_not_be_loaded_is_told(tmp_path: Path) -> None:
    with pytest.raises(errors.MissingHuggingFaceURLSplitError, match="you must set the `split` key"):
        load(tmp_path / "a.jsonl", split=None)
    (tmp_path / "a.jsonl").write_text('{"prompt": "10", "response": "11"}\n{"prompt": \n')
    with pytest.raises(errors.MisconfiguredHfDatasetError, match=r"Your dataset \(name=json, split=train\) is misconf"):
        load(tmp_path / "a.jsonl")
    write(tmp_path / "b.jsonl", [{"prompt": "", "response": "11"}])
    with pytest.warns(UserWarning, match="Dropped 1 examples"):
        with pytest.raises(errors.InvalidDatasetError, match="No valid examples found after filtering out prompts"):
            load(tmp_path / "b.jsonl")


def test_fewer_examples_than_a_global_batch_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.jsonl", rows_of(3))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    dataset = {
        "hf_name": "json",
        "hf_kwargs": {"data_files": str(tmp_path / "a.jsonl")},
        "split": "train",
        "max_seq_len": 8,
        "decoder_only_format": True,
    }
    cfg = {"name": "finetuning", "num_workers": 0, "drop_last": True, "dataset": dataset}
    with pytest.raises(errors.NotEnoughDatasetSamplesError, match="has 3 samples, but your minimum batch size is 4"):
        foundry.build_dataloader(cfg, make_tokenizer(PAD, EOS), 2)
