"""The shards of several streams, and the samples in them by number."""

from __future__ import annotations

import mmap
import os
import queue
import threading
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

import stoker
from stoker.cache import OpenedFile, ShardCache
from stoker.cache_limit import CacheLimit
from stoker.downloads import Requests
from stoker.encodings.samples import SampleLayout, read_offsets
from stoker.errors import CorruptShardError
from stoker.files import legible_name
from stoker.index import Entry, digest_of, index_path, read_entries
from stoker.options import default_cache_dir
from stoker.remote import fetch_indexes, open_cache, open_expansion

_MOST_OPEN = 1 << 14  # shards, each a mapping of the 65,530 that Linux allows a process
_NUM_DOWNLOADS = 16  # requests of a process at once
_NUM_OPENERS = 4  # threads that wait for shards to come


@dataclass(frozen=True)
class StreamShards:
    """The shards of one stream, by its index.

    Attributes:
        spec: The stream.
        entries: Its shards.
        sha256: Of its index.
    """

    spec: stoker.Stream
    entries: list[Entry]
    sha256: str

    @property
    def name(self) -> str:
        """Of the stream."""
        return str(self.spec.name)


def read_indexes(specs: Sequence[stoker.Stream]) -> list[StreamShards]:
    """Reads the indexes of streams; fetches those of remote ones.

    Raises:
        FileNotFoundError, PermissionError: There is none, or it may not be read.
        OSError: A remote can't be reached, and there is no copy of its index.
        ValueError: An index breaks its format, or lacks the hash that is asked for.
    """
    requests = Requests(_NUM_DOWNLOADS)
    try:
        fetch_indexes([open_cache(spec, requests) for spec in specs if spec.remote is not None], requests)
    finally:
        requests.close()
    return [_read_index(spec) for spec in specs]


def _read_index(spec: stoker.Stream) -> StreamShards:
    path = index_path(spec.directory)
    if spec.remote is None and not os.path.exists(path):
        raise FileNotFoundError(
            f"No `remote` provided, but local file {path} does not exist either. Check `local` and `split`."
        )
    entries = read_entries(path)
    asked = spec.validate_hash
    for entry in entries:
        if asked not in (None, "auto") and asked not in entry.hashes:
            raise ValueError(
                f"Hash algorithm `{asked}` chosen for data validation does not match with those provided during "
                f"dataset creation `{entry.hashes}`. Provide one of those. The index is {path}."
            )
    with open(path, "rb") as file:
        return StreamShards(spec, entries, digest_of(file.read()))


