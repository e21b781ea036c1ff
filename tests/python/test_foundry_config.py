"""Configurations of LLM Foundry: all that may be in them, what they come to, and the sentences for what may not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
omegaconf = pytest.importorskip("omegaconf")

import stoker.foundry as foundry  # noqa: E402  # after the checks
from foundry_tokenizers import make_tokenizer  # noqa: E402
from stoker.foundry import builders, yaml  # noqa: E402
from stoker.foundry.config import read_finetuning, read_text  # noqa: E402
from stoker.foundry.plan import LoaderPlan  # noqa: E402

PAD, EOS, BOS = 1, 2, 3
TEXT = {"name": "text", "drop_last": True, "num_workers": 2, "dataset": {"local": "/data", "max_seq_len": 64}}
CHAT = {
    "name": "finetuning",
    "num_workers": 2,
    "dataset": {"local": "/data", "max_seq_len": 64, "decoder_only_format": True},
}


@pytest.fixture(autouse=True)
def _seam(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loader is its plan."""
    monkeypatch.setattr(builders, "open_loader", lambda plan, tokenizer: plan)
    monkeypatch.setattr(builders, "open_python_loader", lambda plan, tokenizer: plan)


def with_dataset(cfg: dict[str, Any], **changes: Any) -> dict[str, Any]:
    dataset = {**cfg["dataset"], **changes}
    return {**cfg, "dataset": {key: value for key, value in dataset.items() if value is not ...}}


def plan_of(cfg: Any, tokenizer: Any = None, size: Any = 4, **ranks: Any) -> LoaderPlan:
    plan = foundry.build_dataloader(cfg, tokenizer or make_tokenizer(PAD, EOS, bos=BOS), size, **ranks).dataloader
    assert isinstance(plan, LoaderPlan)
    return plan


# ---------------------------------------------------------------- shapes
T1 = {"local": "/data", "remote": None, "split": "train", "shuffle": True, "max_seq_len": 2048, "shuffle_seed": 17}
LOADER = {"drop_last": True, "num_workers": 8}
FULL_LOADER = {**LOADER, "pin_memory": False, "prefetch_factor": 2, "persistent_workers": True}
HUGGING_FACE = {"split": "train", "max_seq_len": 2048, "decoder_only_format": True, "shuffle": True}
STREAMS = {
    "c4": {"local": "/a", "remote": "s3://a/b", "proportion": 0.8, "split": "train"},
    "markdown": {"local": "/b", "remote": "s3://a/c", "proportion": 0.2, "split": None},
}
SHAPES: dict[str, dict[str, Any]] = {
    "T1": {"name": "text", **LOADER, "dataset": T1},
    "T2": {"name": "text", **FULL_LOADER, "dataset": T1},
    "F1": {
        "name": "finetuning",
        **FULL_LOADER,
        "timeout": 0,
        "dataset": {"hf_name": "mosaicml/dolly_hhrlhf", "allow_pad_trimming": False, **HUGGING_FACE},
    },
    "F1 t5": {
        "name": "finetuning",
        **FULL_LOADER,
        "timeout": 0,
        "dataset": {"hf_name": "a/b", **HUGGING_FACE, "decoder_only_format": False},
    },
    "F2": {
        "name": "finetuning",
        **LOADER,
        "dataset": {
            "hf_name": "json",
            "hf_kwargs": {"data_dir": "x"},
            "preprocessing_fn": "mod:fn",
            **HUGGING_FACE,
        },
    },
    "F4": {"name": "finetuning", **LOADER, "dataset": {"hf_name": "a/b", "packing_ratio": 9, **HUGGING_FACE}},
    "F5 eval": {
        "name": "finetuning",
        **LOADER,
        "dataset": {"hf_name": "a/b", "packing_ratio": None, "eos_token_id": EOS, **HUGGING_FACE},
    },
    "S1": {
        "name": "finetuning",
        **LOADER,
        "dataset": {
            "streams": {"my_data": {"remote": None, "local": "/data", "split": "train"}},
            "shuffle": True,
            "max_seq_len": 64,
            "decoder_only_format": True,
        },
    },
    "#332": {
        "name": "text",
        **LOADER,
        "dataset": {
            "max_seq_len": 64,
            "eos_token_id": EOS,
            "num_canonical_nodes": 128,
            "shuffle_algo": "py1s",
            "shuffle_seed": 1,
            "streams": STREAMS,
            "cache_limit": "100gb",
            "shuffle_block_size": 1e5,
        },
    },
    "#1679": {
        "name": "finetuning",
        **LOADER,
        "dataset": {
            "streams": {"finetuning": {"local": "/data"}},
            "max_seq_len": 64,
            "decoder_only_format": True,
            "packing_ratio": "auto",
        },
    },
}


