"""MosaicML Streaming's sample order, from what determines it."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stoker.streaming_order.batching import (
    BATCHING_METHODS,
    Batches,
    DevicePerStreamBatches,
    Line,
    PerStreamBatches,
    RandomBatches,
    StratifiedBatches,
)
from stoker.streaming_order.epoch import EpochOrder
from stoker.streaming_order.partition import PARTITION_ALGOS, Grid, Partition, deal
from stoker.streaming_order.sampling import Draws, quotas, sample_dtype
from stoker.streaming_order.shuffles import SHUFFLE_ALGOS, shuffle
from stoker.streaming_order.world import World

SAMPLING_METHODS = ("balanced", "fixed")

_MIN_BLOCK = 1 << 18
_BLOCKS = 4_000_000  # samples of the blocks of all canonical nodes together


class Places(NamedTuple):
    """Where samples lie, an array each of the same shape.

    Attributes:
        streams: int64, the stream.
        shards: int64, the shard in it.
        samples: int64, the sample in the shard.
    """

    streams: NDArray[np.int64]
    shards: NDArray[np.int64]
    samples: NDArray[np.int64]


class _Epoch(NamedTuple):
    """What one epoch is made from, beside the settings."""

    epoch: int
    sample_in_epoch: int
    grid: Grid
    canonical_nodes: int
    block: int
    initial_nodes: int | None


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamingOrder:
    """The order in which MosaicML Streaming 0.13 delivers samples, bit for bit.

    Differs from the reference where that is not a function of its settings: where two sort keys are equal, py1e goes by
    the order before the sort, and `stratified` gives what is left over to the later stream.

    Attributes:
        shard_sizes: Samples of each shard in the order of the index, stream by stream.
        choose: Samples of each stream in an epoch; see `stoker.mixture.counts_per_epoch`.
        proportion: Share of each stream in the epoch; see `stoker.mixture.proportions_per_epoch`. Default: as chosen.
        sampling_method: "balanced" draws other samples in each epoch, "fixed" the same.
        sampling_granularity: Samples of a shard that are picked at a time.
        partition_algo: "relaxed" lets a run go on with nodes that do not go with the canonical nodes, "orig" does not.
        num_canonical_nodes: Parts of the order. Default: 64 a node for py1s and py2s, else 1 a node. A run that goes on
            needs that of its beginning.
        shuffle: Whether samples are shuffled.
        shuffle_algo: "py1e", "py1br", "py1s", "py2s" or "naive".
        shuffle_seed: Of all randomness.
        shuffle_block_size: Samples that are shuffled together, about. Default: 4,000,000 over all canonical nodes, at
            least 262,144.
        batching_method: "random", "stratified", "per_stream" or "device_per_stream".
        batch_size: Samples of a batch of a rank.

    Raises:
        ValueError: A setting breaks its rule; the message says which and what was found.
    """

    shard_sizes: Sequence[Sequence[int]]
    choose: Sequence[int]
    proportion: Sequence[float] | None = None
    sampling_method: str = "balanced"
    sampling_granularity: int = 1
    partition_algo: str = "relaxed"
    num_canonical_nodes: int | None = None
    shuffle: bool = False
    shuffle_algo: str = "py1e"
    shuffle_seed: int = 9176
    shuffle_block_size: int | None = None
    batching_method: str = "random"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for name, what, known in (
            ("sampling_method", "sampling method", SAMPLING_METHODS),
            ("batching_method", "batching method", BATCHING_METHODS),
            ("partition_algo", "partition algorithm", PARTITION_ALGOS),
            ("shuffle_algo", "shuffle algorithm", SHUFFLE_ALGOS),
        ):
            if getattr(self, name) not in known:
                *most, last = (f"`{k}`" for k in known)
                names = f"{', '.join(most)}{',' if len(most) > 1 else ''} or {last}"
                raise ValueError(f"Invalid {what}: {getattr(self, name)}. Must be one of {names}.")
        if self.batch_size is None:
            raise ValueError(
                "Please pass `batch_size` to StreamingDataset. It should be set the same as the DataLoader, and is the "
                "number of samples per batch, for each device. It is necessary for deterministic resumption and "
                "optimal performance."
            )
        for name, low in (("sampling_granularity", 1), ("shuffle_seed", 0), ("batch_size", 1)):
            self._set(name, _integer(name, getattr(self, name), low))
        if self.num_canonical_nodes is not None:
            self._set("num_canonical_nodes", _integer("num_canonical_nodes", self.num_canonical_nodes, 1))
        if self.shuffle_block_size is not None:
            if not isinstance(self.shuffle_block_size, (int, np.integer)):
                raise ValueError(
                    "Dataset `shuffle_block_size` must be an integer. Got "
                    f"{type(self.shuffle_block_size).__name__} instead."
                )
            self._set("shuffle_block_size", _integer("shuffle_block_size", self.shuffle_block_size, 0))
        self._check_streams()

    def _check_streams(self) -> None:
        self._set("choose", tuple(_integer("choose", count, 0) for count in self.choose))
        total = self.epoch_size
        if not total:
            raise ValueError(f"choose is {list(self.choose)}: an epoch must have at least one sample.")
        if self.proportion is None:
            self._set("proportion", tuple(count / total for count in self.choose))
        else:
            self._set("proportion", tuple(float(share) for share in self.proportion))
            if not all(0 <= share < math.inf for share in self._shares):
                raise ValueError(f"proportion is {list(self._shares)}: shares are numbers of at least 0.")
        counts = len(self.shard_sizes), len(self.choose), len(self._shares)
        if len(set(counts)) > 1:
            raise ValueError(
                f"there are shard_sizes of {counts[0]} streams, choose of {counts[1]} and proportion of {counts[2]}: "
                "each stream has one of each."
            )
        self._set("shard_sizes", tuple(_check_sizes(stream, sizes) for stream, sizes in enumerate(self.shard_sizes)))

    @property
    def epoch_size(self) -> int:
        """Samples of an epoch, before some come twice so that all ranks get as many."""
        return sum(self.choose)

    def locate(self, samples: NDArray[np.int64]) -> Places:
        """Where samples lie that are numbered over all shards of all streams.

        Raises:
            ValueError: A number is not one of a sample.
        """
        if samples.size and not 0 <= int(samples.min()) <= int(samples.max()) < self._shard_bounds[-1]:
            raise ValueError(f"samples are not all within the {self._shard_bounds[-1]} samples of the streams.")
        shards = np.searchsorted(self._shard_bounds[1:], samples, side="right")
        streams = np.searchsorted(self._stream_bounds[1:], shards, side="right")
        return Places(streams, shards - self._stream_bounds[streams], samples - self._shard_bounds[shards])

    def epoch(
        self,
        epoch: int,
        sample_in_epoch: int,
        world: World,
        initial_physical_nodes: int | None = None,
    ) -> EpochOrder:
        """Makes the order of one epoch; shuffles it where it is to be.

        Args:
            epoch: From 0 on.
            sample_in_epoch: Samples of the epoch that were delivered before, over all ranks. `random` goes on behind
                them, rounded down to whole nodes; the others behind the last whole global batch in them.
            world: The ranks at hand.
            initial_physical_nodes: Nodes that the run began with, from its state; None: those at hand.

        Raises:
            ValueError: The settings do not go with each other, or with `world`, or there are too few samples.
        """
        epoch = _integer("epoch", epoch, 0)
        sample_in_epoch = _integer("sample_in_epoch", sample_in_epoch, 0)
        if initial_physical_nodes is not None:
            initial_physical_nodes = _integer("initial_physical_nodes", initial_physical_nodes, 1)
        if world.replication > 1 and sample_in_epoch:
            warnings.warn(
                f"The `replication` arg has been set to {world.replication} and training is resuming from sample "
                f"{sample_in_epoch}. Make sure you are accounting for sample replication when using "
                "StreamingDataset's `state_dict` method for deterministic resumption. Otherwise, you will resume "
                "training from the wrong sample.",
                stacklevel=2,
            )
        canonical_nodes = self.canonical_nodes(world)
        block = self.block_size(world)
        grid = Grid(world.nodes, world.ranks_per_node, self._rank_batch)
        at = _Epoch(epoch, sample_in_epoch, grid, canonical_nodes, block, initial_physical_nodes)
        batches = self._random(at) if self.batching_method == "random" else self._by_stream(at)
        return EpochOrder(epoch, sample_in_epoch, world, canonical_nodes, block, batches, self._rank_batch)

    def canonical_nodes(self, world: World) -> int:
        """`num_canonical_nodes`, the default resolved."""
        if self.num_canonical_nodes is not None:
            return self.num_canonical_nodes
        return world.nodes * (64 if self.shuffle_algo in ("py1s", "py2s") else 1)

    def block_size(self, world: World) -> int:
        """`shuffle_block_size`, the default resolved."""
        if self.shuffle_block_size is not None:
            return self.shuffle_block_size
        return max(_BLOCKS // self.canonical_nodes(world), _MIN_BLOCK)

    def _random(self, at: _Epoch) -> Batches:
        partition, dealt = deal(
            self.partition_algo,
            self.epoch_size,
            canonical_nodes=at.canonical_nodes,
            grid=at.grid,
            drop_first=at.sample_in_epoch,
            initial_nodes=at.initial_nodes,
        )
        return RandomBatches(self._line(partition, range(len(self.choose)), at.epoch, at.block), at.grid, dealt=dealt)

    def _by_stream(self, at: _Epoch) -> Batches:
        """Batches by a method that deals each stream by itself, and drops what was delivered at the end."""
        method = self.batching_method
        if method == "device_per_stream" and at.canonical_nodes % at.grid.nodes:
            raise ValueError(
                "For `device_per_stream` batching, num_canonical_nodes must be divisible by physical nodes. Got "
                f"{at.canonical_nodes} canonical nodes and {at.grid.nodes} physical nodes."
            )
        global_batch = at.grid.global_batch
        first, rest = divmod(at.sample_in_epoch, global_batch)
        if rest:
            warnings.warn(
                f"Because of the `{method}` batching method, resumption may only occur on a sample that is a multiple "
                f"of the current global batch size of {global_batch}. Resuming training after the most recently "
                "finished global batch."
                + (
                    f" Set {global_batch} to the original value for deterministic resumption."
                    * (method == "stratified")
                ),
                stacklevel=2,
            )
        grid = {
            "stratified": Grid(1, at.grid.ranks_per_node, 1),
            "per_stream": at.grid,
            "device_per_stream": Grid(at.canonical_nodes, at.grid.ranks_per_node, 1),
        }[method]
        lines = []
        dealt = grid
        for stream, (count, share) in enumerate(zip(self.choose, self._shares, strict=True)):
            partition, dealt = deal(
                self.partition_algo,
                count,
                canonical_nodes=at.canonical_nodes,
                grid=grid,
                initial_nodes=at.initial_nodes,
            )
            block = int(at.block * share)
            if method == "device_per_stream" and self.shuffle and not block:
                raise ValueError(
                    f"Samples from stream {stream} are not being used. Please either increase the "
                    f"`shuffle_block_size` from {at.block}, or increase the stream proportion from {share}."
                )
            lines.append(self._line(partition, range(stream, stream + 1), at.epoch, block))
        if method == "stratified":
            return StratifiedBatches(lines, at.grid, proportion=self._shares, first=first)
        rng = np.random.default_rng(self._seed(at.epoch, self._reseeds))
        if method == "per_stream":
            return PerStreamBatches(lines, at.grid, dealt=dealt, first=first, rng=rng)
        return DevicePerStreamBatches(lines, at.grid, canonical_nodes=at.canonical_nodes, first=first, rng=rng)

    def _line(self, partition: Partition, streams: range, epoch: int, block: int) -> Line:
        """The samples of streams in the order in which they are dealt."""
        draws = self._draws(streams, epoch)
        if not self.shuffle:
            return Line(partition, draws)
        samples = shuffle(
            self.shuffle_algo,
            draws.units(),
            canonical_nodes=partition.canonical_nodes,
            seed=self.shuffle_seed,
            epoch=epoch,
            block=block,
        )
        return Line(partition, samples)

    def _draws(self, streams: range, epoch: int) -> Draws:
        """What an epoch draws from streams that follow each other."""
        sizes = [self._sizes[stream] for stream in streams]
        of_shards = [
            quotas(
                of_stream,
                self.choose[stream],
                granularity=self.sampling_granularity,
                seed=self._seed(epoch, self._reseeds),
            )
            for stream, of_stream in zip(streams, sizes, strict=True)
        ]
        return Draws(
            np.concatenate(sizes),
            self._shard_bounds[self._stream_bounds[streams.start] : self._stream_bounds[streams.stop]],
            np.concatenate(of_shards),
            rng=np.random.default_rng(self._seed(epoch, self.sampling_method == "balanced")),
            dtype=sample_dtype(int(self._shard_bounds[-1])),
        )

    def _seed(self, epoch: int, changes: bool) -> int:
        return self.shuffle_seed + (epoch if changes else 0)

    @property
    def _reseeds(self) -> bool:
        """Whether epochs differ in more than the samples drawn of a shard."""
        return self.shuffle and self.sampling_method == "balanced"

    @property
    def _shares(self) -> Sequence[float]:
        return self.proportion or ()

    @property
    def _rank_batch(self) -> int:
        return self.batch_size or 0

    @cached_property
    def _sizes(self) -> list[NDArray[np.int64]]:
        return [np.asarray(sizes, np.int64) for sizes in self.shard_sizes]

    @cached_property
    def _shard_bounds(self) -> NDArray[np.int64]:
        """Samples before each shard, over all streams, and in all."""
        return np.cumsum(np.concatenate([np.zeros(1, np.int64), *self._sizes]))

    @cached_property
    def _stream_bounds(self) -> NDArray[np.int64]:
        """Shards before each stream, and in all."""
        return np.cumsum([0, *(len(sizes) for sizes in self._sizes)])

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def _integer(name: str, value: object, low: int) -> int:
    """A whole number of at least `low`, which is 0 or 1."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or number < low:
        raise ValueError(f"`{name}` must be a {'positive' if low else 'non-negative'} integer, but got: {value!r}.")
    return number


def _check_sizes(stream: int, sizes: Sequence[int]) -> NDArray[np.int64]:
    """A stream's shard sizes as an array of its own."""
    array = np.array(sizes)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu") or (array < 0).any():
        raise ValueError(f"shard_sizes of stream {stream} are not whole numbers of at least 0.")
    if not array.sum():
        raise ValueError(f"Stream contains no samples: stream {stream}.")
    return array.astype(np.int64)
