"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import os
import tempfile


def write_atomically(path: str, data: bytes) -> None:
    """Writes a file beside its place and renames it. What a process that dies leaves is a temporary file.

    Raises:
        OSError: The directory can't be written to, or is full.
    """
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or ".")
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o644)  # temporary files are private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
