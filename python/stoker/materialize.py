"""Supplies a store with the shards that are not there as the core reads them: fetched, or made of others.

A small number of threads asks the store what it wants, in the order of need, and waits for the source of each shard. A
source is a copy of a remote stream (`ShardCache`), or makes token shards of raw ones (`RawStream`). What it gives is an
open file, so that nothing can happen to it on the way.
"""

from __future__ import annotations

import logging
import resource
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from stoker import _core
from stoker.cache import OpenedFile
from stoker.errors import MissingShardError, pickled

logger = logging.getLogger("stoker")

_MOST_FILES = 1 << 16  # that may be open at once, where the system lets the process have them


class ShardSource(Protocol):
    """Where the shards of a stream come from. Thread-safe."""

    def open_shard(self, shard: int) -> OpenedFile:
        """A shard's file, after waiting for it. Raises what the loader is to raise."""


@dataclass
class Missing:
    """A shard that could not be had, and that the run went on without.

    Attributes:
        shard: Its number.
        reason: The error, as text.
    """

    shard: int
    reason: str


class Materializer:
    """Serves a store with the shards that it wants. Belongs to the process that made it."""

    def __init__(
        self, sources: Sequence[ShardSource | None], *, num_threads: int, skips_missing: Sequence[bool]
    ) -> None:
        """
        Args:
            sources: Of each stream; None: its files are there.
            num_threads: That wait for sources at once.
            skips_missing: Of each stream, whether the run goes on without a shard that can't be had.
        """
        self._sources = sources
        self._num_threads = num_threads
        self._skips_missing = skips_missing
        self._supplied: set[tuple[int, int]] = set()
        self._missing: list[list[Missing]] = [[] for _ in sources]
        self._store: _core.ShardStore | None = None
        self._threads: list[threading.Thread] = []

    def missing(self, stream: int) -> list[Missing]:
        """The shards that the run went on without."""
        return list(self._missing[stream])

    def serve(self, store: _core.ShardStore) -> None:
        """Begins to supply what a store wants, for as long as it is not closed or serves another one."""
        if store is self._store:
            return
        self.stop()  # its threads end when they have what they wait for
        self._store = store
        _raise_file_limit()
        for i in range(self._num_threads):
            name = f"stoker-materialize-{i}"
            thread = threading.Thread(target=self._work, args=(store,), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def held(self) -> list[tuple[int, int]]:
        """Stream and shard of what the store will be read from soon."""
        return [] if self._store is None else self._store.held()

    def stop(self) -> None:
        """Tells the store that nothing is supplied any more. What is being waited for is not waited for here."""
        if self._store is not None:
            self._store.close_supply()

    def close(self) -> None:
        """Stops, and waits for the threads: whoever they wait for must have been closed. Idempotent."""
        self.stop()
        for thread in self._threads:
            thread.join()
        self._store, self._threads = None, []

    def _work(self, store: _core.ShardStore) -> None:
        while (wanted := store.take_wanted()) is not None:
            stream, shard = wanted
            source = self._sources[stream]
            assert source is not None
            try:
                opened = source.open_shard(shard)
            except MissingShardError as error:
                self._fail(store, stream, shard, error)
            except BaseException as error:  # noqa: BLE001  # whatever it is, who waits for the shard gets it
                store.set_failed(stream, shard, pickled(error))
            else:
                self._supplied.add(wanted)
                store.set_ready(stream, shard, opened.path, opened.fd, opened.is_compressed)

    def _fail(self, store: _core.ShardStore, stream: int, shard: int, error: MissingShardError) -> None:
        # What was there before is in rows that are planned: then going on without it is not possible any more.
        if not self._skips_missing[stream] or (stream, shard) in self._supplied:
            store.set_failed(stream, shard, pickled(error))
            return
        if all(missing.shard != shard for missing in self._missing[stream]):
            self._missing[stream].append(Missing(shard, str(error)))
            logger.warning("going on without a shard: %s", error)
        store.set_missing(stream, shard)


def _raise_file_limit() -> None:
    """Each shard that is there ahead of need is an open file. By default a process may have 1,024, and more if it asks
    for them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
