"""Processes that do heavy work in Python, so that no other process waits for its GIL.

A helper is a Python of its own that reads calls from its standard input and writes what came out to its standard
output. It needs no `if __name__ == "__main__"` in the user's script, and ends when its input does: at the latest when
the process that started it is gone, however that ended.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import IO, Any, TypeVar

_T = TypeVar("_T")

_SIZE = struct.Struct("<Q")  # of the pickle that follows
_Call = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...]]


class HelperDiedError(OSError):
    """A helper has ended before it was done."""


class Helpers:
    """A number of helpers, each started when it gets its first call. Thread-safe."""

    def __init__(self, number: int) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._is_closed = False
        self._mutex = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()  # guarded by _mutex
        self._threads = [threading.Thread(target=self._work, name=f"stoker-helper-{i}") for i in range(number)]
        for thread in self._threads:
            thread.daemon = True  # it waits for a process, which ends with this one
            thread.start()

    def submit(self, function: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """Has a function called by the next helper that is free.

        Args:
            function: Of a module that the helper can import, of whatever can be pickled.

        Returns:
            A future of what it returns or raises: HelperDiedError if the helper died over it. A call that has not begun
            can be cancelled.
        """
        future: Future[_T] = Future()
        self._calls.put((future, function, arguments))
        return future

    def close(self) -> None:
        """Ends all helpers at once, whatever they are doing. Idempotent."""
        with self._mutex:
            self._is_closed = True
            for process in self._processes:
                process.kill()
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Helpers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        process: subprocess.Popen[bytes] | None = None
        while (call := self._calls.get()) is not None:
            future, function, arguments = call
            if self._is_closed:
                future.cancel()
            elif future.set_running_or_notify_cancel():
                try:
                    process = process or self._start()
                    succeeded, result = _ask(process, (function, arguments))
                except Exception as error:  # noqa: BLE001  # it is the caller's
                    self._end(process)
                    process = None
                    succeeded, result = False, error
                future.set_result(result) if succeeded else future.set_exception(result)
        self._end(process)

    def _start(self) -> subprocess.Popen[bytes]:
        with self._mutex:
            if self._is_closed:
                raise HelperDiedError("helpers are closed.")
            process = subprocess.Popen(
                [sys.executable, "-c", "from stoker.helpers import main; main()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            self._processes.add(process)
        return process

    def _end(self, process: subprocess.Popen[bytes] | None) -> None:
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        process.wait()
        with self._mutex:
            self._processes.discard(process)


def _ask(process: subprocess.Popen[bytes], call: Any) -> tuple[bool, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        _send(process.stdin, pickle.dumps(call))
        answer = _receive(process.stdout)
    except BrokenPipeError:
        answer = None
    if answer is None:
        code = process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        raise HelperDiedError(
            f"a process that prepares data {how}, maybe for want of memory: use fewer of them, or free memory."
        )
    succeeded, result = pickle.loads(answer)
    return succeeded, result


def _send(to: IO[bytes], content: bytes) -> None:
    to.write(_SIZE.pack(len(content)) + content)
    to.flush()


def _receive(source: IO[bytes]) -> bytes | None:
    """None where it has ended."""
    head = source.read(_SIZE.size)
    if len(head) < _SIZE.size:
        return None
    (size,) = _SIZE.unpack(head)
    content = source.read(size)
    return content if len(content) == size else None


def main() -> None:
    """Is a helper: answers calls until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it, which ends this one
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # helpers are what runs in parallel
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed goes elsewhere
    while (content := _receive(calls)) is not None:
        try:
            function, arguments = pickle.loads(content)
            answer = pickle.dumps((True, function(*arguments)))
        except Exception as error:  # noqa: BLE001  # it is the caller's
            answer = _pickle_error(error)
        try:
            _send(answers, answer)
        except BrokenPipeError:  # who asked has been killed
            os._exit(1)


def _pickle_error(error: Exception) -> bytes:
    try:
        answer = pickle.dumps((False, error))
        pickle.loads(answer)
    except Exception:  # noqa: BLE001  # whatever its own pickling raises
        return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
    return answer
