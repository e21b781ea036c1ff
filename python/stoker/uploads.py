"""Uploads of files that are finished, in the background, while others are still written."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from stoker.downloads import Policy, Requests, RetryingStore, Traffic
from stoker.stores import open_store

_AT_ONCE = 4  # files
_WAITING = 8  # files that may wait, so that a slow store does not fill the disk
_POLICY = Policy(timeout_s=600.0, total_timeout_s=6 * 3600.0)  # a request is a whole file, and uplinks are slow


class Uploader:
    """Puts files into a store. Belongs to one thread."""

    def __init__(
        self, url: str, *, storage_options: Mapping[str, Any] | None = None, policy: Policy | None = None
    ) -> None:
        """
        Args:
            url: Of a directory of a store.
            storage_options: See `open_store`.
            policy: How hard to try.

        Raises:
            ModuleNotFoundError, ValueError: See `open_store`.
        """
        policy = policy or _POLICY
        self._requests = Requests(_AT_ONCE)
        store = open_store(url, storage_options, timeout_s=policy.timeout_s)
        self.store = RetryingStore(store, self._requests, policy, Traffic())
        self._threads = ThreadPoolExecutor(_AT_ONCE, "stoker-upload")
        self._waiting: deque[Future[None]] = deque()

    def put(self, path: str, name: str, *, keep: bool = False) -> None:
        """Begins to upload a file, which is removed afterwards; waits where many are being uploaded.

        Args:
            path: The file.
            name: What it is called in the store.
            keep: Leave it where it is.

        Raises:
            OSError: One that was begun before has failed.
        """
        while len(self._waiting) >= _WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._threads.submit(self._upload, path, name, keep))

    def wait(self) -> None:
        """Waits for all uploads that have begun.

        Raises:
            OSError: One has failed.
        """
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        """Ends what has not begun. Idempotent."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._requests.close()
        self._threads.shutdown(wait=True)

    def _upload(self, path: str, name: str, keep: bool) -> None:
        self.store.write(name, path)
        if not keep:
            os.unlink(path)
