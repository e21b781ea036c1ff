"""Which samples an epoch draws: MosaicML Streaming's `get_sampling` and `StreamingDataset.resample_streams`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.uint32 | np.int64]

_CHUNK = 1 << 16  # picks; small enough to stay in a core's cache


def sample_dtype(num_samples: int) -> type[np.uint32] | type[np.int64]:
    """The smallest type of arrays that hold a sample each."""
    return np.uint32 if num_samples <= 1 << 32 else np.int64


def quotas(sizes: NDArray[np.int64], choose: int, *, granularity: int, seed: int) -> NDArray[np.int64]:
    """Works out how many samples of each shard make up `choose` samples of their stream.

    Whole passes are even. What is left is picked `granularity` samples at a time, in an order drawn by `seed`.

    Args:
        sizes: Samples of each shard, at least one in all.
        choose: Samples to draw from the stream.
        granularity: Samples picked at a time, at least 1.
        seed: Seeds the draw, the epoch added where it changes from epoch to epoch.

    Returns:
        quotas (num_shards,) int64, of sum `choose`.
    """
    passes, left = divmod(choose, int(sizes.sum()))
    out = sizes * passes
    if not left:
        return out
    num_picks = -(-sizes // granularity)
    last_pick = sizes - (num_picks - 1) * granularity
    last_pick[:-1][sizes[1:] == 0] = granularity  # as the reference has it before an empty shard
    ends = num_picks.cumsum()
    order = np.arange(ends[-1], dtype=sample_dtype(int(ends[-1])))
    np.random.default_rng(seed).shuffle(order)
    for begin in range(0, len(order), _CHUNK):
        picks = order[begin : begin + _CHUNK]
        shards = np.searchsorted(ends, picks, side="right")
        picked = np.where(picks == ends[shards] - 1, last_pick[shards], granularity)
        before = picked.cumsum() - picked
        np.add.at(out, shards, np.minimum(picked, left - before).clip(0))
        left -= int(before[-1] + picked[-1])
        if left <= 0:
            break
    return out


class Units(NamedTuple):
    """What a shuffle keeps together: passes of a shard, and what is drawn of it beyond them.

    Attributes:
        sizes: (num_units,) int64, samples of each.
        firsts: (num_units,) int64, the first of a unit of consecutive samples; or the complement (`~`) of a place in
            `drawn`, where its samples begin.
        drawn: Samples of the units that are not consecutive; its type holds any sample.
    """

    sizes: NDArray[np.int64]
    firsts: NDArray[np.int64]
    drawn: Samples

    def fill(self, out: Samples, unit: int, offset: int) -> None:
        """Writes the samples of a unit from `offset` on, as many as `out` has room for."""
        begin = int(self.firsts[unit])
        if begin >= 0:
            out[:] = np.arange(begin + offset, begin + offset + len(out), dtype=out.dtype)
        else:
            out[:] = self.drawn[~begin + offset : ~begin + offset + len(out)]


class Draws:
    """The samples that an epoch draws from some streams, numbered shard by shard; no array over them is made.

    A shard's draws are its samples as often as its quota holds them, then a part of them, drawn and in order. Only
    the latter take memory.

    Args:
        sizes: (num_shards,) int64, samples of each shard.
        begins: (num_shards,) int64, the number of each shard's first sample.
        quotas: (num_shards,) int64, samples to draw of each.
        rng: Draws the parts, shard by shard.
        dtype: Holds any sample.
    """

    def __init__(
        self,
        sizes: NDArray[np.int64],
        begins: NDArray[np.int64],
        quotas: NDArray[np.int64],
        *,
        rng: np.random.Generator,
        dtype: type[np.uint32] | type[np.int64],
    ) -> None:
        self._sizes = np.maximum(sizes, 1)  # an empty shard has quota 0
        self._begins = begins
        self._quotas = quotas
        self._ends = quotas.cumsum()
        self._parts = quotas % self._sizes
        self._part_ends = self._parts.cumsum()
        self._in_one_pass = bool((quotas <= sizes).all())
        self._all_once = bool((quotas == sizes).all())
        self._drawn = np.empty(int(self._part_ends[-1]), dtype)
        for shard in np.flatnonzero(self._parts):
            size, part, end = int(sizes[shard]), int(self._parts[shard]), int(self._part_ends[shard])
            offsets = rng.choice(size, part, replace=False)
            offsets.sort()
            self._drawn[end - part : end] = offsets + begins[shard]

    def samples(self, draws: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples at these places, within [0, sum of quotas); same shape."""
        samples: NDArray[np.int64]
        if self._all_once:
            samples = draws + self._begins[0]
            return samples
        shards = np.searchsorted(self._ends, draws, side="right")
        offsets = draws - (self._ends - self._quotas)[shards]
        in_part = offsets >= (self._quotas - self._parts)[shards]
        samples = self._begins[shards] + (offsets if self._in_one_pass else offsets % self._sizes[shards])
        shards = shards[in_part]
        samples[in_part] = self._drawn[(self._part_ends - self._quotas)[shards] + offsets[in_part]]
        return samples

    def units(self) -> Units:
        """The draws as units of a shuffle, in the same order."""
        passes = self._quotas // self._sizes
        has_part = self._parts > 0
        num_units = passes + has_part
        shards = np.repeat(np.arange(len(passes)), num_units)
        sizes, firsts = self._sizes[shards], self._begins[shards]
        last = (num_units.cumsum() - 1)[has_part]
        sizes[last] = self._parts[has_part]
        firsts[last] = ~(self._part_ends - self._parts)[has_part]
        return Units(sizes, firsts, self._drawn)
