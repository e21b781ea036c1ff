"""LLM Foundry's packing in Python: rows, what is left over, measures, and the ratio that "auto" finds."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import stoker.foundry as foundry  # noqa: E402  # after the check
from stoker.foundry import packing  # noqa: E402

NONE = -100


def padded(sizes: list[int], width: int, *, side: str = "right", pad: int = 0, first: int | None = None) -> Any:
    """Rows of these lengths: of the length itself, or numbered from `first`."""
    ids = torch.full((len(sizes), width), pad)
    mask = torch.zeros_like(ids)
    for i, size in enumerate(sizes):
        at = slice(width - size, width) if side == "left" else slice(size)
        ids[i, at] = size if first is None else first + i
        mask[i, at] = 1
    return {"input_ids": ids, "attention_mask": mask}


def make(num_rows: int, width: int, *, side: Any = "right", **options: Any) -> packing.BinPackCollator:
    return foundry.BinPackCollator(lambda x: x, num_rows, width, 0, side, **options)


def runs(ids: Any) -> list[list[tuple[int, int]]]:
    """Rows as (number, length) of what they hold."""
    rows = []
    for row in ids.tolist():
        found: list[tuple[int, int]] = []
        for i in row:
            if found and found[-1][0] == i:
                found[-1] = (i, found[-1][1] + 1)
            else:
                found.append((i, 1))
        rows.append([run for run in found if run[0]])
    return rows


def test_rows_are_llm_foundrys_with_what_is_left_over() -> None:
    """The golden calls of its specification; examples are numbered from 1 here."""
    packer = make(3, 10)
    first = packer.pack(padded([7, 2, 5, 5, 3, 9, 1, 4], 10, first=1))
    assert runs(first["input_ids"]) == [[(3, 5), (4, 5)], [(1, 7), (5, 3)], [(6, 9), (7, 1)]]
    ((size, left_over),) = packer._leftover_bins
    assert size == 6 and left_over["input_ids"].tolist() == [8] * 4 + [2] * 2
    assert left_over["sequence_id"].tolist() == [0] * 4 + [1] * 2
    second = packer.pack(padded([6, 6, 2, 2, 1, 8, 3], 10, first=301))
    assert runs(second["input_ids"]) == [[(306, 8), (303, 2)], [(8, 4), (2, 2), (307, 3)], [(301, 6), (304, 2)]]
    assert [size for size, _ in packer._leftover_bins] == [7]
    third = packer.pack(padded([1], 10, first=601))
    assert runs(third["input_ids"]) == [[(302, 6), (305, 1)], [(601, 1)]] and packer._leftover_bins == []


@pytest.mark.parametrize("side", ["right", "left"])
def test_rows_are_padded_and_measured(side: str) -> None:
    """The vectors of LLM Foundry's own tests."""
    packer = make(2, 5, side=side)
    batch = packer.pack(padded([1, 2, 4, 3], 5, side=side))
    assert batch["input_ids"].tolist() == [[3, 3, 3, 2, 2], [4, 4, 4, 4, 1]]
    assert packer.waste == 0 and packer.efficiency == 1
    packer = make(2, 5, side=side)
    batch = packer.pack(padded([1, 2, 4, 4], 5, side=side))
    last = [4, 4, 4, 4, 0] if side == "right" else [0, 4, 4, 4, 4]
    assert batch["input_ids"].tolist() == [[4, 4, 4, 4, 1], last]
    assert [size for size, _ in packer._leftover_bins] == [2] and packer.waste == 1 - 9 / 11
    batch = packer.pack(padded([1], 5, side=side))
    rows = [[2, 2, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert batch["input_ids"].tolist() == (rows if side == "right" else [row[::-1] for row in rows])


def test_labels_of_the_first_token_of_an_example_are_left_out() -> None:
    batch = padded([2, 3, 2], 6)
    batch["labels"] = torch.where(batch["attention_mask"] == 1, batch["input_ids"], NONE)
    packed = make(1, 6).pack(batch)
    assert list(packed) == ["input_ids", "attention_mask", "labels", "sequence_id"] and type(packed) is dict
    assert {key: value.tolist() for key, value in packed.items()} == {
        "input_ids": [[3, 3, 3, 2, 2, 0]],
        "attention_mask": [[1, 1, 1, 1, 1, 0]],
        "labels": [[3, 3, 3, NONE, 2, NONE]],
        "sequence_id": [[0, 0, 0, 1, 1, -1]],
    }
    assert {value.dtype for value in packed.values()} == {torch.int64}


@pytest.mark.parametrize(("keep", "left"), [(None, 3), (2, 2), (0, 0)])
def test_bins_beyond_those_to_keep_are_dropped(keep: int | None, left: int) -> None:
    packer = make(1, 4, max_leftover_bins_to_keep=keep)
    packer.pack(padded([4, 4, 3, 3], 4))
    assert len(packer._leftover_bins) == left and len(packer._waiting) == left
    assert packer.n_packed_tokens == 4 and packer.n_total_tokens == 14 and packer.n_packed_examples == 1


def test_a_packer_that_has_not_packed_pickles() -> None:
    packer = pickle.loads(pickle.dumps(foundry.BinPackCollator(len, 1, 4, 0, "right")))
    assert packer.pack(padded([4], 4))["input_ids"].tolist() == [[4] * 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_batch_size": 0}, "target_batch_size=0 must be >0."),
        ({"max_seq_len": 0}, "max_seq_len=0 must be >0."),
        ({"pad_token_id": -1}, "pad_token_id=-1 must be >=0."),
        ({"max_leftover_bins_to_keep": -1}, "max_leftover_bins_to_keep=-1 must be >=0 or None."),
    ],
)
def test_numbers_out_of_range_are_told(changes: dict[str, Any], message: str) -> None:
    arguments = {"target_batch_size": 1, "max_seq_len": 4, "pad_token_id": 0, "padding_side": "right", **changes}
    with pytest.raises(ValueError, match=message):
        foundry.BinPackCollator(len, **arguments)


def test_what_can_not_be_packed_is_told() -> None:
    with pytest.raises(ValueError, match="Cannot pack in profiling mode"):
        make(1, 4, is_profiling=True).pack(padded([1], 4))
    with pytest.raises(ValueError, match="Unknown padding_side='top'"):
        make(1, 4, side="top").pack(padded([1], 4))
    with pytest.raises(AssertionError, match="found input_ids, attention_mask, other"):
        make(1, 4).pack({**padded([1], 4), "other": 1})
    with pytest.raises(ZeroDivisionError):
        _ = make(1, 4).waste


# ---------------------------------------------------------------- the ratio
CFG = {"name": "finetuning", "dataset": {"max_seq_len": 2048, "decoder_only_format": True, "packing_ratio": "auto"}}


def test_auto_is_the_last_ratio_before_the_first_that_leaves_something_over(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(1, 0.9, 0), (2, 0.8, 0), (3, 0.7, 0.5), (4, 0.6, 0)]
    monkeypatch.setattr(packing, "profile_packing", lambda **_: found)
    assert foundry.auto_packing_ratio(CFG, None, 4) == 2
    monkeypatch.setattr(packing, "profile_packing", lambda **_: [(2, None, None)])
    assert foundry.auto_packing_ratio(CFG, None, 4) == 1
    with pytest.raises(ValueError, match=r"max_ratio=1 must be >min_ratio=1"):
        foundry.auto_packing_ratio(CFG, None, 4, max_ratio=1)
    assert foundry.auto_packing_ratio({"dataset": {"max_seq_len": 100}}, None, 4) == 1


def test_random_numbers_are_the_same_when_auto_looks_and_what_they_were_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = []

    def profile(**_: Any) -> Iterator[tuple[float, float, float]]:
        drawn.append((random.random(), float(np.random.random()), float(torch.rand(()))))
        yield 2, 0, 0

    monkeypatch.setattr(packing, "profile_packing", profile)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    for _ in range(2):
        foundry.auto_packing_ratio(CFG, None, 4)
    assert drawn[0] == drawn[1] and drawn[0][0] == random.Random(0).random()
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


class _Spec:
    def __init__(self, batch: Any) -> None:
        self.dataloader = [batch]


def test_profiling_packs_one_batch_of_unpacked_examples_at_each_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    from stoker.foundry import builders

    asked: list[Any] = []

    def build(cfg: Any, tokenizer: Any, size: int) -> _Spec:
        asked.append((cfg, size))
        return _Spec({**padded([1, 1, 2, 2, 2, 1, 3], 4), "total_tokens": [], "loss_generating_tokens": []})

    monkeypatch.setattr(builders, "build_dataloader", build)
    cfg = {"name": "finetuning", "num_workers": 8, "dataset": {**CFG["dataset"], "max_seq_len": 4}}
    found = list(packing.profile_packing(cfg, None, 1, 2, 3, 2))
    assert [ratio for ratio, *_ in found] == [1.0, 1.5, 2.0]
    assert found[0] == (1.0, 62.5, 0) and found[2] == (2.0, pytest.approx(25), 0)
    ((made, size),) = asked
    assert size == 100 * 4 and made["num_workers"] == 0 and made["drop_last"] is False
    assert made["dataset"]["packing_ratio"] == 1.0 and made["dataset"]["pad_to_longest"] is True
    assert cfg["num_workers"] == 8 and cfg["dataset"]["packing_ratio"] == "auto"


def test_profiling_less_than_a_batch_finds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from stoker.foundry import builders

    monkeypatch.setattr(builders, "build_dataloader", lambda *_: _Spec(padded([1], 4)))
    assert list(packing.profile_packing(CFG, None, 1, 2, 2, 2)) == [(1.0, None, None), (2.0, None, None)]


def test_auto_is_the_least_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_reduce(tensor: Any, op: Any) -> None:
        assert tensor.dtype == torch.float64 and op == torch.distributed.ReduceOp.MIN
        tensor.fill_(min(tensor.item(), 1.9))  # another rank's

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    for own, found in ((2.3, 1.9), (1.2, 1.2)):
        monkeypatch.setattr(packing, "profile_packing", lambda own=own, **_: [(own, 0, 0)])
        assert foundry.auto_packing_ratio(CFG, None, 4) == found
