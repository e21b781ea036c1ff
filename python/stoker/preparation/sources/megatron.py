"""Pairs of `.bin` and `.idx`, as Megatron-LM writes them (megatron/core/datasets/indexed_dataset.py)."""

from __future__ import annotations

import bisect
import functools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stoker.preparation.sources.pieces import Format, Piece, Reading, Row, identity_of_file
from stoker.preparation.sources.token_files import map_tokens, rows_of_document

_MAGIC = b"MMIDIDX\x00\x00"
_HEAD = struct.Struct("<9sQBQQ")  # magic, version, code of the dtype, number of sequences, of document indices
_DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}  # 6 and 7 are no integers
_CHECKED = 1 << 20  # sequences at a time


@dataclass(frozen=True)
class _Index:
    """An .idx, mapped into memory.

    Attributes:
        dtype: Of the tokens.
        sizes: (num_sequences) Tokens of each.
        pointers: (num_sequences) Bytes of the .bin at which each begins.
        documents: (num_documents + 1) Sequences at which documents begin, and the number of all.
    """

    dtype: np.dtype[Any]
    sizes: np.ndarray
    pointers: np.ndarray
    documents: np.ndarray

    def begin_of(self, document: int, num_tokens: int) -> int:
        """The token at which a document begins; `num_tokens`, the end of all, for the number of documents."""
        sequence = int(self.documents[document])
        return int(self.pointers[sequence]) // self.dtype.itemsize if sequence < len(self.pointers) else num_tokens


class Megatron(Format):
    """A data set is its .bin; a piece is a range of documents, each of which is its sequences in their order."""

    name = "megatron"
    suffixes = (".idx",)
    is_compressible = False

    def find(self, source: str, *, is_named: bool) -> str | None:
        path = Path(source)
        if path.suffix == ".bin" and path.with_suffix(".idx").is_file():
            return source
        if path.suffix == ".idx" and path.is_file():
            with path.open("rb") as file:
                return str(path.with_suffix(".bin")) if file.read(len(_MAGIC)) == _MAGIC else None
        return None

    def measure(self, path: str, reading: Reading) -> int:
        size_bytes = Path(path).stat().st_size
        _check(path, _read_index(path), size_bytes)
        return size_bytes

    def cut(self, path: str, size_bytes: int, piece_bytes: int, reading: Reading) -> list[Piece]:
        index = _read_index(path)
        itemsize, num_documents = index.dtype.itemsize, len(index.documents) - 1
        begins = functools.partial(index.begin_of, num_tokens=size_bytes // itemsize)
        pieces = []
        begin = 0
        while begin < num_documents:
            enough = begins(begin) + max(piece_bytes // itemsize, 1)
            end = bisect.bisect_left(range(num_documents), enough, begin + 1, num_documents, key=begins)
            size = (begins(end) - begins(begin)) * itemsize
            pieces.append(Piece(path, self.name, begin, end, size, reading))
            begin = end
        return pieces

    def read(self, piece: Piece) -> Iterator[Row]:
        index = _read_index(piece.path)
        tokens = map_tokens(piece.path, index.dtype)
        for document in range(piece.begin, piece.end):
            begin, end = (index.begin_of(number, len(tokens)) for number in (document, document + 1))
            yield from rows_of_document(tokens, begin, end, piece.path)

    def identify(self, piece: Piece) -> Sequence[Any]:
        return [identity_of_file(path) for path in (piece.path, Path(piece.path).with_suffix(".idx"))]


def _read_index(path: str) -> _Index:
    """The .idx of a .bin.

    Raises:
        ValueError: It is none.
    """
    name = Path(path).with_suffix(".idx")
    size_bytes = name.stat().st_size
    with name.open("rb") as file:
        head = file.read(_HEAD.size)
    magic, version, code, num_sequences, num_documents = _HEAD.unpack(head.ljust(_HEAD.size, b"\0"))
    if magic != _MAGIC or version != 1 or code not in _DTYPES:
        raise ValueError(
            f"{name} is no index of Megatron's, of version 1 and a type of integers: it has version {version} and type "
            f"{code}."
        )
    if not 12 * num_sequences + 8 * num_documents <= size_bytes - _HEAD.size < 1 << 62:
        raise ValueError(f"{name} is cut: it has {size_bytes} bytes for {num_sequences} sequences. Write it again.")
    content = np.memmap(name, np.uint8, "r")
    at = _HEAD.size
    arrays = []
    for dtype, number in (("<i4", num_sequences), ("<i8", num_sequences), ("<i8", num_documents)):
        arrays.append(np.ndarray(number, dtype, content, at))
        at += number * np.dtype(dtype).itemsize
    return _Index(np.dtype(_DTYPES[code]).newbyteorder("<"), *arrays)


def _check(path: str, index: _Index, size_bytes: int) -> None:
    """
    Raises:
        ValueError: Sequences do not lie one behind the other and fill the .bin, or documents are not made of them.
    """
    end = 0
    num_sequences = len(index.sizes)
    for at in range(0, num_sequences, _CHECKED):
        sizes = index.sizes[at : at + _CHECKED].astype(np.int64) * index.dtype.itemsize
        ends = end + np.cumsum(sizes)
        if np.any(sizes < 0) or np.any(index.pointers[at : at + _CHECKED] != ends - sizes):
            raise ValueError(f"{path}: its .idx has sequences that do not lie one behind the other: write both again.")
        end = int(ends[-1])
    if end != size_bytes:
        raise ValueError(f"{path} has {size_bytes} bytes, but its .idx says {end}: they do not belong together.")
    documents = index.documents
    is_right = len(documents) > 0 and documents[0] == 0 and documents[-1] == num_sequences
    for at in range(0, len(documents), _CHECKED):
        is_right = is_right and bool(np.all(np.diff(documents[at : at + _CHECKED + 1]) >= 0))
    if not is_right:
        raise ValueError(f"{path}: the documents of its .idx are not made of its {num_sequences} sequences.")
