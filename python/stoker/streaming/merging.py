"""Joins data sets that were written side by side, by their indexes."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stoker.files import write_atomically
from stoker.index import index_path
from stoker.merging import find_parts, join_indexes
from stoker.stores import is_url, open_store

_Place = str | tuple[str, str]  # a path or URL, or both


def merge_index(
    index_file_urls: Sequence[_Place] | _Place,
    out: _Place | None = None,
    keep_local: bool = True,
    download_timeout: float = 60,
) -> None:
    """Writes an index.json of the shards of several data sets, which lie in directories below it. No shard is read or
    moved. May be called as `merge_index(out)`, too.

    Args:
        index_file_urls: Of each data set the path or URL of its index.json, or both: (local, remote), of which the
            first is read if it is there. Or a local directory, below which all are taken, in the order of their names.
        out: The directory that gets the index: a path, a URL, or both: (local, remote). Default: `index_file_urls`,
            where that is a directory.
        keep_local: Of an `out` that is both: whether the index stays at the local one, too.
        download_timeout: Seconds that reading an index may take.

    Raises:
        ValueError: The arguments are none of these, or an index is no JSON of an index.
        FileNotFoundError: There is no such index, or none below the directory.
        OSError: One can't be read or written.
    """
    if isinstance(index_file_urls, (str, os.PathLike, tuple)):
        out = index_file_urls if out is None else out
        local, _ = _parts_of(index_file_urls)
        if local is None:
            raise ValueError(
                f"Invalid arguments to merge_index: {index_file_urls!r} is remote, and its directories are not listed. "
                "Give a list of the URLs of index.json files, and out."
            )
        index_file_urls = [index_path(str(part)) for part in find_parts(Path(local))]
        if not index_file_urls:
            raise FileNotFoundError(f"Check data availability! No directory below {local} has an index.json.")
    elif out is None:
        raise ValueError("Invalid arguments to merge_index: a list of index files needs `out`.")
    local, remote = _parts_of(out)
    places = list(dict.fromkeys(_find(place) for place in index_file_urls))
    merged = join_indexes([(_below(place, local, remote), _read(place, download_timeout)) for place in places])
    content = json.dumps(merged, sort_keys=True).encode()
    if local is not None and (keep_local or remote is None):
        os.makedirs(local, exist_ok=True)
        write_atomically(index_path(local), content)
    if remote is not None:
        open_store(remote, timeout_s=download_timeout).write("index.json", content)


def _parts_of(place: _Place) -> tuple[str | None, str | None]:
    """Local and remote."""
    if isinstance(place, (str, os.PathLike)):
        path = os.fspath(place)
        return (None, path) if is_url(path) else (path, None)
    local, remote = place
    return os.fspath(local), os.fspath(remote)


def _find(place: _Place) -> str:
    """Where an index is read."""
    local, remote = _parts_of(place)
    return local if local is not None and (remote is None or os.path.exists(local)) else str(remote)


def _read(place: str, timeout_s: float) -> dict[str, Any]:
    directory, name = posixpath.split(place)
    content = bytes(open_store(directory or ".", timeout_s=timeout_s).read(name).data)
    index: dict[str, Any] = json.loads(content)
    if not isinstance(index, dict) or index.get("version") != 2 or not isinstance(index.get("shards"), list):
        raise ValueError(f"{place} is no index of version 2 of the MDS format.")
    return index


def _below(place: str, local: str | None, remote: str | None) -> str:
    """The directory of an index, relative to the one that gets the joint index; its last part where it is elsewhere."""
    directory = posixpath.dirname(place)
    for root in (local, remote):
        if root is not None and is_url(root) == is_url(place):
            if is_url(place):
                below = directory.removeprefix(root.rstrip("/") + "/")
            else:
                below = os.path.relpath(directory, root)
            if below != directory and not below.startswith(".."):
                return below
    return posixpath.basename(directory)
