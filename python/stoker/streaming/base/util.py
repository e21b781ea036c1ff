"""What is imported from `streaming.base.util`."""

from __future__ import annotations

from stoker.streaming.merging import merge_index
from stoker.units import parse_bytes as bytes_to_int
from stoker.units import parse_count as number_abbrev_to_int

__all__ = ["bytes_to_int", "clean_stale_shared_memory", "merge_index", "number_abbrev_to_int"]


def clean_stale_shared_memory() -> None:
    """Does nothing: stoker's data sets leave nothing in shared memory. What MosaicML Streaming has left stays."""
