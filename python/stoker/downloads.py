"""Downloads of files by ranges, in parallel, with retries; what has come is kept, whatever ends the process."""

from __future__ import annotations

import functools
import heapq
import logging
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from stoker.errors import LoaderClosedError
from stoker.hashes import hash_file
from stoker.marks import boot_id
from stoker.stores import ObjectInfo, RangeNotSupportedError, Store, StoreError

logger = logging.getLogger("stoker")

RANGE_BYTES = 8 << 20  # of a request: large enough for the time that its answer takes to begin, small enough to be lost
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 30.0  # before a request is made again
_GRACE_S = 5.0  # for a store to end a request by its own timeout
_LOOK_S = 0.1  # how often is looked whether the loader was closed, and which requests are late
_T = TypeVar("_T")


@dataclass(frozen=True)
class Policy:
    """How hard to try.

    Attributes:
        retries: How often a request that has failed is made again.
        timeout_s: That a request may take.
        total_timeout_s: That a file may take with all its requests.
    """

    retries: int = 5
    timeout_s: float = 60.0
    total_timeout_s: float = 600.0


@dataclass
class Traffic:
    """What downloads have cost. Thread-safe to add to.

    Attributes:
        bytes: That have come, those of requests that failed in the end included as far as they were whole.
        seconds: That requests have taken, one beside the other.
        retries: Requests that were made again.
    """

    bytes: int = 0
    seconds: float = 0.0
    retries: int = 0
    _mutex: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, *, num_bytes: int = 0, seconds: float = 0.0, retries: int = 0) -> None:
        with self._mutex:
            self.bytes += num_bytes
            self.seconds += seconds
            self.retries += retries


class DownloadError(OSError):
    """A file can't be had: all attempts have failed.

    Attributes:
        attempts: How many were made at what failed last.
    """

    def __init__(self, message: str, attempts: int) -> None:
        super().__init__(message)
        self.attempts = attempts

    def __reduce__(self) -> tuple[type[DownloadError], tuple[str, int]]:
        return type(self), (str(self), self.attempts)


# ---------------------------------------------------------------- requests
class _Try:
    """A request that is being made."""

    def __init__(self, number: int, attempt: int, call: Callable[[], Any]) -> None:
        self.number, self.attempt = number, attempt
        self.begun_s: float | None = None
        self.future: Future[Any] = Future()
        self._call = call

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        self.begun_s = time.monotonic()
        try:
            self.future.set_result(self._call())
        except BaseException as error:  # noqa: BLE001  # it is of whoever waits for it
            self.future.set_exception(error)


class Requests:
    """Threads that make requests, for all downloads of a process together. Thread-safe.

    They start with the first request. They are daemons, and one that hangs is replaced: it keeps nobody, neither who
    waits for it nor the end of the process. In a fork of the process there are none.
    """

    def __init__(self, number: int) -> None:
        self._process = os.getpid()
        self._tries: queue.SimpleQueue[_Try | None] = queue.SimpleQueue()
        self._number = number
        self._closed = threading.Event()
        self._mutex = threading.Lock()
        self._num_started = 0  # guarded by _mutex

    @property
    def is_closed(self) -> bool:
        """Whether nobody wants anything any more."""
        return self._closed.is_set()

    def make_all(
        self, calls: Sequence[Callable[[], _T]], policy: Policy, traffic: Traffic, *, end_s: float | None = None
    ) -> list[_T]:
        """Makes requests at once. Each that fails is made again, after a pause that doubles and is drawn at random.

        Args:
            calls: They may be called several times, and one that hangs beside its successor.
            policy: How hard to try.
            traffic: Retries are counted there.
            end_s: When all time is over, of `time.monotonic`. Default: the policy's total time from now on.

        Returns:
            What they returned.

        Raises:
            DownloadError: One has failed too often, or the time is over.
            FileNotFoundError, PermissionError, RangeNotSupportedError: One was told so; that would not change.
            OSError: What came could not be written.
            LoaderClosedError: Nobody wants it any more.
        """
        if end_s is None:
            end_s = time.monotonic() + policy.total_timeout_s
        results: list[Any] = [None] * len(calls)
        waiting = [(0.0, number, 1) for number in range(len(calls))]  # a heap: when, which, which attempt
        running: dict[Future[Any], _Try] = {}
        last: list[str] = []  # what the last request that failed has told
        try:
            while waiting or running:
                while waiting and waiting[0][0] <= time.monotonic():
                    _, number, attempt = heapq.heappop(waiting)
                    one = _Try(number, attempt, calls[number])
                    running[one.future] = one
                    self._put(one)
                pause_s = min(_LOOK_S, max(0.0, waiting[0][0] - time.monotonic())) if waiting else _LOOK_S
                if running:
                    wait(running, pause_s, FIRST_COMPLETED)
                else:
                    self._closed.wait(pause_s)
                if self._closed.is_set():
                    raise LoaderClosedError("the loader is closed.")
                for one in [one for future, one in running.items() if future.done() or self._is_late(one, policy)]:
                    del running[one.future]
                    if (error := self._settle(one, results, policy)) is not None:
                        last = [f"the last failure: {error}"]
                        traffic.add(retries=1)
                        heapq.heappush(waiting, (time.monotonic() + _pause_s(one.attempt), one.number, one.attempt + 1))
                next_s = time.monotonic() if running or not waiting else waiting[0][0]
                if next_s > end_s and (waiting or running):
                    attempts = max([one.attempt for one in running.values()] + [number - 1 for *_, number in waiting])
                    raise DownloadError(
                        f"it has not come within {policy.total_timeout_s:g} s, download_total_timeout "
                        f"({'; '.join([f'{attempts} attempts', *last])})",
                        attempts,
                    )
        finally:
            for future in running:
                future.cancel()
        return results

    def close(self) -> None:
        """Ends the threads when they have nothing at hand, and does not wait for that. Idempotent."""
        if os.getpid() != self._process:  # who held the mutex may not be here
            return
        self._closed.set()
        with self._mutex:
            for _ in range(self._num_started):
                self._tries.put(None)

    def _put(self, one: _Try) -> None:
        with self._mutex:
            if self._num_started < self._number:
                self._start_thread()
            self._tries.put(one)

    def _is_late(self, one: _Try, policy: Policy) -> bool:
        """Whether a request hangs: stores have timeouts themselves, most of them. Its thread is given up."""
        if one.begun_s is None or time.monotonic() < one.begun_s + policy.timeout_s + _GRACE_S:
            return False
        with self._mutex:
            self._start_thread()
        return True

    @staticmethod
    def _settle(one: _Try, results: list[Any], policy: Policy) -> StoreError | None:
        """Takes the result of a request, or tells why it is to be made again."""
        error: BaseException | None = StoreError(f"no answer came within {policy.timeout_s:g} s")
        if one.future.done():
            error = one.future.exception()
        if error is None:
            results[one.number] = one.future.result()
            return None
        if not isinstance(error, StoreError) or isinstance(error, RangeNotSupportedError):
            raise error
        if one.attempt > policy.retries:
            raise DownloadError(f"{error} ({one.attempt} attempts)", one.attempt) from error
        logger.info("attempt %d of %d failed: %s", one.attempt, policy.retries + 1, error)
        return error

    def _start_thread(self) -> None:
        self._num_started += 1
        threading.Thread(target=self._work, name="stoker-request", daemon=True).start()

    def _work(self) -> None:
        while (one := self._tries.get()) is not None:
            one.run()


