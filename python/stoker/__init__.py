"""stoker feeds language-model training: it mixes MDS token streams into batches from a C++ core."""

from stoker.errors import CorruptShardError, LoaderClosedError, StateMismatchError
from stoker.loader import DataLoader, Segment
from stoker.stream import Stream
from stoker.writer import MDSWriter

__all__ = [
    "CorruptShardError",
    "DataLoader",
    "LoaderClosedError",
    "MDSWriter",
    "Segment",
    "StateMismatchError",
    "Stream",
]