# ---------------------------------------------------------------- all shards
class Shards:
    """The shards of all streams, numbered stream by stream, and their samples, numbered shard by shard.

    Can be pickled. What is open belongs to a process: a fork opens anew. Thread-safe.

    Attributes:
        sizes: (num_shards,) int64, samples of each.
        num_samples: Of all.
    """

    def __init__(self, streams: Sequence[StreamShards], *, cache_limit: int | None = None) -> None:
        """
        Args:
            streams: At least one shard in all.
            cache_limit: Bytes that the local copies of remote streams may take together.

        Raises:
            ValueError: A shard's columns have an encoding that is not known.
        """
        self._streams = list(streams)
        self._cache_limit = cache_limit
        places = [(s, number) for s, stream in enumerate(streams) for number in range(len(stream.entries))]
        entries = [entry for stream in streams for entry in stream.entries]
        self._places = places
        self.sizes = np.array([entry.samples for entry in entries], np.int64)
        ends = self.sizes.cumsum()
        self._ends: list[int] = ends.tolist()
        self._begins: list[int] = (ends - self.sizes).tolist()
        self.num_samples = self._ends[-1] if entries else 0
        self._check_encodings()
        self._readers: dict[int, _Reader] = {}  # of each process: a fork has the parent's threads no more

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}}

    def _check_encodings(self) -> None:
        for stream in self._streams:
            for columns in {
                (*e.column_names, *e.column_encodings, *e.column_sizes): e for e in stream.entries
            }.values():
                try:
                    _layout(columns)
                except ValueError as error:
                    raise ValueError(f"{index_path(stream.spec.directory)}: {error}") from None

    def locate(self, sample: int) -> tuple[int, int]:
        """The shard of a sample, and its number in it.

        Raises:
            IndexError: There is no such sample.
        """
        if not 0 <= sample < self.num_samples:
            raise IndexError(f"Invalid sample index `{sample}`: 0 <= {sample} < {self.num_samples}")
        shard = bisect_right(self._ends, sample)
        return shard, sample - self._begins[shard]

    def sample(self, number: int) -> dict[str, Any]:
        """Reads a sample, after waiting for its shard: its columns by name.

        Raises:
            IndexError: There is no such sample.
            CorruptShardError: The shard is not what the index says, or the sample is none of its columns.
            MissingShardError: A remote shard can't be had.
            FileNotFoundError: A local one is not there.
        """
        shard, in_shard = self.locate(number)
        opened = self._reader_here().find(shard)
        begin, end = opened.offsets[in_shard], opened.offsets[in_shard + 1]
        try:
            return opened.layout.decode(opened.data[begin:end])
        except (ValueError, RecursionError) as error:
            where = f"stream {self._streams[self._places[shard][0]].name!r}, shard {self._places[shard][1]}"
            raise CorruptShardError(
                f"{where} ({opened.path}), sample {in_shard}: {error}", opened.path, in_shard
            ) from error

    def open(self, shard: int) -> None:
        """Opens a shard, after waiting for it, and fetches it if it is not there.

        Raises:
            CorruptShardError, MissingShardError, FileNotFoundError: See `sample`.
        """
        self._reader_here().find(shard)

    def open_ahead(self, samples: NDArray[np.int64]) -> None:
        """Says which samples will be read soon, so that their shards come meanwhile. Waits for nothing. What fails does
        when the shard is read."""
        reader = self._reader_here()
        if reader.is_remote:
            shards = np.searchsorted(self._ends, samples, side="right")
            reader.open_ahead(dict.fromkeys(shards.tolist()))

    def _reader_here(self) -> _Reader:
        process = os.getpid()
        reader = self._readers.get(process)
        if reader is None:  # for several threads, maybe: then one of those that are made stays
            reader = self._readers.setdefault(process, _Reader(self._streams, self._places, self._cache_limit))
        return reader


class _Opened(NamedTuple):
    """A shard that is mapped. It stays readable when its file is removed."""

    path: str
    data: mmap.mmap
    offsets: memoryview
    layout: SampleLayout


class _Source(Protocol):
    """Where the shards of a stream come from. Thread-safe."""

    def open_shard(self, shard: int) -> OpenedFile:
        """A shard's file, expanded, after waiting for it."""


class _LocalSource:
    """A directory without a remote. Compressed shards are expanded into the user's cache, where that was not done."""

    def __init__(self, stream: StreamShards, requests: Requests) -> None:
        self._stream = stream
        self._requests = requests
        self._mutex = threading.Lock()
        self._expansion: ShardCache | None = None  # guarded by _mutex

    def open_shard(self, shard: int) -> OpenedFile:
        entry = self._stream.entries[shard]
        path = os.path.join(self._stream.spec.directory, entry.raw_data.basename)
        try:
            return OpenedFile(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC), False)
        except FileNotFoundError as error:
            if entry.zip_data is not None:
                return self._open_expansion().open_shard(shard)
            raise FileNotFoundError(
                error.errno, f"shard {shard} of stream {self._stream.name!r} is not there, and it has no remote", path
            ) from None

    def _open_expansion(self) -> ShardCache:
        with self._mutex:
            if self._expansion is None:
                name = f"{legible_name(self._stream.name)}-{self._stream.sha256[:16]}"
                directory = os.path.join(default_cache_dir(), "expanded", name)
                spec = self._stream.spec
                made = open_expansion(self._stream.name, spec.directory, directory, self._requests, expands_zstd=True)
                made.fetch_index()
                self._expansion = made
            return self._expansion


