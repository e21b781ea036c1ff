"""Looks at a directory of token shards: what it holds, and whether its files are what its index says."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stoker import _core
from stoker.dataset import stream_files
from stoker.errors import CorruptShardError
from stoker.hashes import get_hash
from stoker.index import TokenizerIdentity, index_path, read_index


@dataclass(frozen=True)
class Inspection:
    """What a directory holds.

    Attributes:
        shards, samples, tokens: Their numbers.
        loss_tokens: Tokens with loss; None where the index does not tell.
        kind: "text" or "finetuning".
        columns: Names and encodings.
        compression: As the writer was told, or None.
        raw_bytes, file_bytes: Of all shards, before compression and as they are.
        tokenizer: What the shards were made with, where the index tells.
        lengths: Tokens of the shortest, the median, the mean and the longest sample.
        histogram: Samples by length: (from, to, samples) with bounds at powers of two.
        num_hashed: Files whose hashes were compared with those in the index; others have none there.
        examples: The first samples: "tokens", and "labels" where there are any.
    """

    shards: int
    samples: int
    tokens: int
    loss_tokens: int | None
    kind: str
    columns: dict[str, str]
    compression: str | None
    raw_bytes: int
    file_bytes: int
    tokenizer: TokenizerIdentity | None
    lengths: tuple[int, float, float, int]
    histogram: list[tuple[int, int, int]]
    num_hashed: int
    examples: list[dict[str, np.ndarray]]


def inspect(
    directory: str | os.PathLike[str], *, bytes_dtype: str = "int64", examples: int = 3, check_hashes: bool = True
) -> Inspection:
    """Reads the heads of all shards, the first samples, and, to compare hashes, all files.

    Args:
        directory: Holds index.json and the shards that it lists.
        bytes_dtype: Integer type of token columns whose encoding is `bytes`.
        examples: How many of the first samples to read.
        check_hashes: Compare the files with the hashes in the index, where it has any.

    Raises:
        FileNotFoundError: There is no index.json, or a shard is missing.
        CorruptShardError: A shard is not what the index says.
        ValueError: The index breaks its format, or there is no sample.
        OSError: A shard can't be read.
    """
    directory = os.fspath(directory)
    index = read_index(directory, bytes_dtype)
    entries = json.loads(Path(index_path(directory)).read_bytes())["shards"]
    if not index.samples.any():
        raise ValueError(f"{index_path(directory)} lists no sample.")
    store = _core.ShardStore([stream_files(directory, index, follow_links=True)], 0)
    with_samples = [int(shard) for shard in np.flatnonzero(index.samples)]
    lengths = np.concatenate([store.lengths(0, shard) for shard in with_samples])
    places = [(shard, sample) for shard in with_samples[:examples] for sample in range(int(index.samples[shard]))]
    return Inspection(
        shards=len(entries),
        samples=len(lengths),
        tokens=int(lengths.sum(dtype=np.uint64)),
        loss_tokens=None if index.loss_tokens is None else int(index.loss_tokens.sum()),
        kind=index.schemas[0].kind,
        columns=dict(zip(entries[0]["column_names"], entries[0]["column_encodings"], strict=True)),
        compression=entries[0].get("compression"),
        raw_bytes=int(index.raw_bytes.sum()),
        file_bytes=int(np.where(index.zip_bytes > 0, index.zip_bytes, index.raw_bytes).sum()),
        tokenizer=index.tokenizer,
        lengths=(int(lengths.min()), float(np.median(lengths)), float(lengths.mean()), int(lengths.max())),
        histogram=_histogram(lengths),
        num_hashed=sum(_check_hashes(directory, entry) for entry in entries) if check_hashes else 0,
        examples=[store.read_sample(0, shard, sample) for shard, sample in places[:examples]],
    )


def _histogram(lengths: np.ndarray) -> list[tuple[int, int, int]]:
    """Samples of 0 tokens, 1, 2 to 3, 4 to 7, ..., without empty ends."""
    buckets = np.where(lengths > 0, np.floor(np.log2(np.maximum(lengths, 1))) + 1, 0).astype(np.int64)
    counts = np.bincount(buckets)
    first = int(np.flatnonzero(counts)[0])
    bounds = [(0, 0), *((1 << i, (2 << i) - 1) for i in range(len(counts)))]
    return [(*bounds[i], int(counts[i])) for i in range(first, len(counts))]


def _check_hashes(directory: str, entry: dict[str, Any]) -> int:
    """Compares the file of a shard that is there with its hashes. Returns how many files were compared.

    Raises:
        CorruptShardError: They differ.
    """
    num_compared = 0
    for data in (entry.get("zip_data"), entry["raw_data"]):
        path = os.path.join(directory, data["basename"]) if data else ""
        if not data or not data.get("hashes") or not os.path.isfile(path):
            continue
        content = Path(path).read_bytes()
        for name, digest in data["hashes"].items():
            if get_hash(name)(content) != digest:
                raise CorruptShardError(
                    f"{path} is not what index.json says: its {name} differs. Write it again.", path
                )
        num_compared += 1
    return num_compared
