"""Locks between processes on one file: nothing to clean after a crash, since the kernel lets go of them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator

# Of an open file description, not of the process: several may be held by one process, and closing another descriptor
# of the file keeps them (fcntl(2), "Open file description locks"). struct flock: type, whence, start, length, pid.
_FLOCK = "hhqqi4x"
_NOT_THERE = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL)  # file systems without locks


@contextlib.contextmanager
def lock_byte(path: str, number: int) -> Iterator[bool]:
    """Holds byte `number` of a file, after waiting for as long as it takes.

    Yields:
        Whether it does: some file systems have no locks.

    Raises:
        OSError: The file can't be made.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        is_locked = True
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLKW, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0))
        except OSError as error:
            if error.errno not in _NOT_THERE:
                raise
            is_locked = False
        yield is_locked
    finally:
        os.close(file)
