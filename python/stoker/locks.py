"""Locks between processes on one file: nothing to clean after a crash, since the kernel lets go of them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator

# Of an open file description, not of the process: several may be held by one process, and closing another descriptor
# of the file keeps them (fcntl(2), "Open file description locks"). struct flock: type, whence, start, length, pid.
_FLOCK = "hhqqi4x"
_NOT_THERE = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL)  # file systems without locks


_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.1


@contextlib.contextmanager
def lock_byte(
    path: str,
    number: int,
    *,
    is_shared: bool = False,
    timeout_s: float | None = None,
    is_over: Callable[[], bool] = lambda: False,
) -> Iterator[bool]:
    """Holds byte `number` of a file, after waiting for it.

    Args:
        path: The file; it is made.
        number: The byte. It need not be there.
        is_shared: Others may share it, who ask for that, too.
        timeout_s: How long to wait. None: for as long as it takes.
        is_over: With a timeout: asked while waiting, which ends when it says so.

    Yields:
        Whether it does: some file systems have no locks, and the time may be over.

    Raises:
        OSError: The file can't be made.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield _lock(file, number, fcntl.F_RDLCK if is_shared else fcntl.F_WRLCK, timeout_s, is_over)
    finally:
        os.close(file)


def _lock(file: int, number: int, kind: int, timeout_s: float | None, is_over: Callable[[], bool]) -> bool:
    whole = struct.pack(_FLOCK, kind, os.SEEK_SET, number, 1, 0)
    end_s = None if timeout_s is None else time.monotonic() + timeout_s
    pause = _FIRST_PAUSE_S
    while True:
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLKW if end_s is None else fcntl.F_OFD_SETLK, whole)
            return True
        except OSError as error:
            if error.errno in _NOT_THERE:
                return False
            if error.errno not in (errno.EAGAIN, errno.EACCES) or end_s is None:
                raise
        if time.monotonic() + pause > end_s or is_over():
            return False
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_S)
