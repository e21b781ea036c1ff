"""What is imported from `streaming.base`."""

from __future__ import annotations

from stoker.streaming.base import format, util
from stoker.streaming.dataloader import StreamingDataLoader
from stoker.streaming.dataset import StreamingDataset
from stoker.streaming.local import LocalDataset
from stoker.streaming.stream import Stream
from stoker.writer import MDSWriter

__all__ = ["LocalDataset", "MDSWriter", "Stream", "StreamingDataLoader", "StreamingDataset", "format", "util"]
