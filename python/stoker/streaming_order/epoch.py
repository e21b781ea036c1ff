"""One epoch of MosaicML Streaming's order, for any of its ranks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stoker.streaming_order.batching import Batches
from stoker.streaming_order.world import World

_CHUNK = 1 << 16  # samples; small enough to stay in a core's cache


@dataclass(frozen=True, eq=False)
class RankOrder:
    """The samples of one rank in one epoch, as the batches that the reference's DataLoader gives it.

    Batch i is the i-th of all its workers together, read round robin. All have `batch_size` samples but the last, which
    may have fewer. Samples are numbered over all shards of all streams. Nothing over them is kept here.

    Attributes:
        batches: The batches of all devices.
        device: The device at hand.
        batch_size: Samples of a full batch.
    """

    batches: Batches
    device: int
    batch_size: int

    def __len__(self) -> int:
        """Samples of the rank."""
        return self._num_in_full + len(self._last)

    @property
    def num_batches(self) -> int:
        """Batches of the rank, the last one included."""
        return -(-len(self) // self.batch_size)

    def batch(self, index: int) -> NDArray[np.int64]:
        """The samples of a batch, counted from where the epoch was resumed.

        Raises:
            ValueError: There is no such batch.
        """
        num_samples = len(self)
        if not 0 <= index * self.batch_size < num_samples:
            raise ValueError(f"batch {index} is not one of the {self.num_batches} batches of this rank.")
        return self.samples(index * self.batch_size, min((index + 1) * self.batch_size, num_samples))

    def samples(self, begin: int, end: int) -> NDArray[np.int64]:
        """Samples begin to end, exclusive, in order: (end - begin,) int64. Takes no memory beyond them.

        Raises:
            ValueError: They are not within the rank's samples.
        """
        if not 0 <= begin <= end <= len(self):
            raise ValueError(f"samples {begin} to {end} are not within the {len(self)} samples of this rank.")
        out = np.empty(end - begin, np.int64)
        chunk = max(1, _CHUNK // self.batch_size)
        in_full = min(end, self._num_in_full)
        for first in range(begin // self.batch_size, -(-in_full // self.batch_size), chunk):
            last = min(first + chunk, -(-in_full // self.batch_size))
            samples = self.batches.full(self.device, first, last).reshape(-1)
            skip = max(0, begin - first * self.batch_size)
            at = first * self.batch_size + skip
            samples = samples[skip : in_full - first * self.batch_size]
            out[at - begin : at - begin + len(samples)] = samples
        if end > self._num_in_full:
            at = max(begin, self._num_in_full)
            out[at - begin :] = self._last[at - self._num_in_full : end - self._num_in_full]
        return out

    @cached_property
    def _num_in_full(self) -> int:
        return self.batches.num_full(self.device) * self.batch_size

    @cached_property
    def _last(self) -> NDArray[np.int64]:
        return self.batches.last(self.device)


@dataclass(frozen=True, eq=False)
class EpochOrder:
    """One epoch's order, from where it was resumed.

    Holds what was shuffled, 4 bytes a sample (8 from 2^32 samples on), and nothing over samples where nothing was.

    Attributes:
        epoch: Its number.
        sample_in_epoch: Samples of the epoch that were delivered before, over all ranks.
        world: The ranks that it is for.
        num_canonical_nodes: Parts of the order; the default resolved.
        shuffle_block_size: Samples that are shuffled together, about; the default resolved.
        batches: The batches of all devices.
        batch_size: Samples of a full batch of a rank.
    """

    epoch: int
    sample_in_epoch: int
    world: World
    num_canonical_nodes: int
    shuffle_block_size: int
    batches: Batches
    batch_size: int

    def rank(self, rank: int) -> RankOrder:
        """The order of one rank.

        Args:
            rank: Of the trainer, so counted without replication.

        Raises:
            ValueError: There is no such rank.
        """
        num_ranks = self.world.num_ranks * self.world.replication
        if not 0 <= rank < num_ranks:
            raise ValueError(f"rank is {rank}: it must be a whole number from 0 to {num_ranks - 1}.")
        return RankOrder(self.batches, rank // self.world.replication, self.batch_size)
