"""Parquet, and rows of Arrow's columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stoker.preparation.sources.files import BrokenFileError
from stoker.preparation.sources.pieces import BadRowError, Format, Piece, Reading, Row

_MOST_ROWS, _BATCH_BYTES = 1024, 16 << 20  # of rows that are in memory at once
_BUFFER_BYTES = 1 << 20  # that are read of a column at once: without it all of a row group are


class Parquet(Format):
    """A piece is a row group, of which a page of each column is in memory. Writers make pages of a megabyte, unless
    some hundred rows have more."""

    name = "parquet"
    suffixes = (".parquet",)
    is_compressible = False

    def measure(self, path: str, reading: Reading) -> int:
        _open(path)
        return super().measure(path, reading)

    def cut(self, path: str, size_bytes: int, piece_bytes: int, reading: Reading) -> list[Piece]:
        groups = _open(path).metadata
        sizes = [groups.row_group(i).total_byte_size for i in range(groups.num_row_groups)]
        return [Piece(path, self.name, i, i + 1, size, reading) for i, size in enumerate(sizes)]

    def read(self, piece: Piece) -> Iterator[Row | BadRowError]:
        import pyarrow

        file = _open(piece.path)
        number = sum(file.metadata.row_group(i).num_rows for i in range(piece.begin))
        for i in range(piece.begin, piece.end):
            group = file.metadata.row_group(i)
            row_bytes = max(group.total_byte_size // max(group.num_rows, 1), 1)
            num_rows = min(max(_BATCH_BYTES // row_bytes, 1), _MOST_ROWS)
            try:
                for batch in file.iter_batches(batch_size=num_rows, row_groups=[i]):
                    yield from rows_of(batch, piece.path, number)
                    number += batch.num_rows
            except (pyarrow.ArrowException, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:  # the system's; what is damaged has none
                    raise
                raise BadRowError(f"{piece.path}: from row {number} on it can't be read: {error}") from None


def rows_of(batch: Any, path: str, begin: int) -> Iterator[Row | BadRowError]:
    """The rows of a RecordBatch.

    Args:
        batch: The rows.
        path: Where they are from.
        begin: The number of the first one there.
    """
    names = batch.schema.names
    are_ids = [_is_list_of_integers(column.type) for column in batch.columns]
    for number in range(batch.num_rows):
        try:
            values = {
                name: _array_of(column[number].values) if is_ids else column[number].as_py()
                for name, column, is_ids in zip(names, batch.columns, are_ids, strict=True)
            }
        except UnicodeDecodeError as error:
            yield BadRowError(f"{path}, row {begin + number}: it has chars that cannot be utf-8 decoded: {error}")
        else:
            yield Row(values, path, "row", begin + number)


def _is_list_of_integers(kind: Any) -> bool:
    from pyarrow import types

    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(is_list and types.is_integer(kind.value_type))


def _array_of(values: Any) -> Any:
    """As a list they would take ten times the memory. None for None, and a list where a value of it is missing."""
    if values is None or values.null_count:
        return values and values.to_pylist()
    return values.to_numpy()


def _open(path: str) -> Any:
    """
    Raises:
        ModuleNotFoundError: There is no pyarrow.
        BrokenFileError: It is no Parquet file.
    """
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError('Parquet files need the package pyarrow: pip install "stoker[prepare]".') from None
    try:
        return pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    except pyarrow.ArrowException as error:
        raise BrokenFileError(f"{path} is no Parquet file, or is cut: {error}") from None
