"""Rows of raw data: files and folders of any format, cut into pieces that are read independently. A new format is a
class in a file of its own, and an entry in FORMATS."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from stoker.preparation.sources.csv_files import Csv
from stoker.preparation.sources.files import COMPRESSIONS, BrokenFileError, is_compressed, suffix_of
from stoker.preparation.sources.huggingface import HuggingFace
from stoker.preparation.sources.json_files import Json, JsonLines
from stoker.preparation.sources.mds_shards import Mds, find_shard
from stoker.preparation.sources.megatron import Megatron
from stoker.preparation.sources.parquet_files import Parquet
from stoker.preparation.sources.pieces import BadRowError, Format, Part, Piece, Reading, Row
from stoker.preparation.sources.text_files import Text
from stoker.preparation.sources.token_files import Bin, Npy

__all__ = ["BadRowError", "Part", "Piece", "Reading", "Row", "find_parts", "find_shard", "identify", "read_rows"]

logger = logging.getLogger("stoker")

# In the order in which they are asked: what is told by more than the end of a name first.
FORMATS: tuple[Format, ...] = (
    Mds(),
    HuggingFace(),
    Megatron(),
    JsonLines(),
    Json(),
    Csv(),
    Parquet(),
    Text(),
    Npy(),
    Bin(),
)
_BY_NAME = {form.name: form for form in FORMATS}
_SUFFIXES = ", ".join(suffix for form in FORMATS for suffix in form.suffixes)
_LEAST_PART, _MOST_PART = 4 << 20, 32 << 20  # bytes of a part; a shard or more comes out of each
_MOST_COMPRESSED = 16  # pieces of a compressed file: for each of them all that is before is decompressed
_ABOUT_DATA = ("readme.md", "dataset_info.json", "dataset_infos.json")  # what stands beside data and is none


def find_parts(
    sources: Sequence[str | os.PathLike[str]], reading: Reading | None = None, *, skips_broken: bool = False
) -> list[Part]:
    """The parts of files and folders, in the order given; files of a folder, and of those in it, by their names. They
    depend on the files alone, so that what comes out of them does: a sixteenth of the whole, within limits.

    Args:
        sources: Files, folders, and names of data sets behind "hf:".
        reading: How they are read. Default: as `Reading` says.
        skips_broken: A file that is cut or damaged becomes one bad row.

    Raises:
        FileNotFoundError: There is no such file, folder or data set, or nothing in it that can be read.
        BrokenFileError: A file is cut or damaged, and `skips_broken` is not set.
        ValueError: A file's name does not tell a format that is known, or it is not what its name tells.
        ModuleNotFoundError: A package is missing; the message says which.
    """
    reading = reading or Reading()
    found = _without_repeated_pairs(file for source in sources for file in _find(os.fspath(source)))
    files: list[tuple[Format, str, int]] = []
    faults: dict[str, str] = {}
    for form, path in found:
        try:
            size = form.measure(path, reading)
        except BrokenFileError as error:
            if not skips_broken:
                raise
            size, faults[path] = 0, str(error)
        files.append((form, path, size))
    part_bytes = min(max(sum(size for *_, size in files) // 16, _LEAST_PART), _MOST_PART)
    pieces: list[Piece] = []
    for form, path, size in files:
        if path in faults:
            pieces.append(Piece(path, form.name, 0, 0, 0, reading, faults[path]))
            continue
        least = -(-size // _MOST_COMPRESSED) if is_compressed(path) else 0
        pieces += form.cut(path, size, max(part_bytes, least), reading)
    parts: list[Part] = []
    waiting: list[Piece] = []
    waiting_bytes = 0
    for piece in pieces:
        waiting.append(piece)
        waiting_bytes += piece.size_bytes
        if waiting_bytes >= part_bytes:
            parts.append(tuple(waiting))
            waiting, waiting_bytes = [], 0
    return [*parts, tuple(waiting)] if waiting else parts


def _find(source: str) -> Iterator[tuple[Format, str]]:
    """The files that a source means, and their formats."""
    if (found := _recognise(source, is_named=True)) is not None:
        yield found
    elif os.path.isdir(source):
        others: Counter[str] = Counter()
        found_in_it = list(_find_in(Path(source), set(), others))
        if others:
            told = ", ".join(f"{number} {name}" for name, number in sorted(others.items()))
            logger.warning("%s: %d files are not read: %s.", source, others.total(), told)
        if not found_in_it:
            raise FileNotFoundError(
                f"{source} holds no file that can be read: {_SUFFIXES}, also compressed; .bin without a header must be "
                "named itself."
            )
        yield from found_in_it
    elif os.path.exists(source):
        raise ValueError(
            f"{source} is of no known format: its name must end in {_SUFFIXES}, and {', '.join(COMPRESSIONS)} may "
            "stand behind that of text, JSON and CSV."
        )
    else:
        raise FileNotFoundError(
            f"there is no file or folder {source}. A data set of the Hugging Face hub is named hf:NAME."
        )


def _find_in(folder: Path, entered: set[str], others: Counter[str]) -> Iterator[tuple[Format, str]]:
    """The files of a folder, and of those in it, by their names. What is hidden is left out.

    Args:
        folder: The folder.
        entered: Folders that have been read; no other way leads into them again.
        others: Counts the files that are no data, by what their names end in.
    """
    entered.add(os.path.realpath(folder))
    for path in sorted(folder.iterdir()):
        is_folder = path.is_dir()
        if path.name.startswith(".") or (is_folder and os.path.realpath(path) in entered):
            continue
        if path.name.lower() in _ABOUT_DATA:
            others[path.name] += 1
        elif (found := _recognise(str(path), is_named=False)) is not None:
            if is_folder:
                entered.add(os.path.realpath(path))
            yield found
        elif is_folder:
            yield from _find_in(path, entered, others)
        elif path.is_file():
            others[suffix_of(path) or "without a suffix"] += 1


def _recognise(source: str, *, is_named: bool) -> tuple[Format, str] | None:
    return next(((f, found) for f in FORMATS if (found := f.find(source, is_named=is_named)) is not None), None)


def _without_repeated_pairs(files: Iterable[tuple[Format, str]]) -> Iterator[tuple[Format, str]]:
    """Of two files that are one data set, each of which means both, the second one is left out."""
    pairs = set()
    for form, path in files:
        if isinstance(form, Megatron):
            if path in pairs:
                continue
            pairs.add(path)
        yield form, path


def read_rows(piece: Piece) -> Iterator[Row | BadRowError]:
    """The rows of a piece, in the order of the file. One that is broken is given as an error, and reading goes on
    behind it where the format allows.

    Raises:
        OSError: The file can't be read.
        BadRowError: What is broken is not one row.
    """
    if piece.fault is not None:
        raise BadRowError(piece.fault)
    try:
        yield from _BY_NAME[piece.format].read(piece)
    except UnicodeDecodeError as error:
        raise BadRowError(f"{piece.path} contains chars that cannot be utf-8 decoded: {error}") from None


def identify(piece: Piece) -> Sequence[Any]:
    """What tells the file of a piece from one of other content, JSON-able."""
    return _BY_NAME[piece.format].identify(piece)
