"""Weights to counts, against recorded results of MosaicML Streaming."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import stoker
from mds import write_dataset
from stoker.mixture import counts_per_epoch
from stoker.units import parse_bytes, parse_count


def test_counts_are_the_references(golden: Path) -> None:
    cases = json.loads((golden / "golden_order.json").read_text())["weights"]
    for case in cases:
        streams = [
            stoker.Stream(local=f"s{i}", **({weight[0]: weight[1]} if weight else {}))
            for i, weight in enumerate(case["weights"])
        ]
        counts = counts_per_epoch(streams, case["samples_per_stream"], epoch_size=case["epoch_size"], seed=case["seed"])
        assert counts == case["choose"]
    assert len(cases) == 26


@pytest.mark.parametrize(
    ("weight", "tokens", "rows"), [({}, 1055, 105), ({"repeat": 1.5}, 1055, 158), ({"repeat": 0.1}, 1055, 10)]
)
def test_rows_of_concat_are_whole_rows_of_the_tokens_repeated(
    tmp_path: Path, weight: dict[str, float], tokens: int, rows: int
) -> None:
    directory = write_dataset(tmp_path, "web", [[55], [1000]])
    loader = stoker.DataLoader(stoker.Stream(local=directory, **weight), seq_len=10, batch_size=1)
    assert len(loader.dataset) == rows == int(weight.get("repeat", 1) * tokens) // 10


def test_epoch_size_without_weights_is_shared_by_tokens(tmp_path: Path) -> None:
    streams = [stoker.Stream(local=write_dataset(tmp_path, n, [[k]])) for n, k in (("a", 5), ("b", 15))]
    assert stoker.DataLoader(streams, seq_len=100, batch_size=4, epoch_size=40).dataset.counts == [10, 30]


def test_sizes_and_counts_are_read_as_the_reference_reads_them() -> None:
    assert [parse_bytes(x) for x in (7, "7", "7b", "1kb", "1.5mb", "2GB")] == [7, 7, 7, 1024, 3 << 19, 2 << 30]
    assert [parse_count(x) for x in (7, "7", "100k", "1.5m", "2B", "1t")] == [7, 7, 10**5, 1_500_000, 2 * 10**9, 10**12]
    for wrong in ("", "k", "1 apple", "-1", -1, 1.5, None):
        with pytest.raises(ValueError, match="is not a count"):
            parse_count(wrong)  # type: ignore[arg-type]
