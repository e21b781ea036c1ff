"""Data sets of Hugging Face: folders that `save_to_disk` wrote, and names that `load_dataset` takes."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stoker.preparation.sources.parquet_files import rows_of
from stoker.preparation.sources.pieces import BadRowError, Format, Piece, Reading, Row, cut_evenly

NAMED = "hf:"
_SAVED = ("state.json", "dataset_dict.json")  # one of which is in a folder of `save_to_disk`
_AT_ONCE = 256  # rows


class HuggingFace(Format):
    """A piece is a range of rows."""

    name = "huggingface"

    def find(self, source: str, *, is_named: bool) -> str | None:
        if source.startswith(NAMED):
            name = source.removeprefix(NAMED)
            return NAMED + (os.path.abspath(name) if os.path.exists(name) else name)
        return source if any((Path(source) / name).is_file() for name in _SAVED) else None

    def measure(self, path: str, reading: Reading) -> int:
        return int(_open(path, reading).data.nbytes)

    def cut(self, path: str, size_bytes: int, piece_bytes: int, reading: Reading) -> list[Piece]:
        num_rows = len(_open(path, reading))
        row_bytes = max(size_bytes // max(num_rows, 1), 1)
        return cut_evenly(path, self.name, num_rows, max(piece_bytes // row_bytes, 1), reading, row_bytes)

    def read(self, piece: Piece) -> Iterator[Row | BadRowError]:
        rows = _open(piece.path, piece.reading).with_format("arrow")
        for begin in range(piece.begin, piece.end, _AT_ONCE):
            table = rows[begin : min(begin + _AT_ONCE, piece.end)]
            for batch in table.to_batches():
                yield from rows_of(batch, piece.path, begin)
                begin += batch.num_rows

    def identify(self, piece: Piece) -> Sequence[Any]:
        """Its fingerprint, by which `datasets` itself tells whether a data set is the same."""
        rows = _open(piece.path, piece.reading)
        return [Path(piece.path).name, len(rows), rows._fingerprint]


def _open(path: str, reading: Reading) -> Any:
    """The rows of a split.

    Raises:
        FileNotFoundError: There is no such data set.
        ValueError: It has no such split.
        ModuleNotFoundError: There is no `datasets`.
    """
    stamp = tuple(os.stat(Path(path) / name).st_mtime_ns for name in _SAVED if (Path(path) / name).is_file())
    return _open_once(path, reading.subset, reading.split or "train", stamp)


@functools.lru_cache(maxsize=8)
def _open_once(path: str, subset: str | None, split: str, stamp: tuple[int, ...]) -> Any:
    """As long as a folder is the same, which its stamp tells: opening takes a while."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'data sets of Hugging Face need the package datasets: pip install "stoker[datasets]".'
        ) from None
    if path.startswith(NAMED):
        return datasets.load_dataset(path.removeprefix(NAMED), subset, split=split)
    saved = datasets.load_from_disk(path)
    if not isinstance(saved, datasets.DatasetDict):
        return saved
    if split not in saved:
        raise ValueError(f"{path} has the splits {', '.join(saved)}: choose one of them instead of {split!r}.")
    return saved[split]
