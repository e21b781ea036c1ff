"""From the streams' weights to whole units an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from stoker.stream import Stream

_RATE_BITS = 56


def counts_per_epoch(
    streams: Sequence[Stream], sizes: Sequence[int], *, epoch_size: int | None, seed: int
) -> list[int]:
    """Works out how many samples of each stream an epoch has, as MosaicML Streaming does (`Stream.apply_weights`).

    Args:
        streams: The streams, in the order in which leftover units are drawn for them.
        sizes: Samples of each stream.
        epoch_size: Samples an epoch; None: all that the streams hold, as their weights say.
        seed: Seeds the draw of the units that rounding down leaves over.

    Returns:
        One count a stream. Their sum is `epoch_size` where that or proportions are given.

    Raises:
        ValueError: Some streams have a proportion and some not, all proportions are 0, or `epoch_size` stands beside
            `repeat` or `choose`.
    """
    relative = [s for s in streams if s.proportion is not None]
    absolute = [s for s in streams if s.repeat is not None or s.choose is not None]
    if relative and len(relative) < len(streams):
        other = next(s for s in streams if s.proportion is None)
        raise ValueError(
            f"stream {relative[0].name!r} has a proportion but stream {other.name!r} has none: "
            "proportions are relative to each other, so give one to all streams or to none."
        )
    if epoch_size is not None and absolute:
        raise ValueError(
            f"epoch_size={epoch_size} and the repeat or choose of stream {absolute[0].name!r} both say how long an "
            "epoch is: give proportions beside epoch_size, or leave epoch_size out."
        )
    if relative or epoch_size is not None:
        return _share(_relative(streams, sizes), sum(sizes) if epoch_size is None else epoch_size, seed)
    return [_absolute(s, size) for s, size in zip(streams, sizes, strict=True)]


def proportions_per_epoch(
    streams: Sequence[Stream], sizes: Sequence[int], counts: Sequence[int], *, epoch_size: int | None
) -> list[float]:
    """Works out the share of each stream in an epoch, as MosaicML Streaming does (`Stream.apply_weights`).

    Args:
        streams: The streams.
        sizes: Samples of each stream.
        counts: What `counts_per_epoch` returns for them.
        epoch_size: As there.

    Returns:
        One share a stream, of sum 1: by weight where the weights are relative, not rounded to whole samples; else by
        count. What is left of the reference's derived weights, `repeat`, is the count over the size.

    Raises:
        ValueError: All counts are 0.
    """
    if epoch_size is not None or streams[0].proportion is not None:
        return [float(share) for share in _normalized(_relative(streams, sizes))]
    total = sum(counts)
    if not total:
        raise ValueError("the counts of all streams are 0: give at least one of them a weight above 0.")
    return [count / total for count in counts]


def _relative(streams: Sequence[Stream], sizes: Sequence[int]) -> list[float]:
    return [s.proportion if s.proportion is not None else size for s, size in zip(streams, sizes, strict=True)]


def _absolute(stream: Stream, size: int) -> int:
    if stream.choose is not None:
        return int(stream.choose)
    return int(size if stream.repeat is None else stream.repeat * size)


def _share(weights: Sequence[float], total: int, seed: int) -> list[int]:
    """Splits `total` by weight: rounded down, what is left over to streams drawn by numpy's `default_rng(seed)`."""
    counts = (total * _normalized(weights)).astype(np.int64)
    short = total - int(counts.sum())
    counts[np.random.default_rng(seed).choice(len(counts), short, replace=False)] += 1
    return [int(c) for c in counts]


def _normalized(weights: Sequence[float]) -> NDArray[np.float64]:
    as_array = np.array(weights, np.float64)
    if not as_array.sum() > 0:
        raise ValueError("the weights of all streams are 0: give at least one of them a proportion above 0.")
    as_array /= as_array.sum()
    return as_array


def rates(weights: Sequence[Fraction]) -> list[int]:
    """Weights in fixed point: integers whose sum is at most 2^56, in proportion to within one, at least 1 where a
    weight is above 0 (tests/model/order.py has the same).

    Raises:
        ValueError: All weights are 0.
    """
    total = sum(weights)
    if not total > 0:
        raise ValueError("the weights of all streams are 0: give at least one of them a weight above 0.")
    return [max(1, int(w * ((1 << _RATE_BITS) - len(weights)) / total)) if w else 0 for w in weights]
