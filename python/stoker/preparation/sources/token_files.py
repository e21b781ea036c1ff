"""Flat files of token ids: `.npy`, and `.bin` as nanoGPT, llm.c and modded-nanogpt write them.

A document ends behind each end-of-sequence id of the tokenizer, and belongs to the piece in which it begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stoker.preparation.sources.pieces import Format, Piece, Reading, Row, cut_evenly

MOST_TOKENS = 1 << 22  # of a row: a longer document is cut into several

# llm.c, dev/data/data_common.py: 256 int32, of which the first are magic, version and number of tokens.
_HEADER_BYTES = 256 * 4
_HEADERS = {20240520: (1, "uint16"), 20240801: (7, "uint32")}  # version and dtype by magic


def rows_of_document(
    tokens: np.ndarray, begin: int, end: int, path: str, *, is_begin: bool = True, is_end: bool = True
) -> Iterator[Row]:
    """A document as one row, or several if it is long.

    Args:
        tokens: (num_tokens) The file's.
        begin, end: The document's.
        path: The file.
        is_begin, is_end: Whether it begins and ends there.
    """
    for at in range(begin, max(end, begin + 1), MOST_TOKENS):
        stop = min(at + MOST_TOKENS, end)
        yield Row({"tokens": tokens[at:stop]}, path, "token", at, is_begin and at == begin, is_end and stop == end)


class _Flat(Format):
    """A piece is a range of tokens: the documents that begin there."""

    is_compressible = False

    def read(self, piece: Piece) -> Iterator[Row]:
        tokens, eos = self.load(piece.path, piece.reading), piece.reading.eos_token_id
        if eos is None:  # the file is one document
            ends = {"is_begin": piece.begin == 0, "is_end": piece.end == len(tokens)}
            yield from rows_of_document(tokens, piece.begin, piece.end, piece.path, **ends)
            return
        begin = 0 if piece.begin == 0 else next(_ends(tokens, piece.begin - 1, eos))
        if begin < piece.end:
            for end in _ends(tokens, begin, eos):
                yield from rows_of_document(tokens, begin, end, piece.path)
                begin = end
                if begin >= piece.end:
                    return

    def measure(self, path: str, reading: Reading) -> int:
        return self.load(path, reading).nbytes

    def cut(self, path: str, size_bytes: int, piece_bytes: int, reading: Reading) -> list[Piece]:
        tokens = self.load(path, reading)
        length = max(piece_bytes // tokens.itemsize, 1)
        return cut_evenly(path, self.name, len(tokens), length, reading, tokens.itemsize)

    def load(self, path: str, reading: Reading) -> np.ndarray:
        """The tokens of a file, mapped into memory: (num_tokens).

        Raises:
            ValueError: The file is not what its name says.
        """
        raise NotImplementedError


def _ends(tokens: np.ndarray, begin: int, eos_token_id: int) -> Iterator[int]:
    """Where documents end, from `begin` on; the last one at the end of the file."""
    for at in range(begin, len(tokens), MOST_TOKENS):
        yield from (np.flatnonzero(tokens[at : at + MOST_TOKENS] == eos_token_id) + at + 1).tolist()
    if begin < len(tokens) and tokens[-1] != eos_token_id:
        yield len(tokens)


class Npy(_Flat):
    """One-dimensional; or two-dimensional, where each row is a document, and pieces are ranges of those."""

    name = "npy"
    suffixes = (".npy",)

    def cut(self, path: str, size_bytes: int, piece_bytes: int, reading: Reading) -> list[Piece]:
        array = self.load(path, reading)
        if array.ndim == 1:
            return super().cut(path, size_bytes, piece_bytes, reading)
        row_bytes = max(array.shape[1] * array.itemsize, 1)
        return cut_evenly(path, self.name, len(array), max(piece_bytes // row_bytes, 1), reading, row_bytes)

    def read(self, piece: Piece) -> Iterator[Row]:
        array = self.load(piece.path, piece.reading)
        if array.ndim == 1:
            yield from super().read(piece)
            return
        for number in range(piece.begin, piece.end):
            for row in rows_of_document(array[number], 0, array.shape[1], piece.path):
                yield Row(row.values, piece.path, "row", number, row.is_begin, row.is_end)

    def load(self, path: str, reading: Reading) -> np.ndarray:
        try:
            array: np.ndarray = np.lib.format.open_memmap(path, mode="r")
        except (EOFError, ValueError) as error:
            raise ValueError(f"{path} is no array of NumPy, or is cut: {error}. Write it again.") from None
        if array.dtype.kind not in "iu" or array.ndim not in (1, 2):
            raise ValueError(
                f"{path} holds an array of {array.dtype} with {array.ndim} dimensions: token ids are integers, in one "
                "dimension, or two with a document a row."
            )
        size_bytes = Path(path).stat().st_size
        if size_bytes != array.offset + array.nbytes:  # type: ignore[attr-defined]
            raise ValueError(
                f"{path} has {size_bytes} bytes, which are more than its array: write each to its own file."
            )
        return array


class Bin(_Flat):
    """With the header of llm.c; or without any, where the user names the file, since anything may be in it."""

    name = "bin"
    suffixes = (".bin",)

    def find(self, source: str, *, is_named: bool) -> str | None:
        found = super().find(source, is_named=is_named)
        return found if found and (is_named or _read_header(source) is not None) else None

    def load(self, path: str, reading: Reading) -> np.ndarray:
        size_bytes = Path(path).stat().st_size
        offset = 0
        if (header := _read_header(path)) is not None:
            version, dtype = _HEADERS[int(header[0])]
            offset = _HEADER_BYTES
            want_bytes = offset + int(header[2]) * np.dtype(dtype).itemsize
            if header[1] != version or size_bytes != want_bytes:
                raise ValueError(
                    f"{path} has the header of llm.c, with version {header[1]} and {header[2]} tokens, and "
                    f"{size_bytes} bytes: it should be version {version}, and {want_bytes} bytes long. Fetch or write "
                    "it again."
                )
        elif reading.token_dtype is not None:
            dtype = reading.token_dtype
        elif reading.vocab_size <= 1 << 16:
            dtype = "uint16"
        else:
            raise ValueError(
                f"{path} has no header, and the vocabulary of {reading.vocab_size} does not fit into uint16: say by "
                "token_dtype what it holds."
            )
        dtype_of_file = np.dtype(dtype).newbyteorder("<")
        if (size_bytes - offset) % dtype_of_file.itemsize:
            raise ValueError(
                f"{path} has {size_bytes} bytes, which is no whole number of {dtype} tokens: it is cut, or token_dtype "
                "is another."
            )
        return map_tokens(path, dtype_of_file, offset)


def _read_header(path: str) -> np.ndarray | None:
    """That of llm.c: (256) int32; None where there is none."""
    header = np.fromfile(path, "<i4", _HEADER_BYTES // 4)
    return header if len(header) == _HEADER_BYTES // 4 and int(header[0]) in _HEADERS else None


def map_tokens(path: str | Path, dtype: Any, offset: int = 0) -> np.ndarray:
    """The tokens of a file from a byte on, mapped into memory: (num_tokens)."""
    if Path(path).stat().st_size == offset:  # which can't be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r", offset=offset)
