"""Streams whose shards are not there as the core reads them, remote or compressed otherwise: their local copies."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from stoker.cache import CacheOptions, ShardCache
from stoker.downloads import Policy, Requests
from stoker.index import StreamIndex
from stoker.stores import open_store
from stoker.stream import Stream

_INDEXES_AT_ONCE = 32
_EXPANDED_AT_ONCE = 4


def open_cache(stream: Stream, requests: Requests, *, expands_zstd: bool = False) -> ShardCache:
    """The local copy of a remote stream. Nothing is fetched yet.

    Args:
        stream: With a remote.
        requests: Who makes requests.
        expands_zstd: Shards compressed with zstd are expanded, since who reads them does not decode it.

    Raises:
        ModuleNotFoundError: A package is missing for its URL; the message says which.
        ValueError: There is no such scheme, or an option is not known.
    """
    assert stream.remote_directory is not None
    options = CacheOptions(
        policy=Policy(stream.download_retry, stream.download_timeout, stream.download_total_timeout),
        validate_hash=stream.validate_hash,
        validate_cached=stream.validate_cached,
        keep_zip=stream.keep_zip,
        expands_zstd=expands_zstd,
    )
    store = open_store(stream.remote_directory, stream.storage_options, timeout_s=stream.download_timeout)
    return ShardCache(str(stream.name), store, stream.directory, options, requests)


def open_expansion(
    name: str, directory: str, cache_dir: str, requests: Requests, *, expands_zstd: bool = False
) -> ShardCache:
    """A copy of a local directory whose shards are compressed in a way that the core does not read: expanded.

    Args:
        name: Of the stream.
        directory: With index.json.
        cache_dir: Where the copy goes.
        requests: Who reads.
        expands_zstd: As in `open_cache`.
    """
    options = CacheOptions(keep_zip=False, expands_zstd=expands_zstd)
    return ShardCache(name, open_store(directory), cache_dir, options, requests)


Lent = Callable[[int], contextlib.AbstractContextManager[None]]  # of a shard: it is there meanwhile


@contextlib.contextmanager
def open_directory(directory: str, index: StreamIndex) -> Iterator[tuple[StreamIndex, Lent]]:
    """The shards of a local directory, to be looked at once. Those that the core can't read are expanded into another
    directory, each of them while it is looked at.

    Args:
        directory: With index.json.
        index: That one.

    Returns:
        The index of the shards that the core can read, and what keeps one of them there.
    """
    if not index.is_expanded:
        yield index, lambda shard: contextlib.nullcontext()
        return
    requests = Requests(_EXPANDED_AT_ONCE)
    try:
        with tempfile.TemporaryDirectory(prefix="stoker-expand-") as copy:
            cache = open_expansion(Path(directory).name, directory, copy, requests)
            cache.fetch_index()
            yield replace(index, directory=copy), functools.partial(lend, cache)
    finally:
        requests.close()


@contextlib.contextmanager
def lend(cache: ShardCache, shard: int) -> Iterator[None]:
    """Keeps a shard in a copy for a while, and removes it."""
    opened = cache.open_shard(shard)
    os.close(opened.fd)
    try:
        yield
    finally:
        os.unlink(opened.path)


def fetch_indexes(caches: Sequence[ShardCache], requests: Requests) -> None:
    """Fetches the indexes of streams, several at once.

    Args:
        caches: Of the streams.
        requests: Who makes theirs. They are closed where one fails, so that the others need not be waited for.

    Raises:
        FileNotFoundError, PermissionError, DownloadError, ValueError: See `ShardCache.fetch_index`.
    """
    if not caches:
        return
    with ThreadPoolExecutor(min(len(caches), _INDEXES_AT_ONCE), "stoker-index") as threads:
        try:
            for done in [threads.submit(cache.fetch_index) for cache in caches]:
                done.result()
        except BaseException:
            requests.close()
            raise


def ranks_of_a_node() -> int:
    """Processes of this machine that share its caches, as torchrun tells."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return int(count) if count.isdecimal() and int(count) > 0 else 1
