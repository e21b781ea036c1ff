"""Files that appear under their name only when they are whole, and on the disk."""

from __future__ import annotations

import contextlib
import os
import re
import secrets


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
    temporary = f"{path}.{secrets.token_hex(4)}"
    try:
        write_durably(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # an interrupt may come when it is renamed already
            os.unlink(temporary)
        raise


def legible_name(name: str) -> str:
    """What a file may be called for something of this name: a part of it, without special characters."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64]
