"""stoker feeds language-model training: it mixes MDS token streams into batches from a C++ core."""

from stoker.errors import CorruptShardError, LoaderClosedError, StateMismatchError
from stoker.loader import DataLoader, Segment
from stoker.stream import Stream
from stoker.writer import MDSWriter

__version__ = "0.1.0"

__all__ = [
    "CorruptShardError",
    "DataLoader",
    "LoaderClosedError",
    "MDSWriter",
    "Segment",
    "StateMismatchError",
    "Stream",
]
