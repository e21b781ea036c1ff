"""The real mosaicml-streaming beside stoker: each reads what the other wrote, and raw shards are equal.

Runs in a virtual environment of its own: `make peers`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streaming
import torch

import stoker
from stoker.cli import main

COLUMNS = [
    {"tokens": "ndarray:uint16"},
    {"tokens": "ndarray"},
    {"tokens": "ndarray:int32:24"},
    {"tokens": "bytes"},
    {"id": "int", "tokens": "ndarray:uint32", "url": "str", "meta": "json"},
    {"input_ids": "ndarray:int32", "labels": "ndarray:int64"},
]


def samples(columns: dict[str, str], seed: int, count: int = 60) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        length = 24 if columns.get("tokens", "").endswith(":24") else int(rng.choice([1, 5, 255, 256, 400]))
        values: dict[str, Any] = {}
        for name, encoding in columns.items():
            if name in ("tokens", "input_ids", "labels"):
                dtype = "int64" if encoding in ("bytes", "ndarray") else encoding.split(":")[1]
                array = rng.integers(0, 50_000, length).astype(dtype)
                values[name] = array.tobytes() if encoding == "bytes" else array
            else:
                values[name] = {"int": i, "str": "é" * (i % 7), "json": {"n": [i, None]}}[encoding]
        out.append(values)
    return out


def assert_same(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert set(got) == set(want)
    for name, value in want.items():
        if isinstance(value, np.ndarray):
            assert got[name].dtype == value.dtype
            np.testing.assert_array_equal(got[name], value)
        else:
            assert got[name] == value


@pytest.mark.parametrize("columns", COLUMNS, ids=lambda columns: "+".join(columns.values()))
@pytest.mark.parametrize("compression", [None, "zstd", "zstd:7"])
@pytest.mark.parametrize("size_limit", [3000, 1 << 26])
def test_raw_bytes_are_equal_and_each_reads_the_others_shards(
    tmp_path: Path, columns: dict[str, str], compression: str | None, size_limit: int
) -> None:
    rows = samples(columns, size_limit)
    arguments: dict[str, Any] = {
        "columns": columns,
        "compression": compression,
        "hashes": ["sha1", "xxh64"],
        "size_limit": size_limit,
    }
    ours, theirs = tmp_path / "ours" / "x", tmp_path / "theirs" / "x"
    for writer_type, out in ((stoker.MDSWriter, ours), (streaming.MDSWriter, theirs)):
        with writer_type(out=str(out), **arguments) as writer:
            for row in rows:
                writer.write(row)

    our_shards, their_shards = (json.loads((d / "index.json").read_text())["shards"] for d in (ours, theirs))
    if compression is None:
        assert our_shards == their_shards
        for shard in their_shards:
            name = shard["raw_data"]["basename"]
            assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    else:
        for a, b in zip(our_shards, their_shards, strict=True):
            assert {**a, "zip_data": None} == {**b, "zip_data": None}  # the hash of the raw bytes too

    dataset = streaming.StreamingDataset(local=str(ours), batch_size=1, shuffle=False)
    for i, row in enumerate(rows):
        assert_same(dataset[i], row)

    if "labels" in columns:
        return
    length = 24
    expected = np.concatenate([np.frombuffer(r["tokens"], np.int64) if isinstance(r["tokens"], bytes) else r["tokens"]
                               for r in rows])  # fmt: skip
    for directory in (ours, theirs):
        if main(["index", str(directory)]) != 0:
            pytest.fail("stoker index")
        with stoker.DataLoader(stoker.Stream(local=directory), seq_len=length, batch_size=1, shuffle=False) as loader:
            got = torch.cat([batch["input_ids"].flatten() for batch in loader]).numpy()
        np.testing.assert_array_equal(got, expected[: len(got)])
        assert len(got) == len(expected) // length * length


def test_streaming_reads_shards_of_frames_of_any_compressibility(tmp_path: Path) -> None:
    """Whose frames are longer and shorter than those behind them, in every order."""
    rng = np.random.default_rng(0)
    with stoker.MDSWriter(columns={"x": "bytes"}, out=tmp_path / "x", compression="zstd:1", size_limit="6mb") as writer:
        rows = [rng.integers(0, 1 << int(bits), 1 << 18).astype(np.uint8).tobytes() for bits in rng.integers(0, 9, 400)]
        rows += [bytes(1 << 18), rng.bytes(1 << 18)] * 20  # and frames that are nothing but one byte
        for row in rows:
            writer.write({"x": row})
    assert len(json.loads((tmp_path / "x" / "index.json").read_text())["shards"]) > 15
    dataset = streaming.StreamingDataset(local=str(tmp_path / "x"), batch_size=1, shuffle=False)
    assert [sample["x"] == row for sample, row in zip(dataset, rows, strict=True)] == [True] * len(rows)
