"""Which samples make up a batch: MosaicML Streaming's batching methods (`streaming/base/batching`)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stoker.streaming_order.partition import Grid, Partition
from stoker.streaming_order.sampling import Draws, Samples

BATCHING_METHODS = ("random", "stratified", "per_stream", "device_per_stream")


@dataclass(frozen=True)
class Line:
    """The samples of one stream, or of all, in the order of turns.

    Attributes:
        partition: Gives the draw of a turn.
        source: Gives the sample of a draw: samples in the order of draws, where they are shuffled.
    """

    partition: Partition
    source: Draws | Samples

    def samples(self, turns: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples of turns; same shape."""
        draws = self.partition.draws(turns)
        return self.source.samples(draws) if isinstance(self.source, Draws) else self.source[draws].astype(np.int64)


class Batches(Protocol):
    """The batches of each device. Devices are numbered node by node."""

    def num_full(self, device: int) -> int:
        """Full batches of a device."""
        ...

    def full(self, device: int, begin: int, end: int) -> NDArray[np.int64]:
        """Samples of full batches begin to end, exclusive: (end - begin, batch_size) int64."""
        ...

    def last(self, device: int) -> NDArray[np.int64]:
        """Samples of the batch after them, which is not full; maybe none."""
        ...


class RandomBatches:
    """Global batches of whatever stands next in the line of all streams."""

    def __init__(self, line: Line, grid: Grid, *, dealt: Grid) -> None:
        self._line = line
        self._dealt = dealt
        self._grid = grid

    def num_full(self, device: int) -> int:
        return self._line.partition.size // self._grid.global_batch

    def full(self, device: int, begin: int, end: int) -> NDArray[np.int64]:
        return self._line.samples(np.arange(begin, end)[:, None] * self._grid.global_batch + self._turns(device))

    def last(self, device: int) -> NDArray[np.int64]:
        turns = self._turns(device) + self.num_full(device) * self._grid.global_batch
        return self._line.samples(turns[turns < self._line.partition.size])

    def _turns(self, device: int) -> NDArray[np.int64]:
        """The turns of a device's part of a global batch."""
        first = device * self._grid.batch_size
        return self._dealt.turns(np.arange(first, first + self._grid.batch_size))