def _pause_s(attempt: int) -> float:
    """Before a request is made again that has failed so often."""
    longest_s: float = min(_FIRST_PAUSE_S * 2 ** (attempt - 1), _LONGEST_PAUSE_S)
    return longest_s * random.uniform(0.5, 1.0)


@dataclass(frozen=True)
class RetryingStore:
    """A store whose requests are made again when they have failed. They raise as `Requests.make_all`."""

    store: Store
    requests: Requests
    policy: Policy
    traffic: Traffic

    @property
    def url(self) -> str:
        """Of its root."""
        return self.store.url

    def stat(self, path: str) -> ObjectInfo:
        """What the store tells of an object."""
        return self._make(lambda: self.store.stat(path))

    def read(self, path: str, begin: int = 0, end: int | None = None) -> bytes:
        """All of a small object, or bytes [begin, end) of one."""
        try:
            return self._make(lambda: bytes(self.store.read(path, begin, end).data))
        except RangeNotSupportedError:
            return self._make(lambda: bytes(self.store.read(path).data[begin:end]))

    def write(self, path: str, source: bytes | str) -> None:
        """Writes an object, of bytes or of the file of a name."""
        self._make(lambda: self.store.write(path, source))

    def delete(self, path: str) -> None:
        """Removes an object."""
        self._make(lambda: self.store.delete(path))

    def _make(self, call: Callable[[], _T]) -> _T:
        return self.requests.make_all([call], self.policy, self.traffic)[0]


