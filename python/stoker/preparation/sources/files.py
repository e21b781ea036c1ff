"""Files of bytes, plain or compressed: opened, measured and read from any byte."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import BinaryIO

from stoker.compressions import decompress_zstd, zstd_decompressor

COMPRESSIONS = (".zst", ".zstd", ".gz")  # that may stand behind a file's name
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # that may stand at the beginning of a file of UTF-8
_CHUNK = 1 << 20


class BrokenFileError(ValueError):
    """A file that is cut or damaged, so that none of it is taken."""


def is_compressed(path: str | Path) -> bool:
    """Whether a file is compressed as a whole, by its name."""
    return Path(path).suffix.lower() in COMPRESSIONS


def suffix_of(path: str | Path) -> str:
    """What a file's name ends in, in lower case; where that is a compression's, what stands before."""
    before, last = ["", "", *(suffix.lower() for suffix in Path(path).suffixes)][-2:]
    return before if last in COMPRESSIONS else last


def open_file(path: str | Path) -> BinaryIO:
    """A file, decompressed."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    if suffix in (".zst", ".zstd"):
        reader = zstd_decompressor().stream_reader(path.open("rb"), read_across_frames=True, closefd=True)
        return io.BufferedReader(reader, _CHUNK)
    return path.open("rb")


def size_of(path: str | Path) -> int:
    """Bytes of a file, decompressed.

    Raises:
        BrokenFileError: A compressed file is cut or damaged: reading it later would end early, without a word.
    """
    path = Path(path)
    if not is_compressed(path):
        return path.stat().st_size
    try:
        return _size_of_gzip(path) if path.suffix.lower() == ".gz" else _size_of_zstd(path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BrokenFileError(f"{path} is cut or damaged: {error}. Fetch or write it again.") from None


def _size_of_gzip(path: Path) -> int:
    with gzip.open(path) as file:
        return sum(map(len, iter(lambda: file.read(_CHUNK), b"")))


def _size_of_zstd(path: Path) -> int:
    with path.open("rb") as file:
        return sum(map(len, decompress_zstd(iter(lambda: file.read(_CHUNK), b""))))


def skip(file: BinaryIO, size_bytes: int) -> None:
    """Goes on behind so many bytes, from the beginning of a file that `open_file` opened."""
    if isinstance(file, io.BufferedReader) and isinstance(file.raw, io.FileIO):
        file.seek(size_bytes)
        return
    while size_bytes > 0 and (chunk := file.read(min(size_bytes, _CHUNK))):
        size_bytes -= len(chunk)


def line_number(path: str | Path, begin: int) -> int:
    """Of the line that begins at a byte of the decompressed file; the first is 1."""
    number = 1
    with open_file(path) as file:
        while begin > 0 and (chunk := file.read(min(begin, _CHUNK))):
            number += chunk.count(b"\n")
            begin -= len(chunk)
    return number