class StratifiedBatches:
    """Global batches with the same number of samples of each stream, stream by stream."""

    def __init__(self, lines: Sequence[Line], grid: Grid, *, proportion: Sequence[float], first: int) -> None:
        self._lines = lines
        self._grid = grid
        self._first = first
        size = grid.global_batch
        self._parts = parts = np.array([int(p * size) for p in proportion])
        left_over = size * np.array(proportion) - parts
        parts[np.argsort(left_over, kind="stable")[::-1][: size - int(parts.sum())]] += 1
        for stream, part in enumerate(parts.tolist()):
            if part <= 0:
                raise ValueError(
                    f"Number of samples for stream {stream} is {part} because the portion of this stream in the "
                    f"global batch, which is of size {size}, is too low. Please increase the global batch size or "
                    f"increase the proportion of total samples that come from stream {stream}."
                )
            if lines[stream].partition.size % part:
                _warn_of_drop("stratified", stream, "are being")
        counts = (line.partition.size // part for line, part in zip(lines, parts.tolist(), strict=True))
        self._num_batches: int = min(counts)

    def num_full(self, device: int) -> int:
        return max(0, self._num_batches - self._first)

    def full(self, device: int, begin: int, end: int) -> NDArray[np.int64]:
        first = device * self._grid.batch_size
        batches = self._first + np.arange(begin, end)[:, None]
        stream_end = 0
        parts = []
        for line, part in zip(self._lines, self._parts.tolist(), strict=True):
            stream_begin, stream_end = stream_end, stream_end + part
            places = np.arange(max(first, stream_begin), min(first + self._grid.batch_size, stream_end)) - stream_begin
            if len(places):
                parts.append(line.samples(batches * part + places))
        return np.concatenate(parts, axis=1)

    def last(self, device: int) -> NDArray[np.int64]:
        return np.empty(0, np.int64)


class PerStreamBatches:
    """Global batches of one stream each, in an order that is drawn."""

    def __init__(self, lines: Sequence[Line], grid: Grid, *, dealt: Grid, first: int, rng: np.random.Generator) -> None:
        self._lines = lines
        self._dealt = dealt
        self._grid = grid
        self._first = first
        counts = []
        for stream, line in enumerate(lines):
            count, rest = divmod(line.partition.size, grid.global_batch)
            if not count:
                raise ValueError(
                    f"Stream with index {stream} does not have an adequate number of samples to construct a complete "
                    "global batch. Training will occur without any samples from this stream."
                )
            if rest:
                _warn_of_drop("per_stream", stream, "will be")
            counts.append(count)
        self._mix = _Mix(counts, rng)

    def num_full(self, device: int) -> int:
        return max(0, len(self._mix) - self._first)

    def full(self, device: int, begin: int, end: int) -> NDArray[np.int64]:
        first = device * self._grid.batch_size
        columns = self._dealt.turns(np.arange(first, first + self._grid.batch_size))
        out = np.empty((end - begin, self._grid.batch_size), np.int64)
        for stream, at, batches in self._mix.by_stream(np.arange(self._first + begin, self._first + end)):
            out[at] = self._lines[stream].samples(batches[:, None] * self._grid.global_batch + columns)
        return out

    def last(self, device: int) -> NDArray[np.int64]:
        return np.empty(0, np.int64)


class DevicePerStreamBatches:
    """Batches of one stream each, in an order that is drawn for each node.

    The lines are dealt to the canonical nodes, one sample at a time; each node takes its own of them.
    """

    def __init__(
        self,
        lines: Sequence[Line],
        grid: Grid,
        *,
        canonical_nodes: int,
        first: int,
        rng: np.random.Generator,
    ) -> None:
        self._lines = lines
        self._grid = grid
        self._first = first
        self._canonical = Grid(canonical_nodes, grid.ranks_per_node, 1)
        counts = []
        for stream, line in enumerate(lines):
            count, rest = divmod(line.partition.size // grid.nodes, grid.batch_size)
            if not count:
                raise ValueError(
                    f"Stream with index {stream} does not have an adequate number of samples to construct even a "
                    f"single device batch of size {grid.batch_size}. Training will occur without any samples from "
                    "this stream!"
                )
            if rest:
                _warn_of_drop("device_per_stream", stream, "will be")
            counts.append(count)
        self._mixes = [_Mix(counts, rng) for _ in range(grid.nodes)]

    def num_full(self, device: int) -> int:
        row, node = divmod(device, self._grid.nodes)
        return max(0, -(-(len(self._mixes[node]) - row) // self._grid.ranks_per_node) - self._first)

    def full(self, device: int, begin: int, end: int) -> NDArray[np.int64]:
        row, node = divmod(device, self._grid.nodes)
        rows = np.arange(self._first + begin, self._first + end) * self._grid.ranks_per_node + row
        out = np.empty((end - begin, self._grid.batch_size), np.int64)
        columns = self._canonical.global_batch // self._grid.nodes  # of a node
        for stream, at, batches in self._mixes[node].by_stream(rows):
            places = batches[:, None] * self._grid.batch_size + np.arange(self._grid.batch_size)
            passes, column = np.divmod(places, columns)
            turns = passes * self._canonical.global_batch + self._canonical.turns(node * columns + column)
            out[at] = self._lines[stream].samples(turns)
        return out

    def last(self, device: int) -> NDArray[np.int64]:
        return np.empty(0, np.int64)


class _Mix:
    """Batches of several streams in an order that is drawn; those of one stream stay in order."""

    def __init__(self, counts: Sequence[int], rng: np.random.Generator) -> None:
        self._streams = np.repeat(np.arange(len(counts), dtype=np.min_scalar_type(len(counts))), counts)
        rng.shuffle(self._streams)
        self._of_stream = np.empty(len(self._streams), np.min_scalar_type(max(counts)))
        for stream, count in enumerate(counts):
            self._of_stream[self._streams == stream] = np.arange(count)

    def __len__(self) -> int:
        return len(self._streams)

    def by_stream(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """For each stream among these rows: the stream, which of the rows are its, and which batches of it."""
        streams = self._streams[rows]
        for stream in np.unique(streams).tolist():
            at = np.flatnonzero(streams == stream)
            yield stream, at, self._of_stream[rows[at]].astype(np.int64)


def _warn_of_drop(method: str, stream: int, tense: str) -> None:
    warnings.warn(
        f"Because of the `{method}` batching method, some batches with an inadequate number of samples from stream "
        f"with index {stream} {tense} dropped.",
        stacklevel=2,
    )
