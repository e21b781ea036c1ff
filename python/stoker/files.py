"""Files that appear under their name only when they are whole, and on the disk."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import secrets
import shutil
from collections.abc import Iterator

_TOKEN_DIGITS = 8  # of the name of a file that is not whole


def write_durably(path: str, data: bytes) -> None:
    """Writes a file and waits until it is on the disk.

    Raises:
        OSError: The directory can't be written to, or is full.
    """
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: str, data: bytes) -> None:
    """Writes a file beside its place and renames it. What a process that dies leaves is a temporary file.

    Raises:
        OSError: The directory can't be written to, or is full.
    """
    with _renamed(path) as temporary:
        write_durably(temporary, data)


def remove_unfinished(path: str) -> None:
    """Removes what processes that died in `write_atomically` have left beside a file; to be called where no other
    writes it now."""
    for left in glob.glob(f"{glob.escape(path)}.{'[0-9a-f]' * _TOKEN_DIGITS}"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(left)


def copy_atomically(source: str, path: str) -> None:
    """The same of a copy of a file."""
    with _renamed(path) as temporary:
        shutil.copyfile(source, temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())


@contextlib.contextmanager
def _renamed(path: str) -> Iterator[str]:
    """A name to write to, that is renamed to `path` in the end."""
    temporary = f"{path}.{secrets.token_hex(_TOKEN_DIGITS // 2)}"
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # an interrupt may come when it is renamed already
            os.unlink(temporary)
        raise


def legible_name(name: str) -> str:
    """What a file may be called for something of this name: a part of it, without special characters."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64]
