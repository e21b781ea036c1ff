"""Loaders of LLM Foundry's configurations on the core: batch for batch those that its data sets and collators make."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stoker
from foundry_tokenizers import make_tokenizer
from stoker.errors import StateMismatchError
from stoker.foundry import build_finetuning_dataloader, build_text_dataloader, builders
from stoker.foundry.errors import DatasetTooSmallError
from stoker.foundry.python_loader import open_python_loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument"),
    pytest.mark.filterwarnings("ignore:Truncating sequence"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork"),
]
SAMPLES = 57


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("STOKER_CACHE", str(tmp_path_factory.getbasetemp() / "foundry-cache"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("foundry")
    rng = np.random.default_rng(0)

    def ids(most: int) -> list[int]:
        return rng.integers(0, 9, rng.integers(1, most)).tolist()

    def words(most: int) -> str:
        return " ".join(str(n) for n in rng.integers(4, 90, rng.integers(1, most)))

    def as_bytes(tokens: list[int]) -> bytes:
        return np.array(tokens, np.int64).tobytes()

    kinds = {
        "tokens": ({"tokens": "bytes"}, lambda: {"tokens": as_bytes(ids(14))}),
        "text": ({"text": "str"}, lambda: {"text": words(14)}),
        "turns": (
            {"turns": "json"},
            lambda: {"turns": [{"input_ids": ids(6), "labels": ids(6)} for _ in range(rng.integers(1, 4))]},
        ),
        "pairs": (
            {"input_ids": "bytes", "labels": "bytes"},
            lambda: {"input_ids": as_bytes(ids(9)), "labels": as_bytes(ids(9))},
        ),
        "prompts": ({"prompt": "str", "response": "str"}, lambda: {"prompt": words(8), "response": words(8)}),
    }
    for name, (columns, make) in kinds.items():
        with stoker.MDSWriter(columns=columns, out=root / name, size_limit=2000) as out:
            for _ in range(SAMPLES):
                out.write(make())
    return root


def tokenizer(*, side: str = "right", pad: int | None = 1) -> Any:
    return make_tokenizer(pad, 2, bos=3, side=side)


def python_loader(monkeypatch: pytest.MonkeyPatch, build: Any, *arguments: Any, **config: Any) -> Any:
    """What the configuration comes to with data sets, collators and workers."""
    with monkeypatch.context() as patched:
        patched.setattr(builders, "open_loader", open_python_loader)
        return build(*arguments, **config).dataloader


def batches(loader: Any) -> Iterator[Any]:
    """Those of an epoch, and the error that ends them, if one does."""
    try:
        yield from loader
    except ValueError as error:
        yield str(error).split(" (")[0][:60]


def assert_same(ours: Any, theirs: Any) -> None:
    count = 0
    for one, other in itertools.zip_longest(batches(ours), batches(theirs)):
        if isinstance(one, str) or isinstance(other, str):
            assert one == other
            return
        assert type(one) is type(other)
        assert list(one) == list(other)
        for key, values in one.items():
            if isinstance(values, torch.Tensor):
                assert (values.dtype, values.shape) == (other[key].dtype, other[key].shape)
                assert torch.equal(values, other[key]), key
            else:
                assert [*values] == [int(value) for value in other[key]], key
        count += 1
    assert count > 0


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("documents", [{}, {"eos_token_id": 2}, {"bos_token_id": 3}])
@pytest.mark.parametrize("pad", [1, 2, None])
@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_of_tokens(
    side: str, pad: int | None, documents: dict[str, int], drop_last: bool, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {
        "dataset": {"local": str(data / "tokens"), "max_seq_len": 10, "shuffle": True, **documents},
        "drop_last": drop_last,
        "num_workers": 0,
    }
    arguments = (tokenizer(side=side, pad=pad), 5)
    theirs = python_loader(monkeypatch, build_text_dataloader, *arguments, **config)
    assert_same(build_text_dataloader(*arguments, **config).dataloader, theirs)


def test_no_token_stands_for_padding_where_the_tokenizer_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stoker.MDSWriter(columns={"tokens": "ndarray:uint16"}, out=tmp_path / "rows") as out:
        for row in range(8):
            out.write({"tokens": (np.arange(6) * row % 5).astype(np.uint16)})  # with zeros among them
    config = {"dataset": {"local": str(tmp_path / "rows"), "max_seq_len": 6}, "drop_last": False, "num_workers": 0}
    ours = build_text_dataloader(tokenizer(pad=None), 3, **config).dataloader
    assert_same(ours, python_loader(monkeypatch, build_text_dataloader, tokenizer(pad=None), 3, **config))
    assert all(torch.equal(batch["labels"], batch["input_ids"]) for batch in ours)


@pytest.mark.parametrize("documents", [{}, {"eos_token_id": 2}])
@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_of_text(side: str, documents: dict[str, int], data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {
        "dataset": {"local": str(data / "text"), "max_seq_len": 10, "shuffle": True, **documents},
        "drop_last": False,
        "num_workers": 0,
    }
    theirs = python_loader(monkeypatch, build_text_dataloader, tokenizer(side=side), 5, **config)
    assert_same(build_text_dataloader(tokenizer(side=side), 5, **config).dataloader, theirs)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pad_to_longest": True},
        {"allow_pad_trimming": True},
        {"target_prompts": "all", "target_responses": "all"},
        {"target_prompts": "length>=3"},
        {"packing_ratio": 2.0},
        {"packing_ratio": 2.6, "max_leftover_bins_to_keep": 1},
    ],
)
@pytest.mark.parametrize("kind", ["turns", "pairs", "prompts"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_of_examples(
    side: str, kind: str, settings: dict[str, Any], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = {"local": str(data / kind), "max_seq_len": 24, "shuffle": True, "decoder_only_format": True, **settings}
    arguments = (tokenizer(side=side), 5, dataset, 0)
    ours = build_finetuning_dataloader(arguments[0], *arguments[1:]).dataloader
    theirs = python_loader(monkeypatch, build_finetuning_dataloader, *arguments)
    for _ in range(2):
        assert_same(ours, theirs)


@pytest.mark.parametrize("persistent_workers", [True, False])
@pytest.mark.parametrize("settings", [{"packing_ratio": 2.6}, {"allow_pad_trimming": True}])
def test_rows_are_those_of_so_many_workers(
    settings: dict[str, Any], persistent_workers: bool, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = {"local": str(data / "turns"), "max_seq_len": 24, "decoder_only_format": True, **settings}
    config = {"dataset": dataset, "num_workers": 2, "persistent_workers": persistent_workers, "pin_memory": False}
    ours = build_finetuning_dataloader(tokenizer(), 3, **config).dataloader
    theirs = python_loader(monkeypatch, build_finetuning_dataloader, tokenizer(), 3, **config)
    for _ in range(2):
        assert_same(ours, theirs)


def test_an_example_that_is_cut_to_no_loss_is_the_same_error(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = {"local": str(data / "turns"), "max_seq_len": 8, "decoder_only_format": True}
    with pytest.raises(ValueError, match="has removed all loss-generating tokens"):
        list(build_finetuning_dataloader(tokenizer(), 5, dataset, 0).dataloader)


def test_pretraining_and_finetuning_data_in_one_batch(data: Path) -> None:
    """Which LLM Foundry can't have."""
    streams = {
        "text": {"local": str(data / "tokens"), "kind": "text", "proportion": 0.5},
        "chat": {"local": str(data / "turns"), "proportion": 0.5},
    }
    dataset = {"streams": streams, "max_seq_len": 24, "decoder_only_format": True, "layout": "pad", "shuffle": True}
    loader = build_finetuning_dataloader(tokenizer(), 8, dataset, 0, drop_last=True).dataloader
    for batch in loader:
        assert list(batch)[:4] == ["input_ids", "labels", "attention_mask", "sequence_id"]
        has_prompt = (batch["labels"] == -100).sum(1) > (batch["attention_mask"] == 0).sum(1)
        assert 0 < int(has_prompt.sum()) < 8
        assert batch["total_tokens"] == batch["attention_mask"].sum(1).tolist()
    samples = loader.stoker.stats()["streams"]
    assert [samples[name]["asked"] for name in streams] == [0.5, 0.5]


