"""MosaicML Streaming's shuffles (`streaming/base/shuffle`), in place and with the samples themselves.

All draw from numpy's `default_rng`, so numpy has to draw in the same order as the reference. What needs no drawing is
done on whole arrays.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from stoker.streaming_order.sampling import Samples, Units
from stoker.streaming_order.windows import WindowSort

SHUFFLE_ALGOS = ("py1e", "py1br", "py1s", "py2s", "naive")

_WIDENED = 1 << 24  # samples; numpy shuffles int64 the fastest, up to here for 128 MiB
_CHUNK = 1 << 15  # positions drawn at a time


def shuffle(algo: str, units: Units, *, canonical_nodes: int, seed: int, epoch: int, block: int) -> Samples:
    """Shuffles the samples of an epoch, or of one stream of it.

    Args:
        algo: One of `SHUFFLE_ALGOS`.
        units: The samples.
        canonical_nodes: Parts that are shuffled by themselves.
        seed: Seeds what stays the same in all epochs.
        epoch: Seeds the rest, together with `seed`.
        block: Samples that are shuffled together, about; of py1e and py1br.

    Returns:
        samples (num_draws,): of draw 0, draw 1, ...; of the type of `units.drawn`.

    Raises:
        ValueError: `block` is too small for its algorithm; or, of py1e, a canonical node has no samples.
    """
    smallest = {"py1br": 2, "py1e": 1}.get(algo, 0)
    if block < smallest:
        raise ValueError(f"a shuffle block of {block} samples is too small for {algo!r}, which needs {smallest}.")
    out = np.empty(int(units.sizes.sum()), units.drawn.dtype)
    rng = np.random.default_rng(seed + epoch)
    if algo == "naive":
        _Pieces.cut(units, np.arange(len(units.sizes)), 1).fill(out)
        _shuffle_in_place(rng, out)
        return out
    order = np.arange(len(units.sizes))
    fixed_rng = np.random.default_rng(seed)
    fixed_rng.shuffle(order)
    pieces = _Pieces.cut(units, order, canonical_nodes)
    if algo == "py2s":
        _py2s(rng, fixed_rng, pieces, order, out)
        return out
    for node in range(canonical_nodes):
        rng.shuffle(pieces.of_node(node))
    {"py1s": _py1s, "py1br": _py1br, "py1e": _py1e}[algo](rng, pieces, out, block)
    return out


@dataclass(frozen=True)
class _Pieces:
    """Units, cut where canonical nodes end, in an order.

    Attributes:
        units: The units.
        unit: (num_pieces,) the unit of each piece.
        offset: (num_pieces,) its first sample in the unit.
        size: (num_pieces,) its samples.
        order: (num_pieces,) which piece stands at each place. Shuffled in place.
        node_pieces: (canonical_nodes + 1,) places at which the nodes begin.
        node_samples: (canonical_nodes + 1,) draws at which the nodes begin.
    """

    units: Units
    unit: NDArray[np.int64]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    order: NDArray[np.int64]
    node_pieces: NDArray[np.int64]
    node_samples: NDArray[np.int64]

    @classmethod
    def cut(cls, units: Units, order: NDArray[np.int64], canonical_nodes: int) -> _Pieces:
        """Cuts units that stand in an order into parts of even size."""
        ends = units.sizes[order].cumsum()
        node_samples = np.arange(canonical_nodes + 1, dtype=np.int64) * ends[-1] // canonical_nodes
        bounds = np.union1d(ends, node_samples)
        begins = bounds[:-1]
        places = np.searchsorted(ends, begins, side="right")
        return cls(
            units=units,
            unit=order[places],
            offset=begins - (ends - units.sizes[order])[places],
            size=np.diff(bounds),
            order=np.arange(len(begins)),
            node_pieces=np.searchsorted(begins, node_samples),
            node_samples=node_samples,
        )

    def of_node(self, node: int) -> NDArray[np.int64]:
        """The pieces of a canonical node, in order; a view."""
        return self.order[self.node_pieces[node] : self.node_pieces[node + 1]]

    def sizes_of_node(self, node: int) -> list[int]:
        """Samples of each of them."""
        sizes: list[int] = self.size[self.of_node(node)].tolist()
        return sizes

    def samples_of_node(self, node: int, out: Samples) -> Samples:
        """The part of `out` that is a canonical node's; a view."""
        return out[self.node_samples[node] : self.node_samples[node + 1]]

    def views(self, out: Samples) -> Iterator[Samples]:
        """Writes piece after piece to `out`, and gives each where it was written."""
        begin = 0
        units, offsets, sizes = (array[self.order].tolist() for array in (self.unit, self.offset, self.size))
        for unit, offset, size in zip(units, offsets, sizes, strict=True):
            view = out[begin : begin + size]
            self.units.fill(view, unit, offset)
            yield view
            begin += size

    def fill(self, out: Samples) -> None:
        """Writes piece after piece to `out`."""
        for _ in self.views(out):
            pass