@pytest.mark.parametrize("make", [dict, omegaconf.OmegaConf.create])
@pytest.mark.parametrize("shape", SHAPES)
def test_all_shapes_of_llm_foundrys_yaml_are_taken_and_not_changed(shape: str, make: Callable[[Any], Any]) -> None:
    cfg = make(copy.deepcopy(SHAPES[shape]))
    first = plan_of(cfg)
    assert cfg == make(SHAPES[shape])
    assert plan_of(cfg) == first and first.seq_len == SHAPES[shape]["dataset"]["max_seq_len"]


def test_builders_take_configurations_as_keywords() -> None:
    cfg = omegaconf.OmegaConf.create({**TEXT, "x": 64})
    cfg.dataset.max_seq_len = "${x}"
    assert plan_of({key: value for key, value in cfg.items() if key != "x"}).seq_len == 64
    arguments = {key: value for key, value in TEXT.items() if key != "name"}
    made = foundry.build_text_dataloader(tokenizer=make_tokenizer(PAD, EOS), device_batch_size=4, **arguments)
    assert made.dataloader == plan_of(TEXT, make_tokenizer(PAD, EOS))
    with pytest.raises(TypeError, match="unexpected keyword argument 'name'"):
        foundry.build_text_dataloader(make_tokenizer(PAD, EOS), 4, **TEXT)


# ---------------------------------------------------------------- plans
def test_a_text_plan_is_llm_foundrys_rows_in_streamings_order() -> None:
    plan = plan_of(TEXT)
    assert (plan.kind, plan.layout.name, plan.layout.packing, plan.layout.order) == ("text", "pad", None, "streaming")
    assert plan.keys == ("input_ids", "labels") and plan.ignores_pad_id and plan.pads_to_longest
    assert (plan.batch_size, plan.samples_per_batch, plan.pad_id, plan.padding_side) == (4, 4, PAD, "right")
    ((stream,),) = [plan.streams]
    assert (stream.local, stream.kind, stream.bytes_dtype, stream.download_retry) == ("/data", "text", "int64", 2)
    assert plan_of(with_dataset(TEXT, eos_token_id=EOS)).keys == ("input_ids", "labels", "sequence_id")
    assert plan_of(with_dataset(TEXT, bos_token_id=BOS)).keys == ("input_ids", "labels", "sequence_id")


def test_a_finetuning_plan_is_llm_foundrys_rows_in_streamings_order() -> None:
    plan = plan_of(with_dataset(CHAT, target_prompts="LENGTH>=5", token_encoding_type="uint16"))
    assert (plan.kind, plan.layout.name, plan.layout.order) == ("finetuning", "pad", "streaming")
    assert plan.keys == ("input_ids", "labels", "attention_mask", "sequence_id")
    assert not plan.ignores_pad_id and not plan.pads_to_longest and not plan.trims_padding
    (stream,) = plan.streams
    assert stream.kind == "finetuning" and stream.bytes_dtype == "uint16"
    targets = {"target_prompts": "length>=5", "target_responses": "last"}
    assert stream.prepare == {**targets, "pairs_apart": True}
    trimmed = plan_of(with_dataset(CHAT, allow_pad_trimming=True, pad_to_longest=True))
    assert trimmed.trims_padding and trimmed.pads_to_longest


