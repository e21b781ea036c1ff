"""Work on an order beside the run: an epoch that is worked out, and samples that are listed to the core."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from stoker import _core
from stoker.errors import LoaderClosedError, pickled

_ASK_S = 0.1  # between asking whether somebody still waits

T = TypeVar("T")


class Listing:
    """A thread that lists samples to the core."""

    def __init__(self, samples: _core.SampleList, work: Callable[[Listing], None]) -> None:
        """
        Args:
            samples: The list.
            work: Pushes to it, until it is closed. What it raises is raised where the batches would have come.
        """
        self.samples = samples
        self._work = work
        self._is_closed = threading.Event()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="stoker-lister", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work(self)
        except BaseException as error:  # noqa: BLE001
            self.samples.fail(pickled(error))

    def is_open(self) -> bool:
        """Whether anybody wants the samples."""
        return not self._is_closed.is_set()

    def close(self) -> None:
        """Ends the thread, and waits for it. In a fork it does nothing."""
        if os.getpid() == self._process:
            self._is_closed.set()
            self.samples.close()
            self._thread.join()


class Work(Generic[T]):
    """Something that is worked out in a thread of its own, which the end of the process does not wait for."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._made: T | None = None
        self._error: BaseException | None = None
        self._is_done = threading.Event()
        self._process = os.getpid()
        threading.Thread(target=self._run, args=(make,), name="stoker-order", daemon=True).start()

    def _run(self, make: Callable[[], T]) -> None:
        try:
            self._made = make()
        except BaseException as error:  # noqa: BLE001  # raised to whoever asks
            self._error = error
        self._is_done.set()

    def is_lost(self) -> bool:
        """Whether this is a fork, in which the thread does not go on."""
        return not self._is_done.is_set() and os.getpid() != self._process

    def result(self, is_wanted: Callable[[], bool] = lambda: True) -> T:
        """Waits for it; raises what it has failed with, or LoaderClosedError once it is not wanted any more."""
        while not self._is_done.wait(_ASK_S):
            if not is_wanted():
                raise LoaderClosedError("the order of the epoch is not wanted any more.")
        if self._made is None:
            assert self._error is not None
            raise self._error
        return self._made
