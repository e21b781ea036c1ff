"""The order and layout of the public API against the reference model in tests/model."""

from __future__ import annotations

import json
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import layout as model_layout
import stoker
from mds import write_dataset
from order import rates

GOLDEN = json.loads((Path(model_layout.__file__).parent / "golden.json").read_text())


def make_loader(
    root: Path, layout: str, names: list[str], lengths: list[Any], counts: list[int], seq_len: int, **kw: Any
) -> stoker.DataLoader:
    streams = [
        stoker.Stream(local=write_dataset(root, name, shards), choose=count)
        for name, shards, count in zip(names, lengths, counts, strict=True)
    ]
    return stoker.DataLoader(streams, layout=layout, seq_len=seq_len, **kw)


def rows_of(loader: stoker.DataLoader, num_rows: int, names: list[str]) -> list[list[tuple[int, ...]]]:
    rows: list[list[tuple[int, ...]]] = []
    for batch in range(-(-num_rows // loader.batch_size)):
        rows += [[(names.index(s.stream), *s[1:]) for s in row] for row in loader.order(batch)]
    return rows[:num_rows]


@pytest.mark.parametrize(
    "case", [c for c in GOLDEN["cases"] if c["layout"] != "pack" and c["streams"] == sorted(c["streams"])]
)  # those of pack have windows that only the core can be asked for: tests/cpp/golden_test.cc
def test_order_gives_the_golden_rows(case: dict[str, Any], tmp_path: Path) -> None:
    loader = make_loader(
        tmp_path,
        case["layout"],
        case["streams"],
        case["lengths"],
        case["counts"],
        case["seq_len"],
        batch_size=case["batch"],
        **{k: case[k] for k in ("seed", "lanes", "shuffle", "shuffle_block", "drop_last")},
    )
    want = [[tuple(segment) for segment in row] for row in case["rows"]]
    assert rows_of(loader, len(want), case["streams"]) == want


SHARDS = st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=6).filter(
    lambda shards: sum(map(sum, shards)) > 0
)


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    lengths = draw(st.lists(SHARDS, min_size=1, max_size=4))
    layout = draw(st.sampled_from(["pad", "concat", "pack"]))
    packing = {"overflow": draw(st.sampled_from(["split", "truncate"])), "pack_window": draw(st.integers(1, 20))}
    return {
        "layout": layout,
        "names": [f"s{i}" for i in range(len(lengths))],
        "lengths": lengths,
        "counts": [draw(st.integers(0, 20)) for _ in lengths[1:]] + [draw(st.integers(12, 20))],
        "seq_len": draw(st.integers(1, 12)),
        "batch_size": draw(st.sampled_from([6, 12])),
        "seed": draw(st.integers(0, 2**64 - 1)),
        "lanes": draw(st.integers(1, 11)),
        "shuffle": draw(st.booleans()),
        "shuffle_block": draw(st.integers(1, 9)),
        "drop_last": layout == "pack" or draw(st.booleans()),
        **(packing if layout == "pack" else {}),
    }


def model_spec(run: dict[str, Any]) -> Any:
    return model_layout.make_spec(
        run["layout"],
        run["names"],
        run["lengths"],
        rates(run["counts"]) if run["layout"] == "pack" else run["counts"],
        run["seq_len"],
        batch=run["batch_size"],
        **{k: run[k] for k in ("seed", "lanes", "shuffle", "shuffle_block", "drop_last")},
    )


@given(runs())
def test_order_gives_the_models_rows(run: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as root:
        loader = make_loader(Path(root), **run)
        packing = {k: run[k] for k in ("overflow", "pack_window") if k in run}
        model = model_layout.Loader(model_spec(run), run["lengths"], run["layout"], run["seq_len"], **packing)
        want = [list(row) for _ in range(6) for _, row in model.next_batch()]
        assert rows_of(loader, len(want), run["names"]) == want


def epoch_batches(run: dict[str, Any], epoch: int) -> tuple[int, int]:
    """The model's, but that `pack` too has an epoch of a number of rows, what is left over coming first in the next."""
    if run["layout"] != "pack":
        return model_layout.epoch_batches(model_spec(run), epoch)  # type: ignore[no-any-return]
    samples = [sum(map(len, shards)) for shards in run["lengths"]]
    tokens = [sum(map(sum, shards)) for shards in run["lengths"]]
    an_epoch = sum(Fraction(c * t, n) for c, t, n in zip(run["counts"], tokens, samples, strict=True))
    rows = max(int(an_epoch) // run["seq_len"], run["batch_size"])
    return epoch * rows // run["batch_size"], (epoch + 1) * rows // run["batch_size"]


@given(runs(), st.integers(0, 4))
def test_epochs_have_the_models_batches(run: dict[str, Any], epoch: int) -> None:
    begin, end = epoch_batches(run, epoch)
    with tempfile.TemporaryDirectory() as root:
        loader = make_loader(Path(root), **run)
        loader.set_epoch(epoch)
        assert len(loader) == end - begin
        assert loader.state_dict()["rows"] == begin * run["batch_size"]
        batches = sum(1 for _ in loader)
        assert batches == end - begin
        assert loader.state_dict()["rows"] == end * run["batch_size"]
        loader.close()
