"""Marks that the processes of a machine share until it is started anew: a byte for each of many things, in a file."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def boot_id() -> str:
    """Tells this start of the machine from others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        return "unknown"


class Marks:
    """A set of numbers. Where its directory can't be written to, it stays empty. Thread-safe."""

    def __init__(self, directory: str, name: str) -> None:
        """
        Args:
            directory: Where the file is.
            name: What its name begins with, and no other file's. Those of other starts of the machine are removed.
        """
        self._path = os.path.join(directory, f"{name}-{boot_id()}")
        for other in Path(directory).glob(f"{name}-*"):
            if str(other) != self._path:
                with contextlib.suppress(OSError):
                    other.unlink()

    def has(self, number: int) -> bool:
        """Whether a number was added, by any process."""
        with contextlib.suppress(OSError), open(self._path, "rb", buffering=0) as file:
            return os.pread(file.fileno(), 1, number) == b"\1"
        return False

    def add(self, number: int) -> None:
        """Adds a number."""
        with contextlib.suppress(OSError):
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                os.pwrite(file, b"\1", number)
            finally:
                os.close(file)