@pytest.mark.parametrize(("ratio", "raw", "packing"), [(2.5, 10, "foundry"), (9, 36, "foundry"), (1.0, 4, None)])
def test_a_packing_ratio_asks_for_llm_foundrys_packer(ratio: float, raw: int, packing: str | None) -> None:
    plan = plan_of(with_dataset(CHAT, packing_ratio=ratio, max_leftover_bins_to_keep=3))
    assert (plan.samples_per_batch, plan.layout.packing, plan.layout.order) == (raw, packing, "streaming")
    assert plan.layout.name == ("pack" if packing else "pad")


def test_auto_looks_for_the_packing_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def find(cfg: Any, tokenizer: Any, size: int) -> float:
        asked.append(cfg)
        return 2.25

    monkeypatch.setattr(builders, "auto_packing_ratio", find)
    plan = plan_of({**with_dataset(CHAT, packing_ratio="auto"), "timeout": 5})
    assert plan.samples_per_batch == 9 and plan.layout.packing == "foundry"
    assert asked[0]["name"] == "finetuning" and asked[0]["timeout"] == 5
    with pytest.raises(NotImplementedError, match="On-the-fly packing is currently only supported for decoder-only"):
        plan_of(with_dataset(CHAT, packing_ratio="auto", decoder_only_format=False))


def test_workers_are_packers() -> None:
    plans = [
        plan_of({**CHAT, "num_workers": n, "persistent_workers": p}) for n, p in [(0, False), (3, False), (3, True)]
    ]
    assert [(plan.num_packers, plan.packers_persist) for plan in plans] == [(1, True), (3, False), (3, True)]


def test_loaders_without_workers_have_nothing_to_prefetch() -> None:
    assert plan_of({**TEXT, "num_workers": 0}).options.torch_arguments == {
        "drop_last": True,
        "num_workers": 0,
        "pin_memory": True,
        "timeout": 0,
        "prefetch_factor": None,
        "persistent_workers": False,
    }
    assert plan_of(TEXT).options.torch_arguments["prefetch_factor"] == 2


def test_streams_have_the_defaults_of_their_data_set_and_their_order() -> None:
    streams = {
        "b": {"local": "/b", "repeat": 2.5, "download_retry": 7},
        "a": {"remote": "s3://x/a", "split": "val", "choose": 9, "keep_zip": True, "validate_hash": "sha1"},
    }
    plan = plan_of(with_dataset(TEXT, local=..., streams=streams, split="train", download_timeout=9))
    first, second = plan.streams
    assert [stream.name for stream in plan.streams] == ["b", "a"]
    assert (first.repeat, first.split, first.download_retry, first.download_timeout) == (2.5, "train", 7, 9)
    assert (second.choose, second.split, second.download_retry, second.keep_zip) == (9, "val", 2, True)
    assert (first.validate_hash, second.validate_hash, first.keep_zip) == ("auto", "sha1", None)


