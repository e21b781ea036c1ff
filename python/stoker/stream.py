"""What the user says of one stream."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

_WEIGHTS = ("proportion", "repeat", "choose")


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One dataset directory of MDS shards, with a name and a weight.

    At most one of `proportion`, `repeat` and `choose` may be given; without any, each sample comes once an epoch.

    Attributes:
        local: The directory with `index.json`.
        name: Unique among the streams of a loader; part of the order's keys, so that the same name gives the same
            shuffle wherever the data lies. Default: the directory's own name.
        split: A sub-directory of `local` to read instead, such as "train".
        proportion: Share of the epoch, relative to the other streams. All streams or none have one.
        repeat: Passes an epoch; may be fractional.
        choose: Units an epoch: samples (`pad`) or rows (`concat`).
        bytes_dtype: Integer type of token columns whose encoding is `bytes`, which does not tell it.

    Raises:
        ValueError: More than one weight is given, or one is negative, infinite or NaN.
    """

    local: str | os.PathLike[str]
    name: str = ""
    split: str | None = None
    proportion: float | None = None
    repeat: float | None = None
    choose: int | None = None
    bytes_dtype: str = "int64"

    def __post_init__(self) -> None:
        object.__setattr__(self, "local", os.fspath(self.local))
        if not self.name:
            object.__setattr__(self, "name", os.path.basename(os.path.abspath(self.local)))
        given = [w for w in _WEIGHTS if getattr(self, w) is not None]
        if len(given) > 1:
            raise ValueError(f"stream {self.name!r} has {' and '.join(given)}: give at most one of them.")
        for weight in given:
            value = getattr(self, weight)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"stream {self.name!r} has {weight}={value!r}: it must be a number of at least 0.")
        if self.choose is not None and self.choose != int(self.choose):
            raise ValueError(f"stream {self.name!r} has choose={self.choose!r}: it must be a whole number.")

    @property
    def directory(self) -> str:
        """The directory that holds index.json."""
        return os.path.join(self.local, self.split) if self.split else os.fspath(self.local)
