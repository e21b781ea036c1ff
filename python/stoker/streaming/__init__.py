"""MosaicML Streaming's names, on stoker's parts: `import stoker.streaming as streaming` runs what was written for it.

docs/streaming.md tells what is the same, and what is not there. Needs torch.
"""

from __future__ import annotations

from typing import Any

from stoker.streaming import base
from stoker.streaming.dataloader import StreamingDataLoader
from stoker.streaming.dataset import StreamingDataset
from stoker.streaming.local import LocalDataset
from stoker.streaming.merging import merge_index
from stoker.streaming.stream import Stream
from stoker.writer import MDSWriter

__all__ = ["LocalDataset", "MDSWriter", "Stream", "StreamingDataLoader", "StreamingDataset", "base", "merge_index"]

_WRITERS = ("CSVWriter", "JSONWriter", "TSVWriter", "XSVWriter")
_DATASETS = ("multimodal", "text", "vision")


def __getattr__(name: str) -> Any:
    """
    Raises:
        ImportError: MosaicML Streaming has the name, and stoker has not.
        AttributeError: Neither has.
    """
    if name in _WRITERS:
        raise ImportError(f"stoker.streaming has no {name}: write MDS shards, by MDSWriter.")
    if name in _DATASETS:
        raise ImportError(
            f"stoker.streaming has no {name}: its classes are a StreamingDataset and a few lines in __getitem__, which "
            "can be copied from MosaicML Streaming."
        )
    raise AttributeError(f"module 'stoker.streaming' has no attribute {name!r}")
