"""Micro-benchmarks of what a run does once a batch, once a start, and once a shard.

Question: did a change make one of them slower?
Method: pytest-benchmark on small data sets of its own, one thread.
Command: `make micro`; `--benchmark-save=before` and `--benchmark-compare` (see pytest-benchmark) compare two states.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stoker
from stoker.index import read_index

FIELDS = ("input_ids", "labels", "attention_mask", "position_ids", "sequence_id", "stream_ids")


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> list[stoker.Stream]:
    """Two streams of 2000 documents each, 4 M tokens together."""
    root = tmp_path_factory.mktemp("micro")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        columns = {"tokens": "ndarray:uint16"}
        with stoker.MDSWriter(columns=columns, out=root / name, size_limit="1mb", compression="zstd") as writer:
            for length in rng.integers(1, 2000, 2000):
                writer.write({"tokens": rng.integers(0, 1000, length).astype(np.uint16)})
    return [stoker.Stream(local=root / name) for name in ("a", "b")]


def make_loader(streams: list[stoker.Stream], **changes: Any) -> stoker.DataLoader:
    return stoker.DataLoader(streams, **{"seq_len": 2048, "batch_size": 8, "num_workers": 0, **changes})


@pytest.mark.parametrize("layout", ["concat", "pad"])
@pytest.mark.parametrize("fields", [2, 6])
def test_next(benchmark: Any, streams: list[stoker.Stream], layout: str, fields: int) -> None:
    with make_loader(streams, layout=layout, fields=FIELDS[:fields], epoch_size=10**9) as loader:
        batches = iter(loader)
        benchmark(lambda: next(batches))


def test_order_of_a_batch_far_ahead(benchmark: Any, streams: list[stoker.Stream]) -> None:
    with make_loader(streams) as loader:
        benchmark(lambda: loader.order(10**6))


def test_start(benchmark: Any, streams: list[stoker.Stream]) -> None:
    def start() -> None:
        with make_loader(streams) as loader:
            next(iter(loader))

    benchmark(start)


def test_resume(benchmark: Any, streams: list[stoker.Stream]) -> None:
    with make_loader(streams, epoch_size=10**6) as loader:
        batches = iter(loader)
        for _ in range(100):
            next(batches)
        state = loader.state_dict()

        def resume() -> None:
            loader.load_state_dict(state)
            next(iter(loader))

        benchmark(resume)


def test_state_dict(benchmark: Any, streams: list[stoker.Stream]) -> None:
    with make_loader(streams) as loader:
        benchmark(loader.state_dict)


def test_read_index_of_10_000_shards(benchmark: Any, streams: list[stoker.Stream], tmp_path: Path) -> None:
    index = json.loads((Path(streams[0].local) / "index.json").read_text())
    index["shards"] = index["shards"][:1] * 10_000
    del index["stoker"]
    (tmp_path / "index.json").write_text(json.dumps(index))
    benchmark(lambda: read_index(str(tmp_path), "int64"))


def test_write_a_thousand_samples(benchmark: Any, tmp_path: Path) -> None:
    sample = {"tokens": np.arange(2048, dtype=np.uint16)}

    def write() -> None:
        with stoker.MDSWriter(columns={"tokens": "ndarray:uint16"}, out=tmp_path, exist_ok=True) as writer:
            for _ in range(1000):
                writer.write(sample)

    benchmark(write)
