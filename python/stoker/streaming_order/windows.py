"""Sorts samples by positions near the places that they come from, a window of positions at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stoker.streaming_order.sampling import Samples

_WINDOW_BITS = 15  # positions of a window; its keys stay in a core's cache
_MAX_WINDOWS = 1 << 15  # so that a window's number has 16 bits, which numpy sorts by radix


class WindowSort:
    """Writes samples in ascending order of their positions; among equal ones, in the order in which they were added.

    Windows in which nothing more can fall are written early, so memory is taken for those that are open alone.

    Args:
        out: Receives the samples. May hold them before: what is written never overtakes what was added.
    """

    def __init__(self, out: Samples) -> None:
        self._out = out
        self._written = 0
        self._bits = max(_WINDOW_BITS, (len(out) // _MAX_WINDOWS).bit_length())
        self._first = 0  # open window
        self._parts: dict[int, list[tuple[NDArray[np.float64], Samples]]] = {}

    def add(self, positions: NDArray[np.float64], samples: Samples) -> None:
        """Takes more samples, with positions within [0, len(out)), none in a window that is written."""
        scale = 2.0**-self._bits
        windows = (positions * scale).astype(np.uint16)  # exact: the scale is a power of 2
        first, last = int(windows.min()), int(windows.max())
        if first == last:
            self._parts.setdefault(first, []).append((positions.copy(), samples.copy()))
            return
        order = np.argsort(windows, kind="stable")
        ends = np.bincount(windows)[first:].cumsum()
        positions, samples = positions[order], samples[order]
        begin = 0
        for window, end in enumerate(ends.tolist(), first):
            if begin < end:
                self._parts.setdefault(window, []).append((positions[begin:end], samples[begin:end]))
            begin = end

    def write(self, bound: float) -> None:
        """Writes the windows in which no position of at least `bound` falls."""
        while self._first < int(bound) >> self._bits:
            parts = self._parts.pop(self._first, None)
            if parts:
                positions, samples = (np.concatenate(part) for part in zip(*parts, strict=True))
                end = self._written + len(samples)
                order = self._order(positions - float(self._first << self._bits))
                self._out[self._written : end] = samples[order]
                self._written = end
            self._first += 1

    def finish(self) -> None:
        """Writes what is left."""
        self.write(len(self._out) + (1 << self._bits))

    def _order(self, positions: NDArray[np.float64]) -> NDArray[np.int64]:
        """The stable order of positions in [0, 2^bits).

        One integer holds the leading bits of a position and its index: numpy sorts integers several times as fast as
        it sorts indices. Positions that differ in no leading bit are rare (n^3 / 2^65 pairs); they are sorted in full.
        """
        index_bits = max(1, (len(positions) - 1).bit_length())
        keys = (positions * 2.0 ** (64 - self._bits - index_bits)).astype(np.uint64)
        keys <<= np.uint64(index_bits)
        keys |= np.arange(len(keys), dtype=np.uint64)
        keys.sort()
        leading = keys >> np.uint64(index_bits)
        if (leading[1:] == leading[:-1]).any():
            return np.argsort(positions, kind="stable")
        keys &= np.uint64((1 << index_bits) - 1)
        return keys.view(np.int64)
