"""MDS shards, as MosaicML Streaming and stoker write them: sample count, offsets, then samples."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stoker.compressions import decompress
from stoker.encodings.samples import SampleLayout, read_offsets
from stoker.index import INDEX_FILE, Entry, index_path, read_entries
from stoker.preparation.sources.pieces import BadRowError, Format, Piece, Reading, Row
from stoker.schema import TOKEN_COLUMNS

_OF_TOKENS = (*TOKEN_COLUMNS, "labels")  # whose `bytes` are integers
_READ = ("bytes", "str", "json", "int", "ndarray")  # encodings


class Mds(Format):
    """A data set is its index.json; a piece is a shard. Columns of text, JSON, whole numbers and arrays are read; bytes
    stay bytes, but for those of token ids; others are left out."""

    name = "mds"

    def find(self, source: str, *, is_named: bool) -> str | None:
        path = Path(source)
        index = path if path.name == INDEX_FILE else path / INDEX_FILE
        return str(index) if index.is_file() else None

    def measure(self, path: str, reading: Reading) -> int:
        return sum(entry.raw_data.bytes for entry in _entries(path))

    def cut(self, path: str, size_bytes: int, piece_bytes: int, reading: Reading) -> list[Piece]:
        sizes = [entry.raw_data.bytes for entry in _entries(path)]
        return [Piece(path, self.name, shard, shard + 1, size, reading) for shard, size in enumerate(sizes)]

    def read(self, piece: Piece) -> Iterator[Row | BadRowError]:
        for entry in _entries(piece.path)[piece.begin : piece.end]:
            path, content = _content(Path(piece.path).parent, entry)
            offsets = None
            if len(content) == entry.raw_data.bytes:
                offsets = read_offsets(content, entry.samples, len(content))
            if offsets is None:
                raise BadRowError(f"{path} is not the shard that its index.json describes. Fetch or write it again.")
            layout, ids = _layout(entry), _columns_of_ids(entry)
            for number in range(entry.samples):
                try:
                    values = layout.decode(content[offsets[number] : offsets[number + 1]])
                    for name in ids:
                        values[name] = _ids(values[name], piece.reading.token_dtype or "int64")
                except (ValueError, RecursionError) as error:  # JSON may be nested too deeply
                    yield BadRowError(f"{path}, sample {number}: {error}")
                else:
                    yield Row(values, str(path), "sample", number)


def find_shard(directory: str | os.PathLike[str], shard: int, reading: Reading | None = None) -> Piece:
    """The piece of one shard of a data set of MDS shards; `shard` counts those of its index.json from zero."""
    path = index_path(os.fspath(directory))
    return Piece(path, Mds.name, shard, shard + 1, _entries(path)[shard].raw_data.bytes, reading or Reading())


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


def _layout(entry: Entry) -> SampleLayout:
    """How to read the columns that are read."""
    columns = entry.column_names, entry.column_encodings, entry.column_sizes
    left_out = [name for name, encoding, _ in zip(*columns, strict=True) if encoding.partition(":")[0] not in _READ]
    return SampleLayout(*columns, leaves_out=left_out)


def _columns_of_ids(entry: Entry) -> list[str]:
    """The columns whose bytes are ids."""
    pairs = zip(entry.column_names, entry.column_encodings, strict=True)
    return [name for name, encoding in pairs if encoding == "bytes" and name in _OF_TOKENS]


def _ids(data: bytes, dtype: str) -> np.ndarray:
    if len(data) % np.dtype(dtype).itemsize:
        raise ValueError(f"{len(data)} bytes are no whole number of {dtype} ids: say by token_dtype what they are.")
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))
