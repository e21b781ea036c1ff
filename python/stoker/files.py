"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import os
import tempfile


def write_atomically(path: str, data: bytes) -> None:
    """Writes a file beside its place and renames it.

    Raises:
        OSError: The directory can't be written to.
    """
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(path) or ".", delete=False) as file:
        try:
            file.write(data)
            os.fchmod(file.fileno(), 0o644)  # temporary files are private
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