# ---------------------------------------------------------------- states
def finetuning(data: Path, **settings: Any) -> Any:
    dataset = {
        "local": str(data / "turns"),
        "max_seq_len": 24,
        "shuffle": True,
        "decoder_only_format": True,
        **settings,
    }
    return build_finetuning_dataloader(tokenizer(), 5, dataset, 0).dataloader


def test_the_state_is_mosaicml_streamings(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Composer takes and gives it, both ways."""
    dataset = {"local": str(data / "turns"), "max_seq_len": 24, "shuffle": True, "decoder_only_format": True}
    ours, rest = finetuning(data), finetuning(data)
    given = list(itertools.islice(ours, 4))
    state = ours.dataset.state_dict(20, True)
    theirs = python_loader(monkeypatch, build_finetuning_dataloader, tokenizer(), 5, dataset, 0)
    list(itertools.islice(theirs, 4))
    assert state == {**theirs.dataset.state_dict(20, True)}
    assert len(given) == 4
    for loader in (
        rest,
        theirs_again := python_loader(monkeypatch, build_finetuning_dataloader, tokenizer(), 5, dataset, 0),
    ):
        loader.dataset.load_state_dict(json.loads(json.dumps(state)))
    assert_same(rest, theirs_again)


def test_a_packed_run_goes_on_with_what_was_left_over(data: Path) -> None:
    whole = list(finetuning(data, packing_ratio=2.6))
    loader = finetuning(data, packing_ratio=2.6)
    begun = list(itertools.islice(loader, 2))
    state = json.loads(json.dumps(loader.dataset.state_dict(10, True)))
    rest = finetuning(data, packing_ratio=2.6)
    rest.dataset.load_state_dict(state)
    for one, other in zip([*begun, *rest], whole, strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])
    bare = {name: value for name, value in state.items() if name in ("epoch", "sample_in_epoch", "shuffle_seed")}
    with pytest.raises(StateMismatchError, match="start of an epoch"):
        rest.dataset.load_state_dict({**bare, "num_canonical_nodes": 1})


@pytest.mark.parametrize("settings", [{}, {"packing_ratio": 2.6}])
def test_behind_an_epoch_comes_the_next_one(settings: dict[str, Any], data: Path) -> None:
    """Whether the trainer counts the rows of the epoch that is over, before its end or behind it, or begins anew."""
    loader = finetuning(data, **settings)
    rows = sum(len(batch["input_ids"]) for batch in itertools.islice(loader, len(loader)))
    states = [loader.dataset.state_dict(rows, True)]
    loader = finetuning(data, **settings)
    rows = sum(len(batch["input_ids"]) for batch in loader)
    states += [loader.dataset.state_dict(count, True) for count in (rows, 0)]
    second = [batch["input_ids"] for batch in loader]
    for state in states:
        rest = finetuning(data, **settings)
        rest.dataset.load_state_dict(json.loads(json.dumps(state)))
        assert all(torch.equal(one["input_ids"], other) for one, other in zip(rest, second, strict=True))


def test_rows_since_a_resumption_are_those_of_the_resumed_epoch(data: Path) -> None:
    loader = finetuning(data)
    list(itertools.islice(loader, 4))
    loader.dataset.load_state_dict(loader.dataset.state_dict(20, True))
    next(iter(loader))
    assert loader.dataset.state_dict(5, False)["sample_in_epoch"] == 25
    next(iter(loader))
    state = loader.dataset.state_dict(5, False)
    assert (state["epoch"], state["sample_in_epoch"]) == (1, 5)


# ---------------------------------------------------------------- data
def test_prompts_and_responses_that_mdswriter_wrote_as_arrays(data: Path, tmp_path: Path) -> None:
    """They are not the tokens and their labels."""
    rng = np.random.default_rng(0)
    with stoker.MDSWriter(columns={"input_ids": "ndarray:int32", "labels": "ndarray:int32"}, out=tmp_path) as out:
        pairs = [[rng.integers(4, 90, rng.integers(1, 9), np.int32) for _ in range(2)] for _ in range(12)]
        for prompt, response in pairs:
            out.write({"input_ids": prompt, "labels": response})
    dataset = {"local": str(tmp_path), "max_seq_len": 24, "decoder_only_format": True}
    (batch,) = build_finetuning_dataloader(tokenizer(), 12, dataset, 0).dataloader
    for row, (prompt, response) in zip(batch["input_ids"].tolist(), pairs, strict=True):
        assert row[: len(prompt) + len(response) + 1] == [*prompt, *response, 2]


def test_too_few_samples_are_llm_foundrys_error(data: Path) -> None:
    with pytest.raises(DatasetTooSmallError, match="num_samples=57 is less than num_canonical_nodes=64"):
        finetuning(data, num_canonical_nodes=64)


def test_text_needs_a_padding(data: Path) -> None:
    dataset = {"local": str(data / "text"), "max_seq_len": 10}
    with pytest.raises(RuntimeError, match="If tokenizing on-the-fly, tokenizer must have a pad_token_id"):
        build_text_dataloader(tokenizer(pad=None), 5, dataset, False, 0)


@pytest.mark.parametrize(("workers", "prefetch", "ahead"), [(3, 4, 12), (2, None, 4), (0, 2, 8)])
def test_batches_are_filled_ahead_for_each_worker(workers: int, prefetch: int | None, ahead: int, data: Path) -> None:
    dataset = {"local": str(data / "tokens"), "max_seq_len": 10}
    loader = build_text_dataloader(tokenizer(), 5, dataset, False, workers, prefetch_factor=prefetch).dataloader
    assert loader.stoker.prefetch_factor == ahead
