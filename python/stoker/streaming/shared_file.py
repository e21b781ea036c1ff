"""A file in memory without a name, that the processes of a rank share: a trainer, and the workers of its DataLoaders.

Workers get it with the fork, or with what is pickled for them when they are started. It goes with the last process that
has it, however that ends, so nothing is ever left over.
"""

from __future__ import annotations

import os
import weakref
from contextlib import AbstractContextManager
from multiprocessing import context, reduction
from typing import Any

from stoker.locks import lock_byte


class SharedFile:
    """A line of text, and locks between all that have it, threads included. The kernel frees a lock with its owner.

    Where it is pickled for anything but a process that is being started, whoever reads the pickle gets a copy.
    """

    def __init__(self, content: bytes) -> None:
        self._keep(os.memfd_create("stoker-streaming", os.MFD_CLOEXEC))
        self.write(content)

    def _keep(self, file: int) -> None:
        self._file = file
        weakref.finalize(self, os.close, file)

    def read(self) -> bytes:
        """The line. To be called with a lock that whoever writes has, too."""
        return os.pread(self._file, os.fstat(self._file).st_size, 0).partition(b"\n")[0]

    def write(self, content: bytes) -> None:
        """Replaces it, with the same lock. At once: what is left of a longer one stands behind the end of the line."""
        os.pwrite(self._file, content + b"\n", 0)

    def locked(self, number: int) -> AbstractContextManager[Any]:
        """Waits for a lock and holds it."""
        # By a descriptor of its own: those that were forked share theirs, and its locks.
        return lock_byte(f"/proc/self/fd/{self._file}", number)

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        if context.get_spawning_popen() is not None:
            return _of_parent, (reduction.DupFd(self._file),)
        return SharedFile, (self.read(),)


def _of_parent(file: Any) -> SharedFile:
    made = SharedFile.__new__(SharedFile)
    made._keep(file.detach())
    return made
