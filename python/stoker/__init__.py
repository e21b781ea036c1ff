"""stoker feeds language-model training: it mixes MDS token streams into batches from a C++ core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stoker.errors import CorruptShardError, LoaderClosedError, MissingShardError, StateMismatchError
from stoker.loader import DataLoader, Segment
from stoker.stream import Stream
from stoker.writer import MDSWriter

if TYPE_CHECKING:
    from stoker.preparation import prepare

__version__ = "0.1.0"

__all__ = [
    "CorruptShardError",
    "DataLoader",
    "LoaderClosedError",
    "MDSWriter",
    "MissingShardError",
    "Segment",
    "StateMismatchError",
    "Stream",
    "prepare",
]


def __getattr__(name: str) -> Any:
    """`stoker.prepare` brings processes and formats along, which a trainer does not need."""
    if name == "prepare":
        from stoker.preparation import prepare

        return prepare
    raise AttributeError(f"module 'stoker' has no attribute {name!r}")
