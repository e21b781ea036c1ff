"""Small MDS data sets for tests: of tokens that every test knows, written independently of stoker's own writer, or of
given samples, written by it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

import stoker

Lengths = Sequence[Sequence[int]]  # tokens of each sample of each shard


def tokens_at(stream: str, shard: int, sample: int, length: int, top: int = 50_000) -> np.ndarray:
    """The tokens that every test data set has at a place."""
    rng = np.random.default_rng([zlib.crc32(stream.encode()), shard, sample])
    return rng.integers(0, top, length)


def labels_at(stream: str, shard: int, sample: int, length: int) -> np.ndarray:
    """The labels that they have, where they have any: none on a prompt, and none at all in every fifth sample."""
    labels = tokens_at(stream, shard, sample, length)
    prompt = np.random.default_rng([zlib.crc32(stream.encode()), shard, sample, 1]).integers(0, max(1, length))
    labels[: length if sample % 5 == 4 else prompt] = -100
    return labels


def write(
    directory: Path, samples: list[dict[str, list[int]]], *, dtype: str = "uint16", labels_dtype: str = "int32"
) -> Path:
    """A stream of these samples in one shard."""
    types = {name: labels_dtype if name == "labels" else dtype for name in samples[0]}
    with stoker.MDSWriter(columns={name: f"ndarray:{type_}" for name, type_ in types.items()}, out=directory) as out:
        for sample in samples:
            out.write({name: np.array(values, types[name]) for name, values in sample.items()})
    return directory


def write_dataset(
    root: Path,
    name: str,
    lengths: Lengths,
    *,
    dtype: str = "uint16",
    encoding: str = "ndarray",
    compression: str | None = None,
    frame_bytes: int | None = None,
    other_column: bool = False,
    labels: str | None = None,
    totals: bool = True,
) -> Path:
    """Writes root/name with one shard for each entry of `lengths`, in sub-directories as merged data sets have them.

    Args:
        encoding: "ndarray" (the type in the encoding), "ndarray?" (the type in each array), or "bytes".
        frame_bytes: Raw bytes a zstd frame; None: one frame a shard.
        other_column: Adds a string column, sorted before the tokens.
        labels: Integer type of a column of labels, beside input_ids instead of tokens.
        totals: Adds the `stoker` object to the index.
    """
    directory = root / name
    columns = [("id", "str")] if other_column else []
    types = {"tokens" if labels is None else "input_ids": dtype} | ({} if labels is None else {"labels": labels})
    for column, of_column in types.items():
        name_of = {"ndarray": f"ndarray:{of_column}", "ndarray?": "ndarray", "bytes": "bytes"}
        columns.append((column, name_of[encoding]))
    config = {
        "column_encodings": [e for _, e in columns],
        "column_names": [n for n, _ in columns],
        "column_sizes": [None] * len(columns),
        "compression": compression,
        "format": "mds",
        "hashes": [],
        "size_limit": None,
        "version": 2,
    }
    entries = []
    for k, samples in enumerate(lengths):
        bodies = [
            _sample(
                [
                    tokens_at(name, k, x, n).astype(dtype),
                    *([labels_at(name, k, x, n).astype(labels)] if labels else []),
                ],
                encoding,
                "x" * (x % 3) if other_column else None,
            )
            for x, n in enumerate(samples)
        ]
        raw = _shard(bodies, json.dumps(config, sort_keys=True).encode())
        basename = f"{k}/shard.00000.mds"
        entry: dict[str, Any] = {
            **config,
            "samples": len(samples),
            "raw_data": {"basename": basename, "bytes": len(raw), "hashes": {}},
            "zip_data": None,
        }
        content = raw
        if compression is not None:
            step = frame_bytes or max(1, len(raw))
            compressor = zstandard.ZstdCompressor(write_checksum=True)
            content = b"".join(compressor.compress(raw[i : i + step]) for i in range(0, len(raw), step))
            basename += ".zstd"
            entry["zip_data"] = {"basename": basename, "bytes": len(content), "hashes": {}}
        (directory / str(k)).mkdir(parents=True)
        (directory / basename).write_bytes(content)
        entries.append(entry)
    index: dict[str, Any] = {"shards": entries, "version": 2}
    if totals:
        index["stoker"] = {
            "version": 1,
            "tokens": [sum(samples) for samples in lengths],
            "loss_tokens": [
                sum(int((labels_at(name, k, x, n) != -100).sum()) if labels else n for x, n in enumerate(samples))
                for k, samples in enumerate(lengths)
            ],
            "longest_sample": [max(samples, default=0) for samples in lengths],
        }
    directory.mkdir(exist_ok=True, parents=True)
    (directory / "index.json").write_text(json.dumps(index))
    return directory


def _sample(columns: list[np.ndarray], encoding: str, other: str | None) -> bytes:
    values = [] if other is None else [other.encode()]
    for tokens in columns:
        head = b""
        if encoding != "bytes":
            code = 0 if len(tokens) < 1 << 8 else 1 if len(tokens) < 1 << 16 else 2
            head = bytes([4 | code]) + len(tokens).to_bytes(1 << code, "little")
        if encoding == "ndarray?":
            codes = {"uint16": 16, "int32": 33, "uint8": 8, "int64": 65, "int16": 17}
            head = bytes([codes[tokens.dtype.name]]) + head
        values.append(head + tokens.tobytes())
    return b"".join(len(value).to_bytes(4, "little") for value in values) + b"".join(values)


def _shard(samples: list[bytes], config: bytes) -> bytes:
    begin = 4 + 4 * (len(samples) + 1) + len(config)
    offsets = begin + np.cumsum([0, *map(len, samples)])
    return np.array([len(samples), *offsets], "<u4").tobytes() + config + b"".join(samples)
