"""Copies remote streams ahead of a job that will read them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from stoker.cache import ShardCache
from stoker.downloads import Requests
from stoker.index_copy import read_listing
from stoker.remote import fetch_indexes, open_cache
from stoker.stream import Stream


@dataclass(frozen=True)
class Fetched:
    """What was done for one stream.

    Attributes:
        directory: Where its copy is.
        shards: Of the stream, all of which are there now.
        fetched: Those of them that were not there before.
        downloaded_bytes: What that took.
        retries: Requests that were made again.
    """

    directory: str
    shards: int
    fetched: int
    downloaded_bytes: int
    retries: int


def fetch(
    streams: Sequence[Stream] | Stream,
    *,
    num_downloads: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> list[Fetched]:
    """Fetches the index and all shards of remote streams into their `local` directories, as far as they are not there.
    What is there is checked as a loader would. May be interrupted, and called again, also by several at once.

    Args:
        streams: With `remote`.
        num_downloads: Requests at once.
        progress: Called with the bytes of a shard's file that is there now, and those of all.

    Raises:
        ValueError: A stream has no remote, or see `Stream`.
        FileNotFoundError, PermissionError: There is no index, or it may not be read.
        MissingShardError: A shard can't be had.
        OSError: A directory can't be written to, or the disk is full.
    """
    given = [streams] if isinstance(streams, Stream) else list(streams)
    for stream in given:
        if stream.remote is None:
            raise ValueError(f"stream {stream.name!r} has no remote: there is nothing to fetch.")
    requests = Requests(num_downloads)
    try:
        caches = [open_cache(stream, requests) for stream in given]
        fetch_indexes(caches, requests)
        sizes = [[entry.remote.bytes for entry in read_listing(cache.directory)] for cache in caches]
        total = sum(map(sum, sizes))
        with ThreadPoolExecutor(num_downloads, "stoker-fetch") as threads:
            waiting = {
                threads.submit(_fetch_shard, cache, shard): size
                for cache, of_cache in zip(caches, sizes, strict=True)
                for shard, size in enumerate(of_cache)
            }
            try:
                for done in as_completed(waiting):
                    done.result()
                    if progress is not None:
                        progress(waiting[done], total)
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                requests.close()
                raise
        return [
            Fetched(
                cache.directory,
                len(of_cache),
                cache.counts.fetched,
                cache.counts.traffic.bytes,
                cache.counts.traffic.retries,
            )
            for cache, of_cache in zip(caches, sizes, strict=True)
        ]
    finally:
        requests.close()


def _fetch_shard(cache: ShardCache, shard: int) -> None:
    os.close(cache.open_shard(shard).fd)
