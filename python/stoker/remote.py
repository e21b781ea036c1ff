"""The remote streams of a loader: their local copies, and how much of them is kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from stoker.cache import CacheOptions, ShardCache
from stoker.downloads import Policy, Requests
from stoker.stores import open_store
from stoker.stream import Stream

_INDEXES_AT_ONCE = 32


def open_cache(stream: Stream, requests: Requests) -> ShardCache:
    """The local copy of a remote stream. Nothing is fetched yet.

    Raises:
        ModuleNotFoundError: A package is missing for its URL; the message says which.
        ValueError: There is no such scheme, or an option is not known.
    """
    assert stream.remote is not None
    url = f"{stream.remote}/{stream.split}" if stream.split else stream.remote
    options = CacheOptions(
        policy=Policy(stream.download_retry, stream.download_timeout, stream.download_total_timeout),
        validate_hash=stream.validate_hash,
        validate_cached=stream.validate_cached,
        keep_zip=stream.keep_zip,
    )
    store = open_store(url, stream.storage_options, timeout_s=stream.download_timeout)
    return ShardCache(str(stream.name), store, stream.directory, options, requests)


def open_expansion(name: str, directory: str, cache_dir: str, requests: Requests) -> ShardCache:
    """A copy of a local directory whose shards are compressed in a way that the core does not read: expanded.

    Args:
        name: Of the stream.
        directory: With index.json.
        cache_dir: Where the copy goes.
        requests: Who reads.
    """
    options = CacheOptions(keep_zip=False)
    return ShardCache(name, open_store(directory), cache_dir, options, requests)


def fetch_indexes(caches: Sequence[ShardCache]) -> None:
    """Fetches the indexes of streams, several at once.

    Raises:
        FileNotFoundError, PermissionError, DownloadError, ValueError: See `ShardCache.fetch_index`.
    """
    if not caches:
        return
    with ThreadPoolExecutor(min(len(caches), _INDEXES_AT_ONCE), "stoker-index") as threads:
        for done in [threads.submit(cache.fetch_index) for cache in caches]:
            done.result()


def ranks_of_a_node() -> int:
    """Processes of this machine that share its caches, as torchrun tells."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return int(count) if count.isdecimal() and int(count) > 0 else 1