def test_streams_of_both_kinds_go_in_one_loader() -> None:
    streams = {"web": {"local": "/a", "kind": "text"}, "chat": {"local": "/b", "overflow": "drop"}}
    cfg = with_dataset(CHAT, local=..., streams=streams, layout="pack", weights_in="tokens", eos_token_id=EOS)
    plan = plan_of(cfg)
    assert plan.kind == "mixed" and [stream.kind for stream in plan.streams] == ["text", "finetuning"]
    assert (plan.layout.name, plan.layout.packing, plan.layout.order) == ("pack", "best_fit", "stoker")
    assert plan.keys == ("input_ids", "labels", "attention_mask", "sequence_id") and not plan.ignores_pad_id
    assert plan.streams[0].prepare == {"eos_text": ""} and plan.streams[1].overflow == "drop"
    assert plan.why_python is None and plan.config.weights_in == "tokens"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layout": "pack", "packing_ratio": 2},
            "packing_ratio is 2, which asks for LLM Foundry's packing, and layout",
        ),
        ({"layout": "pack", "order": "streaming"}, "layout: pack does not go with order: streaming, which counts samp"),
        ({"weights_in": "tokens"}, "weights_in: tokens needs order: stoker"),
        ({"layout": "x"}, "layout is 'x': it must be one of 'pad', 'concat', 'pack'."),
        ({"order": "x"}, "order is 'x': it must be one of 'streaming', 'stoker'."),
        ({"weights_in": "x"}, "weights_in is 'x': it must be one of 'samples', 'tokens'."),
        ({"local": ..., "streams": {"a": {"local": "/", "kind": "x"}}}, "kind of a stream is 'x': it must be one of"),
        ({"local": ..., "streams": {"a": {"local": "/", "overflow": "x"}}}, "overflow of a stream is 'x': it must be"),
    ],
)
def test_stokers_own_keys_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(with_dataset(CHAT, **changes))


def test_stokers_own_keys_may_stand_beside_the_data_set() -> None:
    assert plan_of({**CHAT, "layout": "pack"}).layout.packing == "best_fit"
    with pytest.raises(ValueError, match="layout stands in dataset and beside it: remove one"):
        plan_of({**with_dataset(CHAT, layout="pack"), "layout": "pack"})


@pytest.mark.parametrize(
    ("cfg", "why"),
    [
        (with_dataset(TEXT, mlm_probability=0.1), "mlm_probability masks tokens at random"),
        (with_dataset(CHAT, decoder_only_format=False), "decoder_only_format is False"),
        (SHAPES["F1"], "hf_name is a data set of Hugging Face"),
        (TEXT, None),
    ],
)
def test_what_the_core_does_not_make_is_made_in_python(cfg: Any, why: str | None) -> None:
    assert plan_of(cfg).why_python == why


