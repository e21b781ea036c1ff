"""Looks at a directory of shards: what it holds, and whether its files are what its index says."""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stoker import _core
from stoker.dataset import stream_files
from stoker.errors import CorruptShardError
from stoker.hashes import get_hash
from stoker.index import TokenizerIdentity, index_path, read_entries, read_index, read_tokenizer
from stoker.options import check_index
from stoker.remote import open_directory
from stoker.schema import TOKEN_COLUMNS


@dataclass(frozen=True)
class Inspection:
    """What a directory holds. Of shards without token columns there are no tokens, loss tokens, kind and lengths.

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
        examples: The first samples: "tokens", and "labels" where there are any; without tokens all columns that the
            preparation reads.
    """

    shards: int
    samples: int
    tokens: int | None
    loss_tokens: int | None
    kind: str | None
    columns: dict[str, str]
    compression: str | None
    raw_bytes: int
    file_bytes: int
    tokenizer: TokenizerIdentity | None
    lengths: tuple[int, float, float, int] | None
    histogram: list[tuple[int, int, int]]
    num_hashed: int
    examples: list[dict[str, Any]]


def inspect(
    directory: str | os.PathLike[str], *, bytes_dtype: str = "int64", examples: int = 3, check_hashes: bool = True
) -> Inspection:
    """Reads the heads of all token shards, the first samples, and, to compare hashes, all files.

    Args:
        directory: Holds index.json and the shards that it lists.
        bytes_dtype: Integer type of token columns whose encoding is `bytes`.
        examples: How many of the first samples to read.
        check_hashes: Compare the files with the hashes in the index, where it has any.

    Raises:
        FileNotFoundError: There is no index.json, or a shard is missing.
        CorruptShardError: A shard is not what the index says.
        ValueError: The index breaks its format, there is no sample, or `examples` is negative.
        OSError: A shard can't be read.
    """
    directory = os.fspath(directory)
    check_index("examples", examples, 0, 1 << 31)
    samples = [entry.samples for entry in read_entries(index_path(directory))]
    if not any(samples):
        raise ValueError(f"{index_path(directory)} lists no sample.")
    entries = json.loads(Path(index_path(directory)).read_bytes())["shards"]
    columns = dict(zip(entries[0]["column_names"], entries[0]["column_encodings"], strict=True))
    of_kind = _look_at_tokens if columns.keys() & set(TOKEN_COLUMNS) else _look_at_rows
    return Inspection(
        shards=len(entries),
        samples=sum(samples),
        columns=columns,
        compression=entries[0].get("compression"),
        raw_bytes=sum(entry["raw_data"]["bytes"] for entry in entries),
        file_bytes=sum((entry.get("zip_data") or entry["raw_data"])["bytes"] for entry in entries),
        num_hashed=sum(_check_hashes(directory, entry) for entry in entries) if check_hashes else 0,
        **of_kind(directory, entries, bytes_dtype, examples),
    )


def _look_at_tokens(
    directory: str, entries: Sequence[Mapping[str, Any]], bytes_dtype: str, examples: int
) -> dict[str, Any]:
    of_shards: list[np.ndarray] = []
    samples: list[dict[str, Any]] = []
    with open_directory(directory, read_index(directory, bytes_dtype)) as (index, lent):
        store = _core.ShardStore([stream_files(directory, index, follow_links=True)], 0)
        for shard in map(int, np.flatnonzero(index.samples)):
            with lent(shard):
                of_shards.append(store.lengths(0, shard))
                first = range(min(int(index.samples[shard]), examples - len(samples)))
                samples += [store.read_sample(0, shard, sample) for sample in first]
    lengths = np.concatenate(of_shards)
    return {
        "tokens": int(lengths.sum(dtype=np.uint64)),
        "loss_tokens": None if index.loss_tokens is None else int(index.loss_tokens.sum()),
        "kind": index.schemas[0].kind,
        "tokenizer": index.tokenizer,
        "lengths": (int(lengths.min()), float(np.median(lengths)), float(lengths.mean()), int(lengths.max())),
        "histogram": _histogram(lengths),
        "examples": samples,
    }


def _look_at_rows(
    directory: str, entries: Sequence[Mapping[str, Any]], bytes_dtype: str, examples: int
) -> dict[str, Any]:
    for entry in entries:
        files = [data["basename"] for data in (entry["raw_data"], entry.get("zip_data")) if data]
        if not any(os.path.isfile(os.path.join(directory, name)) for name in files):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.path.join(directory, files[-1]))
    return {
        **dict.fromkeys(("tokens", "loss_tokens", "kind", "lengths")),
        "tokenizer": read_tokenizer(index_path(directory)),
        "histogram": [],
        "examples": list(itertools.islice(_rows(directory, len(entries)), examples)),
    }


def _rows(directory: str, num_shards: int) -> Iterator[dict[str, Any]]:
    """
    Raises:
        CorruptShardError: A shard or a sample breaks its format.
    """
    from stoker.preparation.sources import BadRowError, find_shard, read_rows  # which data of tokens does not need

    try:
        for shard in range(num_shards):
            for row in read_rows(find_shard(directory, shard)):
                if isinstance(row, BadRowError):
                    raise row
                yield row.values
    except BadRowError as error:
        raise CorruptShardError(str(error), directory) from None


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
