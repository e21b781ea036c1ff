"""What is imported from `streaming.base.format.mds`."""

from __future__ import annotations

from stoker.streaming.base.format.mds import encodings
from stoker.writer import MDSWriter

__all__ = ["MDSWriter", "encodings"]
