"""MosaicML Streaming's sample order, bit for bit, without its arrays over all samples.

`StreamingOrder(...).epoch(epoch, sample_in_epoch, world).rank(rank).samples(begin, end)` are the samples that a rank
gets, numbered over all shards of all streams; `StreamingOrder.locate` says where they lie.
"""

from __future__ import annotations

from stoker.streaming_order.epoch import EpochOrder, RankOrder
from stoker.streaming_order.order import Places, StreamingOrder
from stoker.streaming_order.settings import StreamingSettings
from stoker.streaming_order.world import World

__all__ = ["EpochOrder", "Places", "RankOrder", "StreamingOrder", "StreamingSettings", "World"]
