"""CSV and TSV: columns by the first line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from stoker.preparation.sources.files import open_file
from stoker.preparation.sources.pieces import BadRowError, Format, Piece, Row


class Csv(Format):
    """One piece: a line break may stand within quotes."""

    name = "csv"
    suffixes = (".csv", ".tsv")

    def read(self, piece: Piece) -> Iterator[Row | BadRowError]:
        path = piece.path
        csv.field_size_limit(1 << 31)
        with io.TextIOWrapper(open_file(path), encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if ".tsv" in Path(path).name.lower() else ",", strict=True)
            while True:
                try:
                    values = next(reader, None)
                except csv.Error as error:
                    yield BadRowError(f"{path}, line {reader.line_num}: {error}")
                    continue
                if values is None:
                    return
                if None in values or None in values.values():
                    yield BadRowError(
                        f"{path}, line {reader.line_num}: it has other columns than the head of the file."
                    )
                else:
                    yield Row(values, path, "line", reader.line_num)
