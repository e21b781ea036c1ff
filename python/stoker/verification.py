"""Checks whether the shards of a data set, local or remote, are what its index says."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stoker import _core
from stoker.dataset import stream_files
from stoker.downloads import Requests
from stoker.errors import MissingShardError
from stoker.hashes import hash_file
from stoker.index import StreamIndex, made_of_any, read_index
from stoker.index_copy import OWN_DIRECTORY, FileEntry, read_listing
from stoker.preparation.sources import BadRowError, find_shard, read_rows
from stoker.remote import open_cache
from stoker.stores import is_url
from stoker.stream import Stream


@dataclass
class Verification:
    """What was found.

    Attributes:
        shards, samples, file_bytes: That were read.
        hashes: That were compared.
        absent: Shards that a local copy of a remote stream does not have.
        problems: Sentences, each of which names a file. Empty: all is right.
    """

    shards: int = 0
    samples: int = 0
    file_bytes: int = 0
    hashes: int = 0
    absent: int = 0
    problems: list[str] = field(default_factory=list)


def verify(
    place: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Reads all shards of a data set: compares the sizes of files and all hashes that the index has, decompresses them,
    reads every sample, and counts tokens where the index tells how many there should be.

    Args:
        place: A directory with index.json, or its URL: shards are fetched one by one, and not kept.
        storage_options: Of a URL, see docs/remote.md.
        progress: Called with the bytes of a shard's file that has been read, and those of all.

    Raises:
        FileNotFoundError: There is no index.json.
        ValueError: It breaks the format.
        OSError: A store can't be reached.
    """
    place = os.fspath(place)
    if not is_url(place):
        return _verify(place, lambda shard: None, progress)
    requests = Requests(16)
    with tempfile.TemporaryDirectory(prefix="stoker-verify-") as directory:
        stream = Stream(
            remote=place, local=directory, storage_options=storage_options, validate_hash=None, keep_zip=True
        )
        cache = open_cache(stream, requests)
        cache.fetch_index()

        def fetch(shard: int) -> None:
            os.close(cache.open_shard(shard).fd)

        try:
            return _verify(directory, fetch, progress, place=place)
        finally:
            requests.close()


def _verify(
    directory: str,
    fetch: Callable[[int], None],
    progress: Callable[[int, int], None] | None,
    *,
    place: str | None = None,
) -> Verification:
    found = Verification()
    entries = read_listing(directory)
    counts = _TokenCounts.find(directory)
    total = sum(entry.remote.bytes for entry in entries)
    for shard, entry in enumerate(entries):
        try:
            fetch(shard)
        except MissingShardError as error:
            found.problems.append(f"{error}.")
            continue
        files = [file for file in entry.files if os.path.exists(os.path.join(directory, file.basename))]
        if files:
            found.problems += [
                text.replace(directory, place or directory)
                for text in _problems(directory, shard, files, found, counts)
            ]
        elif place is None and os.path.isdir(os.path.join(directory, OWN_DIRECTORY)):
            found.absent += 1
        else:
            found.problems.append(f"there is no {place or directory}/{entry.remote.basename}.")
        if place is not None:
            for file in files:
                os.unlink(os.path.join(directory, file.basename))
        if progress is not None:
            progress(entry.remote.bytes, total)
    return found


class _TokenCounts:
    """The tokens of shards beside those that the index tells."""

    def __init__(self, directory: str, index: StreamIndex) -> None:
        self._directory, self._index = directory, index
        self._store = _core.ShardStore([stream_files(Path(directory).name, index, follow_links=True)], 0)

    @classmethod
    def find(cls, directory: str) -> _TokenCounts | None:
        """None where the columns are no tokens, or the index does not tell.

        Raises:
            ValueError: It breaks the format.
        """
        index = read_index(directory, "int64", made_columns=made_of_any)
        return None if index.is_made or index.is_expanded or index.tokens is None else cls(directory, index)

    def check(self, shard: int) -> None:
        """
        Raises:
            CorruptShardError, ValueError: There are others. Opening a shard compares the tokens.
        """
        tokens, loss_tokens, _ = self._store.totals(0, shard)
        told = self._index.loss_tokens
        if told is not None and loss_tokens != int(told[shard]):
            raise ValueError(
                f"shard {shard} of {self._directory} has {loss_tokens} loss tokens among {tokens}, not {told[shard]} "
                "as the index says."
            )


def _problems(
    directory: str, shard: int, files: list[FileEntry], found: Verification, counts: _TokenCounts | None
) -> Iterator[str]:
    found.shards += 1
    are_right = True
    for file in files:
        path = os.path.join(directory, file.basename)
        size = os.stat(path).st_size
        found.file_bytes += size
        if size != file.bytes:
            are_right = False
            yield f"{path} has {size} bytes, not {file.bytes} as index.json says."
            continue
        for name, digest in file.hashes.items():
            found.hashes += 1
            if hash_file(name, path) != digest:
                are_right = False
                yield f"{path} is not what index.json says: its {name} differs."
    if not are_right:
        return
    try:
        for row in read_rows(find_shard(directory, shard)):
            if isinstance(row, BadRowError):
                yield f"{row}."
            else:
                found.samples += 1
        if counts is not None:
            counts.check(shard)
    except ValueError as error:
        yield str(error)
