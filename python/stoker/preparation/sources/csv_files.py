"""CSV and TSV: columns by the first line."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator

from stoker.preparation.sources.files import open_file, suffix_of
from stoker.preparation.sources.pieces import BadRowError, Format, Piece, Row


class Csv(Format):
    """One piece: a line break may stand within quotes."""

    name = "csv"
    suffixes = (".csv", ".tsv")

    def read(self, piece: Piece) -> Iterator[Row | BadRowError]:
        path = piece.path
        csv.field_size_limit(1 << 31)
        with io.TextIOWrapper(open_file(path), encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t" if suffix_of(path) == ".tsv" else ",", strict=True)
            names = _read_names(path, reader)
            while True:
                try:
                    values = next(reader, None)
                except csv.Error as error:
                    yield BadRowError(f"{path}, line {reader.line_num}: {error}")
                    continue
                if values is None:
                    return
                if len(values) == len(names):
                    yield Row(dict(zip(names, values, strict=True)), path, "line", reader.line_num)
                elif values:  # it is no empty line
                    yield BadRowError(
                        f"{path}, line {reader.line_num}: it has other columns than the head of the file."
                    )


def _read_names(path: str, reader: Iterator[list[str]]) -> list[str]:
    """The names of the columns, from the first line that is not empty.

    Raises:
        BadRowError: They can't be told.
    """
    try:
        names = next(filter(None, reader), [])
    except csv.Error as error:
        raise BadRowError(f"{path}, line 1: {error}") from None
    for name, number in Counter(names).items():
        if number > 1:
            raise BadRowError(f"{path}, line 1: {number} columns are named {name}: give each another name.")
    return names