def _shuffle_in_place(rng: np.random.Generator, samples: Samples) -> None:
    """`rng.shuffle(samples)`, which draws the same whatever the type is."""
    if samples.dtype == np.int64 or len(samples) > _WIDENED:
        rng.shuffle(samples)
    else:
        wide = samples.astype(np.int64)
        rng.shuffle(wide)
        samples[:] = wide


def _py1s(rng: np.random.Generator, pieces: _Pieces, out: Samples, block: int) -> None:
    """Shuffles each piece by itself."""
    for view in pieces.views(out):
        _shuffle_in_place(rng, view)


def _py1br(rng: np.random.Generator, pieces: _Pieces, out: Samples, block: int) -> None:
    """Shuffles blocks of random size, staggered in each node, of the pieces of a canonical node."""
    pieces.fill(out)
    low, high = int(0.75 * block), int(1.25 * block)
    num_nodes = len(pieces.node_samples) - 1
    for node, stagger in enumerate(rng.integers(0, low, num_nodes).tolist()):
        samples = pieces.samples_of_node(node, out)
        ranges = []
        end = 0
        while end < len(samples):
            size = int(rng.integers(low, high))
            begin, stop = max(end - stagger, 0), min(end + size - stagger, len(samples))
            ranges.append((begin, stop))
            end += stop - begin  # not the end of the range: the reference's ranges overlap
        for begin, stop in ranges:
            _shuffle_in_place(rng, samples[begin:stop])


def _py1e(rng: np.random.Generator, pieces: _Pieces, out: Samples, block: int) -> None:
    """Shuffles each piece, then moves each sample by a random distance, within a block around its piece."""
    views = pieces.views(out)
    num_nodes = len(pieces.node_samples) - 1
    warned = False
    for node in range(num_nodes):
        samples = pieces.samples_of_node(node, out)
        if not len(samples):
            raise ValueError(
                "The number of samples assigned to a canonical node is 0. This very likely indicates that the number "
                f"of samples in this stream is less than the number of canonical nodes, which is {num_nodes}. Please "
                "check your index.json file and ensure that your dataset has been written out correctly. If this was "
                "intended, reduce num_canonical_nodes."
            )
        sizes = pieces.sizes_of_node(node)
        for view in islice(views, len(sizes)):
            _shuffle_in_place(rng, view)
        shards_are_larger = _move(rng, samples, sizes, block)
        if shards_are_larger and not warned:
            warned = True
            warnings.warn(
                "Shuffle block size was smaller than shard size for some shards. This will result in these shards not "
                "being shuffled with other shards. Set shuffle_block_size to a larger value for a higher quality "
                "shuffle.",
                stacklevel=2,
            )


def _move(rng: np.random.Generator, samples: Samples, sizes: list[int], block: int) -> bool:
    """Moves the samples of a canonical node, which stand piece by piece; True where one is larger than its block."""
    low, high = int(0.75 * block), int(1.25 * block)
    sort = WindowSort(samples)
    buffer = np.empty(min(len(samples), _CHUNK))
    begin = taken = buffered = 0  # where the piece begins; positions given to the sort; positions in the buffer
    is_larger = False
    for size in sizes:
        distance = (int(rng.integers(low, high)) - size) / 2
        is_larger |= distance < 0
        distance = max(distance, 0.0)
        lowest, highest = max(-distance, -begin), min(distance, len(samples) - begin - size)
        begin += size
        while taken + buffered < begin:
            positions = buffer[buffered : buffered + begin - taken - buffered]
            rng.random(out=positions)
            positions *= highest - lowest
            positions += lowest
            buffered += len(positions)
            if buffered == len(buffer) or taken + buffered == len(samples):
                positions = buffer[:buffered]
                positions += np.arange(taken, taken + buffered)
                sort.add(positions, samples[taken : taken + buffered])
                taken += buffered
                buffered = 0
                sort.write(taken - high / 2)
    sort.finish()
    return is_larger


def _py2s(
    rng: np.random.Generator,
    fixed_rng: np.random.Generator,
    pieces: _Pieces,
    order: NDArray[np.int64],
    out: Samples,
) -> None:
    """Shuffles each unit, in the order in which they stand; then the pieces of each node, and each by itself."""
    for view in _Pieces.cut(pieces.units, order, 1).views(out):
        _shuffle_in_place(fixed_rng, view)
    for node in range(len(pieces.node_samples) - 1):
        samples = pieces.samples_of_node(node, out)
        before = samples.copy()
        ends = pieces.size[pieces.of_node(node)].cumsum()
        shuffled = np.arange(len(ends))
        rng.shuffle(shuffled)
        begin = 0
        for source_begin, source_end in zip(
            np.append(0, ends)[shuffled].tolist(), ends[shuffled].tolist(), strict=True
        ):
            view = samples[begin : begin + source_end - source_begin]
            view[:] = before[source_begin:source_end]
            _shuffle_in_place(rng, view)
            begin += len(view)