class _Reader:
    """The open shards of one process, and threads that open others ahead. Thread-safe."""

    def __init__(
        self, streams: Sequence[StreamShards], places: Sequence[tuple[int, int]], cache_limit: int | None
    ) -> None:
        self._streams = streams
        self._places = places
        self._requests = Requests(_NUM_DOWNLOADS)
        caches = [open_cache(s.spec, self._requests, expands_zstd=True) if s.spec.remote else None for s in streams]
        self._sources: list[_Source] = [
            cache or _LocalSource(stream, self._requests) for cache, stream in zip(caches, streams, strict=True)
        ]
        self.is_remote = any(stream.spec.remote or any(e.zip_data for e in stream.entries) for stream in streams)
        self._limit = None
        if cache_limit is not None and any(caches):
            self._limit = CacheLimit(cache_limit, [cache for cache in caches if cache is not None])
            self._limit.held = lambda: self._coming_of(caches)
        self._num_openers = 1 if self._limit else _NUM_OPENERS  # what comes at once must fit
        self._mutex = threading.Lock()
        self._opened: dict[int, _Opened] = {}  # in the order of opening; changes under _mutex
        self._coming: dict[int, Future[_Opened]] = {}  # guarded by _mutex; those that have failed, until they are read
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._num_threads = 0  # guarded by _mutex
        weakref.finalize(self, _close, os.getpid(), self._requests, self._tasks)

    def find(self, shard: int) -> _Opened:
        """A shard, opened."""
        opened = self._opened.get(shard)
        if opened is not None:
            return opened
        future, is_ours = self._claim(shard)
        if is_ours:
            self._open(shard, future)
        try:
            return future.result()
        finally:
            with self._mutex:
                if self._coming.get(shard) is future:
                    del self._coming[shard]  # of one that has failed: the next time it is tried again

    def open_ahead(self, shards: Iterable[int]) -> None:
        """Lets the threads open shards."""
        for shard in shards:
            if shard in self._opened and self._limit is None:
                continue
            future, is_ours = self._claim(shard)
            if is_ours:
                self._tasks.put(lambda shard=shard, future=future: self._open(shard, future))  # type: ignore[misc]
                self._start_thread()

    def _claim(self, shard: int) -> tuple[Future[_Opened], bool]:
        """The shard as it will be, and whether the caller is to open it."""
        with self._mutex:
            future = self._coming.get(shard)
            if future is not None:
                return future, False
            future = self._coming[shard] = Future()
            return future, True

    def _open(self, shard: int, future: Future[_Opened]) -> None:
        stream, number = self._places[shard]
        try:
            file = self._sources[stream].open_shard(number)
            try:
                opened = _map(file, self._streams[stream], number)
            finally:
                os.close(file.fd)
        except BaseException as error:  # noqa: BLE001  # whatever it is, who reads the shard gets it
            future.set_exception(error)
            return
        with self._mutex:
            self._opened.pop(shard, None)
            if self._limit is not None:
                self._opened = {s: o for s, o in self._opened.items() if os.path.exists(o.path)}  # so that room is made
            elif len(self._opened) >= _MOST_OPEN:
                del self._opened[next(iter(self._opened))]
            self._opened[shard] = opened
            del self._coming[shard]
        future.set_result(opened)

    def _coming_of(self, caches: Sequence[ShardCache | None]) -> Iterator[tuple[ShardCache, int]]:
        for stream, shard in (self._places[shard] for shard in list(self._coming)):
            cache = caches[stream]
            if cache is not None:
                yield cache, shard

    def _start_thread(self) -> None:
        with self._mutex:
            if self._num_threads >= self._num_openers:
                return
            self._num_threads += 1
        threading.Thread(target=_work, args=(self._tasks,), name="stoker-open", daemon=True).start()


def _work(tasks: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    while (task := tasks.get()) is not None:
        task()
        del task  # it keeps the reader


def _close(process: int, requests: Requests, tasks: queue.SimpleQueue[Callable[[], None] | None]) -> None:
    """Ends the threads of a reader that nobody has any more; not in a fork, which has none."""
    if os.getpid() == process:
        requests.close()
        for _ in range(_NUM_OPENERS):
            tasks.put(None)


def _map(file: OpenedFile, stream: StreamShards, shard: int) -> _Opened:
    """
    Raises:
        CorruptShardError: The file is not what the index says.
    """
    entry = stream.entries[shard]
    size = os.fstat(file.fd).st_size
    offsets = None
    if size == entry.raw_data.bytes:
        data = mmap.mmap(file.fd, size, access=mmap.ACCESS_READ)
        offsets = read_offsets(data, entry.samples, size)  # type: ignore[arg-type]  # has what of bytes is used
    if offsets is None:
        raise CorruptShardError(
            f"{file.path} is not shard {shard} of stream {stream.name!r} as its index describes it: it has {size} bytes"
            f", and should have {entry.raw_data.bytes}, with {entry.samples} samples. Fetch or write it again.",
            file.path,
        )
    return _Opened(file.path, data, offsets, _layout(entry))


def _layout(entry: Entry) -> SampleLayout:
    return SampleLayout(entry.column_names, entry.column_encodings, entry.column_sizes)
