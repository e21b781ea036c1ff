"""What sources are made of: formats, the pieces into which they cut their files, and the rows of those."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from stoker.preparation.sources.files import line_number, size_of, suffix_of

TOKEN_DTYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")


class BadRowError(ValueError):
    """A row that is not what its file's format says. The message begins with where it is."""


@dataclass(frozen=True)
class Reading:
    """What must be known to read sources, besides their files.

    Attributes:
        eos_token_id: Of the tokenizer: behind it a document of a flat token file ends. None: it has none.
        vocab_size: Of the tokenizer.
        token_dtype: Of `.bin` files without a header. None: uint16, where the vocabulary fits.
        subset: Of data sets of Hugging Face: a configuration. None: the only one.
        split: Of data sets of Hugging Face. None: "train".
    """

    eos_token_id: int | None = None
    vocab_size: int = 1 << 16
    token_dtype: str | None = None
    subset: str | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        if self.token_dtype is not None and self.token_dtype not in TOKEN_DTYPES:
            raise ValueError(f"token_dtype is {self.token_dtype!r}: it must be one of {', '.join(TOKEN_DTYPES)}.")


@dataclass(frozen=True)
class Piece:
    """A part of a source that is read on its own.

    Attributes:
        path: The file; of MDS shards, their index.json; of a data set of Hugging Face, its folder, or "hf:" and its
            name.
        format: The name of its format.
        begin, end: What is read of the file, in the unit of its format: bytes, rows, shards, tokens. What goes over
            from one piece to the next, a line or a document, belongs to the one in which it begins.
        size_bytes: How much there is to read, for the progress.
        reading: How the file is read.
        fault: What is wrong with the file: it is left out as one bad row. None: nothing that is known.
    """

    path: str
    format: str
    begin: int
    end: int
    size_bytes: int
    reading: Reading = Reading()
    fault: str | None = None


@dataclass(frozen=True)
class Row:
    """A row and its place.

    Attributes:
        values: Columns by name. Of text, `text`; of token files, `tokens`, an array.
        path: Its file.
        unit: What `number` counts: "line", "object", "row", "sample" or "token"; "byte": where its line begins; "": it
            is the whole file.
        number: Its place.
        is_begin, is_end: Whether it is the beginning, and the end, of its document: a long one is cut into rows.
    """

    values: dict[str, Any]
    path: str
    unit: str
    number: int
    is_begin: bool = True
    is_end: bool = True

    @property
    def where(self) -> str:
        """In words. The number of a line is counted when somebody wants to see it."""
        if self.unit == "byte":
            return f"{self.path}, line {line_number(self.path, self.number)}"
        return f"{self.path}, {self.unit} {self.number}" if self.unit else self.path


Part = tuple[Piece, ...]  # pieces, one behind the other, that one process does


class Format:
    """Files that are read alike: how they are told, measured, cut into pieces and read. It has no state.

    Attributes:
        name: As `Piece.format` has it.
        suffixes: That names of its files end in.
        is_compressible: Whether ".zst" or ".gz" may stand behind those.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()
    is_compressible: ClassVar[bool] = True

    def find(self, source: str, *, is_named: bool) -> str | None:
        """The path that pieces of a file, or folder, of this format have; None where it is of another.

        Args:
            source: A path.
            is_named: Whether the user has named it; else it was found in a folder.
        """
        path = Path(source)
        suffix = suffix_of(path) if self.is_compressible else path.suffix.lower()
        return str(path) if suffix in self.suffixes and path.is_file() else None

    def measure(self, path: str, reading: Reading) -> int:
        """Bytes that there are to read, decompressed.

        Raises:
            BrokenFileError: The file is cut or damaged.
            ValueError: It is not what its name says.
        """
        return size_of(path)

    def cut(self, path: str, size_bytes: int, piece_bytes: int, reading: Reading) -> list[Piece]:
        """Pieces of about so many bytes. They depend on the file, and how it is read, alone.

        Args:
            path: The file.
            size_bytes: As measured.
            piece_bytes: How large a piece should be.
            reading: For the pieces.
        """
        return [Piece(path, self.name, 0, size_bytes, size_bytes, reading)]

    def read(self, piece: Piece) -> Iterator[Row | BadRowError]:
        """The rows of a piece, in order. One that is broken is given as an error, and reading goes on behind it where
        the format allows.

        Raises:
            OSError: The file can't be read.
            BadRowError: What is broken is not one row.
        """
        raise NotImplementedError

    def identify(self, piece: Piece) -> Sequence[Any]:
        """What tells the file of a piece from one of other content, JSON-able."""
        return identity_of_file(piece.path)


def identity_of_file(path: str | Path) -> list[Any]:
    """Name, size and time of change."""
    stat = os.stat(path)
    return [Path(path).name, stat.st_size, stat.st_mtime_ns]


def cut_evenly(path: str, format: str, end: int, length: int, reading: Reading, unit_bytes: int = 1) -> list[Piece]:
    """Pieces of a file, each of `length` of its units but the last one.

    Args:
        path, format, reading: Of the pieces.
        end: Of the file, in its units.
        length: Of a piece.
        unit_bytes: Bytes of a unit.
    """
    bounds = [*range(0, end, length), end]
    return [Piece(path, format, b, e, (e - b) * unit_bytes, reading) for b, e in itertools.pairwise(bounds)]