# ---------------------------------------------------------------- tokenizers
@pytest.mark.parametrize("cfg", [TEXT, CHAT])
@pytest.mark.parametrize(("name", "found"), [("eos_token_id", EOS), ("bos_token_id", BOS)])
def test_tokens_at_ends_are_those_of_the_tokenizer(
    cfg: Any, name: str, found: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert plan_of(with_dataset(cfg, **{name: found}))
    told = f"Provided {name}=77 does not match the {name} of the tokenizer={found}."
    flag = f"override_{name}_mismatch_error"
    with pytest.raises(ValueError) as error:
        plan_of(with_dataset(cfg, **{name: 77}))
    assert str(error.value) == (
        f"{told} To override this error, set the {flag} flag to True in the dataset config section of the YAML."
    )
    assert plan_of(with_dataset(cfg, **{name: 77, flag: True})) and told in caplog.text


def test_a_tokenizer_is_needed_and_its_padding_may_be_its_end() -> None:
    for cfg, name in ((TEXT, "text"), (CHAT, "finetuning")):
        with pytest.raises(ValueError, match=f"Tokenizer is required for {name} dataloader"):
            foundry.build_dataloader(cfg, None, 4)
    assert plan_of(TEXT, make_tokenizer(None, EOS)).pad_id is None
    assert plan_of(CHAT, make_tokenizer(None, EOS)).pad_id == EOS


# ---------------------------------------------------------------- errors
BOTH = [TEXT, CHAT]


@pytest.mark.parametrize("cfg", BOTH)
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"max_seq_len": 3.5}, ValueError, "max_seq_len must be an integer"),
        ({"seq_parallel_replication": 2}, NotImplementedError, "Sequence parallelism is not supported."),
        ({"token_encoding_type": "int17"}, ValueError, r"The token_encoding_type must be one of \['int8', 'int16', 'i"),
        ({"streams": {"a": {"local": "/"}}}, ValueError, "must provide either `streams` or `remote`/`local`, but not"),
        ({"epoch_size": -1}, ValueError, "Epoch size cannot be negative. Received -1."),
        ({"epoch_size": "5x"}, ValueError, "'5x' is not a count"),
        ({"sampling_method": "x"}, ValueError, "Invalid sampling method: x. Must be one of `balanced` or `fixed`."),
        ({"sampling_granularity": 0}, ValueError, "`sampling_granularity` must be a positive integer, but got: 0."),
        ({"batching_method": "x"}, ValueError, "Invalid batching method: x. Must be one of `random`, `stratified`, `p"),
        ({"shuffle_seed": -1}, ValueError, "`shuffle_seed` must be a non-negative integer, but got: -1."),
        ({"shuffle_algo": "x"}, ValueError, "Invalid shuffle algorithm: x"),
        ({"stream_name": "x"}, ValueError, "stream_name is 'x': there is no registry of streams here"),
        ({"batch_size": 1}, TypeError, r"\(\) got multiple values for keyword argument 'batch_size'"),
        ({"tokenizer": "x"}, TypeError, r"\(\) got multiple values for keyword argument 'tokenizer'"),
        (
            {"local": ..., "streams": {"a": {"local": "/", "shuffle": 1}}},
            TypeError,
            r"Stream.__init__\(\) got an unexpected keyword argument 'shuffle'",
        ),
        (
            {"local": ..., "streams": {"a": {"local": "/", "proportoin": 1}}},
            TypeError,
            "argument 'proportoin': did you mean 'proportion'?",
        ),
        (
            {"local": ..., "streams": {"a": {"local": "/", "proportion": 1, "repeat": 1}}},
            ValueError,
            "At most one of `proportion`, `repeat`, and `choose` may be specified; the others are derived",
        ),
        (
            {"local": ..., "streams": {"a": {"local": "/", "proportion": 1}, "b": {"local": "/", "repeat": 1}}},
            ValueError,
            r"stream weights are incompatible with each other \(error in stream 1",
        ),
        (
            {"local": ..., "epoch_size": 5, "streams": {"a": {"local": "/", "repeat": 1}}},
            ValueError,
            "Only provide `choose` when weighting streams relatively",
        ),
        ({"local": ..., "streams": {"a": {"local": "/", "choose": -1}}}, ValueError, "`choose` must be non-negative"),
        (
            {"local": ..., "streams": {"a": {"local": "/", "download_timeout": 0}}},
            ValueError,
            "`download_timeout` must be positive",
        ),
        ({"local": ..., "streams": {"a": {"split": "x"}}}, ValueError, "`remote` and/or `local` path must be provided"),
    ],
)
def test_what_breaks_a_rule_of_a_data_set_is_told(
    cfg: Any, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan_of(with_dataset(cfg, **changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"max_seq_len": ...}, TypeError, r"__init__\(\) missing 1 required positional argument: 'max_seq_len'"),
        ({"local": ...}, ValueError, "You must provide either `streams` or `remote`/`local`, but not both."),
        (
            {"eos_token_id": EOS, "bos_token_id": BOS},
            ValueError,
            r"Cannot use \*both\* EOS and BOS tokens for detectin",
        ),
    ],
)
def test_what_breaks_a_rule_of_text_is_told(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plan_of(with_dataset(TEXT, **changes))


FROM_BOTH = (
    "Those keys are used when building from a HuggingFace dataset, but setting `{}` instructs the dataset to build"
)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"max_seq_len": ...},
            TypeError,
            r"_validate_config\(\) missing 1 required positional argument: 'max_seq_len'",
        ),
        ({"decoder_only_format": ...}, ValueError, "must be set to either True or False, but it was None."),
        ({"hf_name": "x"}, ValueError, "sets a value for `hf_name` as well as the following keys: `local`.\nThose"),
        (
            {"hf_name": "x", "remote": "y"},
            ValueError,
            "following keys: `local`, `remote`.\nThose keys are used when building from a streaming dataset, but set",
        ),
        (
            {"hf_name": "x", "local": ..., "streams": {"a": {"local": "/"}}},
            ValueError,
            "sets a value for `hf_name` as well as the following keys: `streams`.",
        ),
        ({"safe_load": True}, ValueError, f"`remote` as well as the following keys: `safe_load`.\n{FROM_BOTH}"),
        (
            {"local": ..., "streams": {"a": {"local": "/"}}, "hf_kwargs": {}, "preprocessing_fn": "x"},
            ValueError,
            "sets a value for `streams` as well as the following keys: `hf_kwargs`, `preprocessing_fn`.\nThose keys ar",
        ),
        (
            {"local": ..., "remote": "x"},
            ValueError,
            "Using a streaming dataset requires setting both `remote` and `local`, but dataset.local is None.",
        ),
        (
            {"local": ...},
            ValueError,
            "or set `remote` to use a streaming dataset, or set `streams` to use multiple streaming datasets,  but all",
        ),
        ({"packing_ratio": 0.5}, ValueError, "packing_ratio must be >= 1, if supplied"),
        ({"packing_ratio": "x"}, ValueError, 'dataset.packing_ratio must be a float or "auto", but it was set to x.'),
        (
            {"max_leftover_bins_to_keep": 1},
            ValueError,
            "dataset.max_leftover_bins_to_keep has been defined, but dataset.packing_ratio has not been set. Please",
        ),
        ({"packing_ratio": 2, "max_leftover_bins_to_keep": -1}, ValueError, "to_keep=-1 must be >=0 or None."),
        (
            {"packing_ratio": 2, "decoder_only_format": False},
            NotImplementedError,
            "On-the-fly packing is currently only supported for decoder-only formats.",
        ),
        ({"target_prompts": "x"}, ValueError, 'target_prompts must either be "all", "none" or "length>=XX"'),
        ({"target_responses": "x"}, ValueError, 'target_responses must be either "last" or "all" but'),
        ({"target_responses": "all", "decoder_only_format": False}, ValueError, "When using encoder_decoder format"),
    ],
)
def test_what_breaks_a_rule_of_finetuning_is_told(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as told:
        plan_of(with_dataset(CHAT, **changes))
    assert message.replace("\\", "").format("remote") in str(told.value)


def test_batch_sizes_are_whole_numbers() -> None:
    for cfg in BOTH:
        with pytest.raises(ValueError, match="device_batch_size should be integer"):
            plan_of(cfg, size=2.5)


def test_a_loader_needs_a_known_name() -> None:
    with pytest.raises(
        ValueError, match=r"name is 'txt': there are loaders named 'text', 'finetuning'\. Did you mean 'te"
    ):
        plan_of({**TEXT, "name": "txt"})
    with pytest.raises(KeyError):
        plan_of({key: value for key, value in TEXT.items() if key != "name"})


def test_unknown_keys_of_loaders_are_told() -> None:
    with pytest.raises(TypeError, match=r"build_text_dataloader\(\) got an unexpected keyword argument 'x'"):
        plan_of({**TEXT, "x": 1})
    with pytest.raises(TypeError, match=r"build_finetuning_dataloader\(\) got an unexpected keyword argument 'x'"):
        plan_of({**CHAT, "x": 1})
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'num_workers'"):
        plan_of({key: value for key, value in TEXT.items() if key != "num_workers"})
    for workers in (-1, None, "2"):
        with pytest.raises(ValueError, match=f"num_workers is {workers!r}: it must be a whole number"):
            plan_of({**TEXT, "num_workers": workers})


def test_what_must_have_keys_and_has_none_is_told() -> None:
    with pytest.raises(TypeError, match="dataset is None: it must be a mapping"):
        plan_of({**TEXT, "dataset": None})
    for streams in ([{"local": "a"}], {"a": "/data/a"}):
        with pytest.raises(TypeError, match=r"streams is \[|stream 'a' is '/data/a': it must be a mapping"):
            plan_of(with_dataset({**TEXT, "dataset": {"max_seq_len": 8}}, streams=streams))


def test_unknown_keys_of_text_are_logged_or_refused_with_what_is_meant(caplog: pytest.LogCaptureFixture) -> None:
    cfg = with_dataset(TEXT, shufle=True)
    assert not plan_of(cfg).config.shuffle
    assert "has a key 'shufle' that no text loader knows: it has no effect. Did you mean 'shuffle'?" in caplog.text
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'shufle': did you mean 'shuffle'\?"):
        plan_of({**cfg, "strict": True})


def test_unknown_keys_of_finetuning_are_refused_and_of_hugging_face_logged(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TypeError, match=r"StreamingDataset.__init__\(\) got an unexpected keyword argument 'extra_k'"):
        plan_of(with_dataset(CHAT, extra_k=1))
    assert (
        plan_of(with_dataset(SHAPES["F1"], extra_k=1)) and caplog.text.count("following extraneous keys: extra_k") == 2
    )


def test_a_local_directory_without_the_split_is_told(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for cfg in BOTH:
        assert plan_of(with_dataset(cfg, local=str(tmp_path), split="train"))
        with pytest.raises(ValueError, match=f"Local directory {tmp_path} does not contain split val"):
            plan_of(with_dataset(cfg, local=str(tmp_path), split="val"))
    foundry.stream_remote_local_validate("s3://x", str(tmp_path), "val")
    foundry.stream_remote_local_validate(None, str(tmp_path / "nothing"), "val")


def test_defaults_are_llm_foundrys() -> None:
    text = read_text({"local": "/data", "max_seq_len": 8.0, "replication": None, "epoch_size": 0})
    assert (text.max_seq_len, type(text.max_seq_len), text.replication, text.epoch_size) == (8, int, 1, None)
    assert (text.shuffle, text.shuffle_algo, text.shuffle_seed, text.partition_algo) == (False, "py1e", 9176, "relaxed")
    assert (text.sampling_method, text.sampling_granularity, text.batching_method) == ("balanced", 1, "random")
    assert (text.download_retry, text.download_timeout, text.keep_zip) == (2, 60, False)
    chat = read_finetuning({**CHAT["dataset"], "epoch_size": "2k", "target_prompts": None})
    assert (chat.target_prompts, chat.target_responses, chat.epoch_size, chat.packing_ratio) == (
        "none",
        "last",
        2000,
        None,
    )


# ---------------------------------------------------------------- YAML
YAML = """
variables: {length: 64, data: /data}
max_seq_len: ${variables.length}
seed: 17
tokenizer: {name: TOKENIZER, kwargs: {model_max_length: "${max_seq_len}"}}
train_loader:
  name: text
  dataset: {local: "${variables.data}", split: train, shuffle: true, max_seq_len: "${max_seq_len}"}
  drop_last: true
  num_workers: 8
global_train_batch_size: 16
"""
EVALUATION = {"name": "text", "drop_last": False, "num_workers": 0, "dataset": {"local": "/e", "max_seq_len": 64}}


@pytest.fixture
def run_yaml(tmp_path: Path) -> Path:
    make_tokenizer(PAD, EOS).save_pretrained(str(tmp_path / "tokenizer"))
    (tmp_path / "run.yaml").write_text(YAML.replace("TOKENIZER", str(tmp_path / "tokenizer")))
    return tmp_path / "run.yaml"


def test_a_yaml_tells_loaders_batch_sizes_and_tokenizer(run_yaml: Path) -> None:
    run = foundry.from_yaml(run_yaml, world_size=4, rank=3)
    assert (run.device_train_batch_size, run.device_eval_batch_size, run.eval_loaders) == (4, 1, {})
    assert run.tokenizer.model_max_length == 64 and run.tokenizer.pad_token_id == PAD
    plan = run.train_loader.dataloader
    assert (plan.batch_size, plan.seq_len, plan.streams[0].directory) == (4, 64, "/data/train")
    assert (plan.rank, plan.world_size) == (3, 4) and run.train_loader is run.train_loader


def test_a_yaml_may_be_overridden_as_on_a_command_line(run_yaml: Path) -> None:
    overrides = ["variables.length=128", "train_loader.dataset.split=val", "device_eval_batch_size=3"]
    run = foundry.from_yaml(run_yaml, [*overrides, "train_loader.dataset.shuffle=false"], world_size=1, rank=0)
    plan = run.train_loader.dataloader
    assert plan.seq_len == 128 and plan.config.split == "val" and not plan.config.shuffle
    assert run.device_eval_batch_size == 3


@pytest.mark.parametrize(("micro", "size"), [("auto", 1), (2, 2), (64, 16)])
def test_evaluations_are_one_or_a_list_with_labels(run_yaml: Path, micro: Any, size: int) -> None:
    config = {**yaml.read_yaml(run_yaml), "device_train_microbatch_size": micro}
    run = foundry.from_yaml({**config, "eval_loader": EVALUATION}, world_size=1, rank=0)
    assert list(run.eval_loaders) == ["eval"] and run.eval_loaders["eval"].dataloader.batch_size == size
    labelled = [{**EVALUATION, "label": label} for label in ("a", "b")]
    assert list(foundry.from_yaml({**config, "eval_loader": labelled}).eval_loaders) == ["eval/a", "eval/b"]
    with pytest.raises(
        ValueError, match="When specifying multiple evaluation datasets, each one must include the `lab"
    ):
        foundry.from_yaml({**config, "eval_loader": [EVALUATION]})
    with pytest.raises(ValueError, match="Got invalid type for eval_loader_config: <class 'str'>"):
        foundry.from_yaml({**config, "eval_loader": "x"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data_local": "/x"},
            r"Unused parameters \['data_local'\] found in cfg. Please check your yaml to ensure these",
        ),
        (
            {"global_train_batch_size": 15},
            r"Global batchsize 15 is not divisible by \(world_size // data_replication_d",
        ),
        ({"device_train_microbatch_size": "x"}, "Not sure how to parse device_microbatch_size='x'"),
    ],
)
def test_what_breaks_a_rule_of_a_yaml_is_told(run_yaml: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        foundry.from_yaml({**yaml.read_yaml(run_yaml), **changes}, world_size=4, rank=0)


def test_what_a_yaml_lacks_is_told_when_it_is_needed(run_yaml: Path, tmp_path: Path) -> None:
    config = yaml.read_yaml(run_yaml)
    for key in ("train_loader", "global_train_batch_size", "tokenizer"):
        run = foundry.from_yaml({name: value for name, value in config.items() if name != key})
        with pytest.raises(ValueError, match=f"the YAML has no `{key}`"):
            _ = run.train_loader
    make_tokenizer(PAD, None).save_pretrained(str(tmp_path / "endless"))
    with pytest.raises(ValueError, match=f"The tokenizer {tmp_path / 'endless'} must have an eos_token."):
        yaml.build_tokenizer(str(tmp_path / "endless"), {})
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="holds ListConfig, not a mapping of keys"):
        foundry.from_yaml(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: ${nowhere}")
    with pytest.raises(ValueError, match=r"broken\.yaml: .*nowhere"):
        foundry.from_yaml(tmp_path / "broken.yaml")
    with pytest.raises(FileNotFoundError):
        foundry.from_yaml(tmp_path / "nothing.yaml")
