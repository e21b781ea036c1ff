"""What is imported from `streaming.base.format`."""

from __future__ import annotations

from stoker.streaming.base.format import mds
from stoker.writer import MDSWriter

__all__ = ["MDSWriter", "mds"]
