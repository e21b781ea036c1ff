"""What `next()` costs a consumer that finds its batch ready, and whether the core slows other Python threads.

    python benchmarks/latency.py 2      # fields: input_ids and labels
    python benchmarks/latency.py 6      # all fields
    python benchmarks/latency.py gil    # how fast a Python thread spins while the core works

Prints one JSON object: microseconds (p50, p99), or the spinning thread's speed beside the core over its speed beside
another process that does the same, and the share of that time in which the core's worker filled.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

import contenders
import numpy as np

import stoker

FIELDS = ("input_ids", "labels", "attention_mask", "position_ids", "sequence_id", "stream_ids")


def make_loader(fields: int, **changes: int) -> stoker.DataLoader:
    streams = [stoker.Stream(local=contenders.OUT / f"{name}-uint16-raw") for name in ("a", "b")]
    return stoker.DataLoader(streams, seq_len=2048, batch_size=8, fields=FIELDS[:fields], **changes)


def latency(fields: int) -> dict[str, float]:
    """A consumer that works for 300 us between batches, in Python, as a trainer does."""
    times = []
    with make_loader(fields) as loader:
        batches = iter(loader)
        for _ in range(4000):
            until = time.perf_counter_ns() + 300_000
            while time.perf_counter_ns() < until:
                pass
            start = time.perf_counter_ns()
            next(batches)
            times.append(time.perf_counter_ns() - start)
    us = np.array(times[500:]) / 1e3
    return {"p50_us": float(np.percentile(us, 50)), "p99_us": float(np.percentile(us, 99))}


def spin(seconds: float) -> float:
    """Turns of an empty loop a second."""
    turns, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        turns += 1
    return turns / (time.perf_counter() - start)


def keep_filling() -> stoker.DataLoader:
    """A loader whose worker fills 6000 batches, 1.5 GB, in fresh memory: for longer than the thread beside it spins."""
    loader = make_loader(2, num_workers=1, prefetch_factor=6000)
    next(iter(loader))
    return loader


def gil() -> dict[str, float]:
    """This thread spins on one CPU: while a worker of its process fills batches on another, and while a worker of
    another process, which has no part in its GIL, does the same. CPUs that share a core slow each other down anyway."""
    beside, apart, busy = [], [], []
    for _ in range(15):
        with keep_filling() as loader:
            before = loader.stats()["fill_s"]
            beside.append(spin(0.1))
            busy.append((loader.stats()["fill_s"] - before) / 0.1)
        with subprocess.Popen([sys.executable, __file__, "fill"], stdout=subprocess.PIPE) as other:
            assert other.stdout is not None
            other.stdout.readline()
            apart.append(spin(0.1))
            other.kill()
    return {
        "spin_beside_over_apart": float(np.median(beside) / np.median(apart)),
        "worker_busy": float(np.median(busy)),
    }


def main() -> None:
    what = sys.argv[1]
    if what == "fill":
        with keep_filling():
            print("filling", flush=True)
            time.sleep(1)
    else:
        print(json.dumps(gil() if what == "gil" else latency(int(what))))


if __name__ == "__main__":
    main()
