"""What a loader has delivered, how long that took, and who waited."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from stoker import _core

_COUNTS = (
    *("units", "tokens", "loss_tokens", "truncated_tokens", "truncated_samples", "dropped_tokens", "dropped_samples"),
    *("empty_samples", "no_loss_samples"),
)
_SECONDS = ("plan_s", "supply_s", "load_s", "fill_s", "wait_s")


def _received(name: str, progress: _core.Progress, ahead: Sequence[_core.BatchInfo]) -> Any:
    """A count by stream, without that of batches which the consumer has not received."""
    return getattr(progress, name) - sum((getattr(info, name) for info in ahead), np.uint64(0))


class Meter:
    """Sums the progress of a loader's engines, one after the other."""

    def __init__(self, num_streams: int) -> None:
        self._counts = {name: np.zeros(num_streams, np.uint64) for name in _COUNTS}
        self._seconds = dict.fromkeys(_SECONDS, 0.0)
        self._num_batches = 0
        self._begin: float | None = None
        self._end = 0.0
        self._first_batch_s: float | None = None

    def received(self, begin: float) -> None:
        """The consumer, which asked for a batch at `begin`, has got it; the clock begins with the first it asks for."""
        self._end = time.perf_counter()
        if self._begin is None:
            self._begin, self._first_batch_s = begin, self._end - begin

    def add(self, progress: _core.Progress, ahead: Sequence[_core.BatchInfo]) -> None:
        """Takes over what an engine that is closed has done. `ahead` are batches of it that the consumer has not
        received."""
        self._num_batches += progress.num_batches - len(ahead)
        for name in _COUNTS:
            self._counts[name] += _received(name, progress, ahead)
        for name in _SECONDS:
            self._seconds[name] += getattr(progress, name)

    def report(
        self,
        names: list[str],
        asked: list[float],
        *,
        weights_in: str,
        batch_tokens: int,
        running: _core.Progress | None,
        ahead: Sequence[_core.BatchInfo],
    ) -> dict[str, Any]:
        """See `DataLoader.stats`. `weights_in` is the count that shares are of, "units" or "tokens"; `running` is the
        progress of the engine that is not closed, `ahead` as for `add`."""
        num_batches = self._num_batches + (running.num_batches - len(ahead) if running else 0)
        counts = {n: self._counts[n] + (_received(n, running, ahead) if running else np.uint64(0)) for n in _COUNTS}
        seconds = {n: self._seconds[n] + (getattr(running, n) if running else 0.0) for n in _SECONDS}
        elapsed = 0.0 if self._begin is None else max(0.0, self._end - self._begin)
        tokens, weighed = int(counts["tokens"].sum()), int(counts[weights_in].sum())
        room = num_batches * batch_tokens
        return {
            "batches": num_batches,
            "tokens": tokens,
            "padding_tokens": room - tokens,
            "fill": tokens / room if room else 0.0,
            "elapsed_s": elapsed,
            "first_batch_s": self._first_batch_s,
            "tokens_per_s": tokens / elapsed if elapsed > 0 else 0.0,
            "wait_share": seconds["wait_s"] / elapsed if elapsed > 0 else 0.0,
            **seconds,
            "streams": {
                name: {
                    "asked": asked[s],
                    "achieved": int(counts[weights_in][s]) / weighed if weighed else 0.0,
                    **{n: int(counts[n][s]) for n in _COUNTS},
                }
                for s, name in enumerate(names)
            },
        }