# ---------------------------------------------------------------- one file
class PartialFile:
    """A file that comes by ranges, and a mark for each that has come. Both stay on the disk until the file is whole:
    the next process that holds the shard's lock goes on with them.

    What was written before a power failure may not be there after it, whatever the marks say: marks are of one boot of
    the machine.
    """

    def __init__(self, directory: str, prefix: str, size_bytes: int) -> None:
        """
        Args:
            directory: Where the file is to be.
            prefix: Of its name, and of no other file's. What else has it is removed: it is of another content or boot.
            size_bytes: Of the whole.
        """
        name = f"{prefix}{size_bytes:x}-{boot_id()}"
        self.path = os.path.join(directory, f"{name}.part")
        self._marks_path = os.path.join(directory, f"{name}.marks")
        for other in Path(directory).glob(f"{prefix}*"):
            if str(other) not in (self.path, self._marks_path):
                other.unlink(missing_ok=True)
        self.size_bytes = size_bytes
        self._mutex = threading.Lock()  # a request may come to an end when nobody waits for it any more
        self._is_closed = False  # guarded by _mutex
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._marks = os.open(self._marks_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if os.fstat(self._file).st_size == 0:  # the marks are of one that has been finished
            os.ftruncate(self._marks, 0)

    def missing(self) -> list[tuple[int, int | None]]:
        """The ranges that are still to come."""
        number = -(-self.size_bytes // RANGE_BYTES)
        marks = os.pread(self._marks, number, 0).ljust(number, b"\0")
        return [(i * RANGE_BYTES, min((i + 1) * RANGE_BYTES, self.size_bytes)) for i in range(number) if marks[i] != 1]

    def write(self, begin: int, data: Any) -> None:
        """Writes a range, and marks it; nothing where it has come already, or once the file is closed."""
        view = memoryview(data).cast("B")
        at, number = begin, begin // RANGE_BYTES
        with self._mutex:
            if self._is_closed or os.pread(self._marks, 1, number) == b"\1":
                return
            while view:
                written = os.pwrite(self._file, view, at)
                view, at = view[written:], at + written
            os.pwrite(self._marks, b"\1", number)

    def reset(self) -> None:
        """Forgets all that has come."""
        with self._mutex:
            os.ftruncate(self._marks, 0)
            os.ftruncate(self._file, 0)

    def finish(self, path: str, *, waits_for_disk: bool) -> int:
        """Gives the file its name. After a power failure one that was not waited for may be there with its size, and
        not with its content.

        Returns:
            A descriptor to read it, whatever becomes of the name; the caller's to close.
        """
        if waits_for_disk:
            os.fsync(self._file)
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.replace(self.path, path)
            os.unlink(self._marks_path)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def close(self) -> None:
        """Closes the files, and leaves them."""
        with self._mutex:
            self._is_closed = True
            os.close(self._file)
            os.close(self._marks)


@dataclass(frozen=True)
class Download:
    """Downloads files of one store.

    Attributes:
        source: The store, and how it is asked.
    """

    source: RetryingStore

    def to_file(self, path: str, partial: PartialFile, target: str, hashes: Mapping[str, str]) -> int:
        """Downloads an object into a file, which appears under its name when it is whole and right.

        Args:
            path: Of the object.
            partial: What has come of it, and what will.
            target: The file.
            hashes: Names of hashes and what they must be.

        Returns:
            A descriptor to read the file, which is the caller's to close.

        Raises:
            DownloadError: All attempts have failed.
            FileNotFoundError, PermissionError: There is no such object, or it may not be read.
            OSError: The disk is full, or fails.
            LoaderClosedError: Nobody wants it any more.
        """
        end_s = time.monotonic() + self.source.policy.total_timeout_s
        attempts, wrong = 0, list[str]()
        while attempts <= self.source.policy.retries:
            try:
                self._fill(path, partial, end_s)
            except DownloadError:
                if not wrong:
                    raise
                break  # what came before is the cause
            attempts += 1
            wrong = [f"its {name} is {found}, not {hashes[name]}" for name, found in self._hashes(partial, hashes)]
            if not wrong:
                return partial.finish(target, waits_for_disk=not hashes)  # with hashes it is compared after a failure
            partial.reset()
            self.source.traffic.add(retries=1)
        raise DownloadError(
            f"{self.source.url}/{path} is not what index.json says: {', '.join(wrong)} ({attempts} attempts). Write "
            "the data set again",
            attempts,
        )

    def _hashes(self, partial: PartialFile, hashes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        for name, want in hashes.items():
            if (found := hash_file(name, partial.path)) != want:
                yield name, found

    def _fill(self, path: str, partial: PartialFile, end_s: float) -> None:
        """Downloads the ranges that are missing, or all at once from a server that knows no ranges."""
        try:
            self._fetch_all(path, partial, partial.missing(), end_s)
        except RangeNotSupportedError:
            self._fetch_all(path, partial, [(0, None)], end_s)

    def _fetch_all(
        self, path: str, partial: PartialFile, ranges: Sequence[tuple[int, int | None]], end_s: float
    ) -> None:
        calls = [functools.partial(self._fetch, path, partial, *ends) for ends in ranges]
        self.source.requests.make_all(calls, self.source.policy, self.source.traffic, end_s=end_s)

    def _fetch(self, path: str, partial: PartialFile, begin: int, end: int | None) -> None:
        started = time.monotonic()
        part = self.source.store.read(path, begin, end)
        view = memoryview(part.data).cast("B")
        self.source.traffic.add(num_bytes=view.nbytes, seconds=time.monotonic() - started)
        wanted = (partial.size_bytes if end is None else end) - begin
        if view.nbytes != wanted or part.object_bytes not in (None, partial.size_bytes):
            of = "" if part.object_bytes is None else f", of an object of {part.object_bytes}"
            raise StoreError(
                f"{self.source.url}/{path}: {view.nbytes} bytes came from byte {begin} on{of}, but by index.json there "
                f"are {wanted}, of {partial.size_bytes}"
            )
        for at in range(0, view.nbytes, RANGE_BYTES):
            partial.write(begin + at, view[at : at + RANGE_BYTES])
