"""Joins directories of shards by their indexes; no shard is read or moved."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stoker.files import write_atomically
from stoker.index import INDEX_FILE, index_path, made_of_any, read_index

_TOTALS = ("tokens", "loss_tokens", "longest_sample")  # an entry a shard


def merge(directory: str | os.PathLike[str], *, overwrite: bool = False) -> int:
    """Writes an index of all shards in the directories below `directory`, in the order of their names, so that it is
    one data set. MosaicML Streaming reads it, too. Nothing is looked for below a directory with an index, which lists
    what is there, and in hidden ones.

    Args:
        directory: Holds directories with index.json, at any depth, and gets an index.json itself.
        overwrite: Replace the index that it has.

    Returns:
        The number of shards.

    Raises:
        FileNotFoundError: No directory below has an index.
        FileExistsError: `directory` has an index, and `overwrite` is not set.
        ValueError: An index breaks its format, or the data sets have different columns or tokenizers.
        OSError: An index can't be read or written.
    """
    root = Path(directory)
    target = index_path(str(root))
    if os.path.exists(target) and not overwrite:
        raise FileExistsError(f"{target} is there already: pass overwrite to replace it.")
    parts = list(find_parts(root))
    if not parts:
        raise FileNotFoundError(f"no directory below {root} has an index.json.")
    indexes: list[tuple[str, dict[str, Any]]] = []
    first: tuple[Any, Any] | None = None
    for part in parts:
        checked = read_index(str(part), "int64", made_columns=made_of_any)  # raises where it breaks the format
        index = json.loads((part / INDEX_FILE).read_bytes())
        columns = [[entry["column_names"], entry["column_encodings"]] for entry in index["shards"]]
        kind = (columns[0] if columns else None, checked.tokenizer)
        first = first or kind
        if kind != first or any(of_shard != columns[0] for of_shard in columns):
            raise ValueError(
                f"{part} has other columns, or another tokenizer, than {parts[0]}: they can't be one data set."
            )
        indexes.append((part.relative_to(root).as_posix(), index))
    merged = join_indexes(indexes)
    write_atomically(target, json.dumps(merged, sort_keys=True).encode())
    return len(merged["shards"])


def join_indexes(indexes: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """One index of several.

    Args:
        indexes: The directory of each, relative to that of the result, and what it holds. Files' names in it change.
    """
    entries: list[dict[str, Any]] = []
    totals: list[dict[str, Any] | None] = []
    for directory, index in indexes:
        for entry in index["shards"]:
            for data in (entry["raw_data"], entry.get("zip_data")):
                if data:
                    data["basename"] = posixpath.join(directory, data["basename"])
            entries.append(entry)
        totals.append(index.get("stoker"))
    merged: dict[str, Any] = {"shards": entries, "version": 2}
    known = [total for total in totals if total is not None]
    if len(known) == len(totals):
        lists = {name: [n for total in known for n in total[name]] for name in _TOTALS if name in known[0]}
        frames = {total.get("zstd_frame_bytes") for total in known}
        merged["stoker"] = {**known[0], **lists, "zstd_frame_bytes": frames.pop() if len(frames) == 1 else None}
    return merged


def find_parts(root: Path) -> Iterator[Path]:
    """The data sets below a directory, in the order of their names."""
    for folder, folders, files in os.walk(root):
        is_part = Path(folder) != root and INDEX_FILE in files
        folders[:] = [] if is_part else sorted(name for name in folders if not name.startswith("."))
        if is_part:
            yield Path(folder)
