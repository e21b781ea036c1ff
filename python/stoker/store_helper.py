"""Requests to stores by a process of their own, for a fork of a process that has used obstore.

obstore's threads are not in a fork, and can't be started there again: a request of its would wait for ever. Workers of
torch's DataLoader are such forks. So the first of their requests starts a fresh process, which makes them all. It ends
with the process that has started it, whose end of the socket between them the kernel closes.
"""

from __future__ import annotations

import functools
import itertools
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from stoker import stores

_STARTING = threading.Lock()  # held while a helper is looked up or started, so that there is one
_AT_ONCE = 16  # requests that a helper makes
_ENDED = "the process that makes requests has ended."


class HelperStore:
    """A store whose requests a helper makes; see `stoker.stores.Store`."""

    def __init__(self, url: str, options_as_json: str, timeout_s: float) -> None:
        self.url = url
        self._arguments = (url, options_as_json, timeout_s)

    def stat(self, path: str) -> stores.ObjectInfo:
        found: stores.ObjectInfo = self._ask("stat", path)
        return found

    def read(self, path: str, begin: int = 0, end: int | None = None) -> stores.Part:
        part: stores.Part = self._ask("read", path, begin, end)
        return part

    def write(self, path: str, source: bytes | str) -> None:
        self._ask("write", path, source)

    def delete(self, path: str) -> None:
        self._ask("delete", path)

    def _ask(self, method: str, *arguments: Any) -> Any:
        with _STARTING:
            helper = _helper(os.getpid())
        return helper.ask((self._arguments, method, arguments))


class _Helper:
    """The process, as the one that has started it sees it. Thread-safe."""

    def __init__(self) -> None:
        ours, its = socket.socketpair()
        code = f"import sys; sys.path[:] = {sys.path!r}; from stoker.store_helper import serve; serve({its.fileno()})"
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.DEVNULL, pass_fds=[its.fileno()]
            )
        self._connection = Connection(ours.detach())
        self._mutex = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: dict[int, Future[Any]] | None = {}  # guarded by _mutex; None when it has ended
        self._thread = threading.Thread(target=self._receive, name="stoker-helper", daemon=True)
        self._thread.start()

    def ask(self, request: Any) -> Any:
        """Makes a request, waits for it, and returns or raises what comes of it.

        Raises:
            StoreError: The helper has ended; the next request starts another one.
        """
        future: Future[Any] = Future()
        with self._mutex:
            if self._waiting is None:
                raise stores.StoreError(_ENDED)
            number = next(self._numbers)
            self._waiting[number] = future
            try:
                self._connection.send((number, request))
            except OSError:
                raise stores.StoreError(_ENDED) from None
        return future.result()

    def _receive(self) -> None:
        while True:
            try:
                number, is_right, outcome = self._connection.recv()
            except (EOFError, OSError):
                break
            with self._mutex:
                future = (self._waiting or {}).pop(number)
            if is_right:
                future.set_result(outcome)
            else:
                future.set_exception(outcome)
        with self._mutex:
            left, self._waiting = self._waiting or {}, None
        _helper.cache_clear()
        for future in left.values():
            future.set_exception(stores.StoreError(_ENDED))


@functools.lru_cache(maxsize=1)
def _helper(process: int) -> _Helper:
    """That of this process."""
    return _Helper()


def serve(file: int) -> None:
    """Makes the requests that come by a socket, until it is closed. The whole of the helper."""
    connection = Connection(file)
    mutex = threading.Lock()

    def answer(number: int, request: Any) -> None:
        arguments, method, rest = request
        try:
            outcome, is_right = getattr(stores.open_native(*arguments), method)(*rest), True
            if isinstance(outcome, stores.Part):
                outcome = stores.Part(bytes(outcome.data), outcome.object_bytes)
        except Exception as error:  # noqa: BLE001  # it is of whoever asks
            outcome, is_right = error, False
        with mutex:
            connection.send((number, is_right, outcome))

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        while True:
            try:
                threads.submit(answer, *connection.recv())
            except EOFError:
                os._exit(0)  # whoever asked is gone; a request may hang
