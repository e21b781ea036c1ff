"""Counts the tokens of shards whose index does not tell."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from stoker import _core
from stoker.cache import ShardCache
from stoker.dataset import stream_files
from stoker.downloads import Policy, Requests, RetryingStore, Traffic
from stoker.files import write_atomically
from stoker.index import TOTALS_FILE, StreamIndex, Totals, read_index
from stoker.remote import Lent, lend, open_cache, open_directory
from stoker.stores import is_url, open_store
from stoker.stream import Stream

_HEADS_AT_ONCE = 16


def count_tokens(
    place: str | os.PathLike[str],
    *,
    bytes_dtype: str = "int64",
    labels_dtype: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Totals:
    """Counts the tokens of a data set's shards, and writes them to stoker.json beside index.json. Reads the heads of
    shards, and all of those that have labels, are compressed, or have other columns of varying size.

    Args:
        place: A directory with index.json and the shards it lists, or its URL.
        bytes_dtype: Integer type of token columns whose encoding is `bytes`.
        labels_dtype: The same of labels. Default: as bytes_dtype.
        storage_options: Of a URL, see docs/remote.md.
        out: Write stoker.json into this directory instead, such as a stream's `local`.

    Returns:
        The totals, one entry a shard. All tokens of text shards are loss tokens; of the others those whose label is not
        -100.

    Raises:
        FileNotFoundError: There is no index.json, or a shard is missing.
        ValueError: The index or a shard breaks its format.
        OSError: A shard can't be read, or stoker.json not be written.
    """
    place = os.fspath(place)
    types = (bytes_dtype, labels_dtype)
    if not is_url(place):
        with open_directory(place, read_index(place, *types, with_totals=False)) as (index, lent):
            totals = _count(index, bytes_dtype, lent)
        write_atomically(os.path.join(place if out is None else out, TOTALS_FILE), msgspec.json.encode(totals))
        return totals
    requests = Requests(_HEADS_AT_ONCE)
    try:
        with tempfile.TemporaryDirectory(prefix="stoker-index-") as directory:
            stream = Stream(remote=place, local=directory, storage_options=storage_options)
            cache = open_cache(stream, requests)
            cache.fetch_index()
            index = read_index(directory, *types, with_totals=False)
            store = RetryingStore(open_store(place, storage_options), requests, Policy(), Traffic())
            totals = _count(index, bytes_dtype, lambda shard: _fetched(shard, index, cache, store))
        content = msgspec.json.encode(totals)
        if out is None:
            store.write(TOTALS_FILE, content)
        else:
            write_atomically(os.path.join(out, TOTALS_FILE), content)
        return totals
    finally:
        requests.close()


def _count(index: StreamIndex, bytes_dtype: str, lent: Lent) -> Totals:
    """Counts, with what is there of each shard meanwhile."""
    store = _core.ShardStore([stream_files(index.directory, index, follow_links=True)], 0)

    def count(shard: int) -> tuple[int, int, int]:
        if not index.samples[shard]:
            return 0, 0, 0
        with lent(shard):
            return store.totals(0, shard)

    with ThreadPoolExecutor(_HEADS_AT_ONCE, "stoker-index") as threads:
        counted = list(threads.map(count, range(len(index.samples))))
    return Totals(
        tokens=[tokens for tokens, _, _ in counted],
        loss_tokens=[loss for _, loss, _ in counted],
        longest_sample=[longest for _, _, longest in counted],
        index_sha256=index.sha256,
        bytes_dtype=bytes_dtype,
    )


@contextlib.contextmanager
def _fetched(shard: int, index: StreamIndex, cache: ShardCache, store: RetryingStore) -> Iterator[None]:
    """What counting reads of a remote shard, while it is counted: its head, in a file that is empty behind that."""
    schema = index.schemas[index.schema_indexes[shard]]
    if not (schema.is_told_by_head and schema.kind == "text" and not index.zip_basenames[shard]):
        with lend(cache, shard):
            yield
        return
    path = os.path.join(index.directory, index.raw_basenames[shard])
    os.makedirs(os.path.dirname(path), exist_ok=True)
    head = store.read(index.raw_basenames[shard], 0, 4 * (int(index.samples[shard]) + 2))
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(int(index.raw_bytes[shard]))
    try:
        yield
    finally:
        os.unlink(path)
