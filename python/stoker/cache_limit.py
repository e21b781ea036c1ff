"""Keeps the copies of a loader's remote streams within a size on the disk."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

from stoker.cache import ShardCache

logger = logging.getLogger("stoker")

_OTHERS_MAY_HAVE_ADDED = 8  # files of this process between two looks at the disk


class CacheLimit:
    """Removes the files that were used least recently, of streams that have a remote, when there is no room for another
    one. Thread-safe.

    The processes of a node that share the directories each keep to the limit: they look at what is on the disk, and use
    is told by the files' times of access. A file that is removed stays readable for who has it open.
    """

    def __init__(self, limit_bytes: int, caches: Sequence[ShardCache]) -> None:
        """
        Args:
            limit_bytes: Of all files of shards together.
            caches: Whose files these are. Each asks for room before it fetches.
        """
        self._limit_bytes = limit_bytes
        self._caches = caches
        self._mutex = threading.Lock()
        self._used_bytes = 0  # guarded by _mutex, as all below
        self._coming_bytes = 0  # of files that are being fetched
        self._num_added = 0
        self._has_warned = False
        self.evicted: dict[str, int] = {cache.name: 0 for cache in caches}
        self.held: Callable[[], Iterable[tuple[ShardCache, int]]] = lambda: ()  # shards that are in use here
        for cache in caches:
            cache.room = self.room

    @contextlib.contextmanager
    def room(self, size_bytes: int) -> Iterator[None]:
        """Keeps room for a file that is fetched meanwhile: removes others until it is within the limit, or all that may
        be removed."""
        with self._mutex:
            if self._num_added % _OTHERS_MAY_HAVE_ADDED == 0:
                self._used_bytes = sum(stat.st_size for *_, stat in self._files()) + self._unfinished_bytes()
            self._num_added += 1
            self._coming_bytes += size_bytes
            if self._used_bytes + self._coming_bytes > self._limit_bytes:
                self._evict()
        try:
            yield
        finally:
            with self._mutex:
                self._coming_bytes -= size_bytes
                self._used_bytes += size_bytes  # or less, if it has failed: the next look will tell

    def _evict(self) -> None:
        held = set()
        for cache, shard in self.held():
            cache.touch([shard])
            held.add((cache.name, shard))
        files = sorted(self._files(), key=lambda file: file[3].st_atime_ns)
        used = sum(stat.st_size for *_, stat in files) + self._unfinished_bytes()
        for cache, shard, path, stat in files:
            if used + self._coming_bytes <= self._limit_bytes:
                break
            if (cache.name, shard) in held:
                continue
            with contextlib.suppress(OSError):  # another process was first; or it is another user's
                os.unlink(path)
                used -= stat.st_size
                self.evicted[cache.name] += 1
        excess = used + self._coming_bytes - self._limit_bytes
        if excess > 0 and not self._has_warned:
            self._has_warned = True
            logger.warning("cache_limit of %d bytes is exceeded by %d: all is in use.", self._limit_bytes, excess)
        self._used_bytes = used

    def _files(self) -> list[tuple[ShardCache, int, str, os.stat_result]]:
        return [(cache, *file) for cache in self._caches for file in cache.files()]

    def _unfinished_bytes(self) -> int:
        return sum(cache.unfinished_bytes() for cache in self._caches)
