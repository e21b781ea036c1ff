"""MDS shards, as MosaicML Streaming and stoker write them: sample count, offsets, then samples."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stoker.compressions import decompress
from stoker.encodings import decode_array
from stoker.index import Entry, read_entries
from stoker.preparation.sources.pieces import BadRowError, Format, Piece, Reading, Row
from stoker.schema import TOKEN_COLUMNS

_INDEX = "index.json"
_OF_TOKENS = (*TOKEN_COLUMNS, "labels")  # whose `bytes` are integers


class Mds(Format):
    """A data set is its index.json; a piece is a shard. Columns of text, JSON, whole numbers and arrays are read; bytes
    stay bytes, but for those of token ids; others are left out."""

    name = "mds"

    def find(self, source: str, *, is_named: bool) -> str | None:
        path = Path(source)
        index = path if path.name == _INDEX else path / _INDEX
        return str(index) if index.is_file() else None

    def measure(self, path: str, reading: Reading) -> int:
        return sum(entry.raw_data.bytes for entry in _entries(path))

    def cut(self, path: str, size_bytes: int, piece_bytes: int, reading: Reading) -> list[Piece]:
        sizes = [entry.raw_data.bytes for entry in _entries(path)]
        return [Piece(path, self.name, shard, shard + 1, size, reading) for shard, size in enumerate(sizes)]

    def read(self, piece: Piece) -> Iterator[Row | BadRowError]:
        for entry in _entries(piece.path)[piece.begin : piece.end]:
            path, content = _content(Path(piece.path).parent, entry)
            ends = _ends(content, entry)
            if ends is None:
                raise BadRowError(f"{path} is not the shard that its index.json describes. Fetch or write it again.")
            for number in range(entry.samples):
                try:
                    values = _values(content[ends[number] : ends[number + 1]], entry, piece.reading)
                except ValueError as error:
                    yield BadRowError(f"{path}, sample {number}: {error}")
                else:
                    yield Row(values, str(path), "sample", number)


def find_shard(directory: str | os.PathLike[str], shard: int) -> Piece:
    """The piece of one shard of a data set of MDS shards; `shard` counts those of its index.json from zero."""
    path = str(Path(directory) / _INDEX)
    return Piece(path, Mds.name, shard, shard + 1, _entries(path)[shard].raw_data.bytes)


def _entries(path: str) -> list[Entry]:
    """The shards that an index.json lists.

    Raises:
        ValueError: It is no index of MDS shards.
    """
    return _entries_of(path, os.stat(path).st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _entries_of(path: str, mtime_ns: int) -> list[Entry]:
    """Read once for all shards: an index may have 10^5 of them."""
    try:
        return read_entries(path)
    except ValueError as error:
        raise ValueError(f"{path} is not the index of a data set of MDS shards: {error}") from None


def _content(directory: Path, entry: Entry) -> tuple[Path, bytes]:
    """A shard's file, and what is in it, decompressed."""
    path = directory / entry.raw_data.basename
    if entry.zip_data is None or path.is_file():
        return path, path.read_bytes()
    path = directory / entry.zip_data.basename
    compressed = path.read_bytes()
    if len(compressed) != entry.zip_data.bytes:
        raise BadRowError(
            f"{path} has {len(compressed)} bytes, not {entry.zip_data.bytes} as its index.json says. Fetch or write it "
            "again."
        )
    try:
        return path, decompress(compressed, str(entry.compression))
    except ValueError as error:
        raise BadRowError(f"{path}: {error}. Fetch or write it again.") from None


def _ends(content: bytes, entry: Entry) -> np.ndarray | None:
    """Where samples begin in a shard, and the end of the last one: (samples + 1) int64; None where it is not the one
    that the index describes."""
    if len(content) != entry.raw_data.bytes or len(content) < 8 + 4 * entry.samples:
        return None
    if int.from_bytes(content[:4], "little") != entry.samples:
        return None
    ends = np.frombuffer(content, "<u4", entry.samples + 1, 4).astype(np.int64)
    return ends if np.all(np.diff(ends) >= 0) and ends[-1] == len(content) else None


def _values(sample: bytes, entry: Entry, reading: Reading) -> dict[str, Any]:
    """The columns of a sample: size words of those of varying size, then all of them (MDS format, "MDS shard file")."""
    num_words = sum(not size for size in entry.column_sizes)  # the format treats 0 as varying
    if len(sample) < 4 * num_words:
        raise ValueError("it is cut.")
    words = iter(np.frombuffer(sample, "<u4", num_words).tolist())
    at = 4 * num_words
    values: dict[str, Any] = {}
    for name, encoding, size in zip(entry.column_names, entry.column_encodings, entry.column_sizes, strict=True):
        end = at + (size or next(words))
        data, at = sample[at:end], end
        if end > len(sample):
            raise ValueError(f"column {name} is cut.")
        if encoding == "bytes" and name in _OF_TOKENS:
            values[name] = _ids(data, reading.token_dtype or "int64")
        elif encoding == "bytes":
            values[name] = data
        elif encoding == "str":
            values[name] = data.decode("utf-8")
        elif encoding == "json":
            values[name] = json.loads(data)
        elif encoding == "int":
            values[name] = int.from_bytes(data, "little", signed=True)
        elif encoding.partition(":")[0] == "ndarray":
            values[name] = decode_array(encoding, data)
    if at != len(sample):
        raise ValueError(f"it has {len(sample) - at} bytes behind its columns.")
    return values


def _ids(data: bytes, dtype: str) -> np.ndarray:
    if len(data) % np.dtype(dtype).itemsize:
        raise ValueError(f"{len(data)} bytes are no whole number of {dtype} ids: say by token_dtype what they are.")
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))
