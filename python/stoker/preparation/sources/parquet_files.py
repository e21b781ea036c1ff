"""Parquet, and rows of Arrow's columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from stoker.preparation.sources.pieces import Format, Piece, Reading, Row


class Parquet(Format):
    """A piece is a row group."""

    name = "parquet"
    suffixes = (".parquet",)
    is_compressible = False

    def cut(self, path: str, size_bytes: int, piece_bytes: int, reading: Reading) -> list[Piece]:
        groups = _open(path).metadata
        sizes = [groups.row_group(i).total_byte_size for i in range(groups.num_row_groups)]
        return [Piece(path, self.name, i, i + 1, size, reading) for i, size in enumerate(sizes)]

    def read(self, piece: Piece) -> Iterator[Row]:
        groups = _open(piece.path)
        before = sum(groups.metadata.row_group(i).num_rows for i in range(piece.begin))
        for batch in groups.iter_batches(batch_size=1024, row_groups=list(range(piece.begin, piece.end))):
            for number, values in enumerate(rows_of(batch), before):
                yield Row(values, piece.path, "row", number)
            before += batch.num_rows


def rows_of(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of a RecordBatch. Lists of integers are arrays: as lists they would take ten times the memory."""
    columns = [_values_of(column) for column in batch.columns]
    for values in zip(*columns, strict=True):
        yield dict(zip(batch.schema.names, values, strict=True))


def _values_of(column: Any) -> Iterator[Any]:
    from pyarrow import types

    is_list = types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type)
    if is_list and types.is_integer(column.type.value_type):
        return (_array_of(scalar.values) for scalar in column)
    return (scalar.as_py() for scalar in column)


def _array_of(values: Any) -> Any:
    """None for None, and a list where a value of it is missing."""
    if values is None or values.null_count:
        return values and values.to_pylist()
    return values.to_numpy()


def _open(path: str) -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError('Parquet files need the package pyarrow: pip install "stoker[prepare]".') from None
    return pyarrow.parquet.ParquetFile(path)
