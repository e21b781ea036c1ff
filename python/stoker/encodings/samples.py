"""The samples of an MDS shard: where they lie in it, and where their columns lie in them."""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from stoker.encodings.registry import parse_encoding


def head_bytes(num_samples: int) -> int:
    """Length of the sample count and the offsets, with which a shard begins."""
    return 4 + 4 * (num_samples + 1)


def read_offsets(head: bytes, num_samples: int, shard_bytes: int) -> memoryview | None:
    """Where the samples of a shard begin, and the end of the last one.

    Args:
        head: What the shard begins with, at least `head_bytes`.
        num_samples: As the index has them.
        shard_bytes: The same.

    Returns:
        offsets (num_samples + 1,) uint32, which shares memory with `head`; None where the shard is not the one that the
        index describes.
    """
    end = head_bytes(num_samples)
    if len(head) < end or int.from_bytes(head[:4], "little") != num_samples:
        return None
    offsets = np.frombuffer(head, "<u4", num_samples + 1, 4)
    is_right = offsets[0] >= end and offsets[-1] == shard_bytes and bool((offsets[1:] >= offsets[:-1]).all())
    return memoryview(head)[4:end].cast("I") if is_right else None


class SampleLayout:
    """The columns of samples: a word for the size of each that varies, then all of them. Thread-safe."""

    def __init__(
        self,
        names: Sequence[str],
        encodings: Sequence[str],
        sizes: Sequence[int | None],
        *,
        leaves_out: Collection[str] = (),
    ) -> None:
        """
        Args:
            names, encodings, sizes: Parallel, as in index.json; of size None or 0 is what varies.
            leaves_out: Columns that are not decoded; their encodings need not be known.

        Raises:
            ValueError: The lists are not parallel, or an encoding is not known.
        """
        if not len(names) == len(encodings) == len(sizes):
            raise ValueError(f"there are {len(names)} columns, {len(encodings)} encodings and {len(sizes)} sizes.")
        self._columns = [
            (name, size or 0, None if name in leaves_out else parse_encoding(encoding).decode)
            for name, encoding, size in zip(names, encodings, sizes, strict=True)
        ]
        self._words = struct.Struct(f"<{sum(not size for size in sizes)}I")

    def decode(self, sample: bytes) -> dict[str, Any]:
        """The columns of a sample by name, in the order of the shard.

        Raises:
            ValueError: The bytes are no sample of these columns; the message names the column.
            Exception: An encoding of the user's raises its own.
        """
        words = self._words
        at = words.size
        if len(sample) < at:
            raise ValueError("it is cut.")
        sizes = iter(words.unpack_from(sample))
        values: dict[str, Any] = {}
        for name, size, decode in self._columns:
            end = at + (size or next(sizes))
            if end > len(sample):
                raise ValueError(f"column {name} is cut.")
            if decode is not None:
                try:
                    values[name] = decode(sample[at:end])
                except ValueError as error:
                    raise ValueError(f"column {name}: {error}") from error
            at = end
        if at != len(sample):
            raise ValueError(f"it has {len(sample) - at} bytes behind its columns.")
        return values
