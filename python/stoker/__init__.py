"""stoker feeds language-model training: it mixes MDS token streams into batches from a C++ core."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stoker.errors import CorruptShardError, LoaderClosedError, MissingShardError, StateMismatchError
from stoker.loader import DataLoader, Segment
from stoker.stream import Stream
from stoker.streaming_order import StreamingSettings
from stoker.writer import MDSWriter

if TYPE_CHECKING:
    from stoker.fetching import fetch
    from stoker.inspection import inspect
    from stoker.merging import merge
    from stoker.preparation import prepare
    from stoker.totals import count_tokens
    from stoker.verification import verify

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
    "StreamingSettings",
    "count_tokens",
    "fetch",
    "inspect",
    "merge",
    "prepare",
    "verify",
]

# What the commands do. They bring processes, formats and stores along, which a trainer does not need.
_MODULES = {
    "count_tokens": "stoker.totals",
    "fetch": "stoker.fetching",
    "inspect": "stoker.inspection",
    "merge": "stoker.merging",
    "prepare": "stoker.preparation",
    "verify": "stoker.verification",
}


def __getattr__(name: str) -> Any:
    """Functions of the commands, when they are first asked for."""
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'stoker' has no attribute {name!r}")
