"""What samples cost by the names of MosaicML Streaming: in `stoker.streaming`, and in MosaicML Streaming itself.

Question: how many samples come a second, by number at random and iterated in the shuffled order, in the process itself
and from two workers of torch's DataLoader, with the same program and the same shards?
Method: two local data sets: 100,000 samples of 200 bytes (a text and a number), and 20,000 samples of 4096 tokens in
uint16. Each measurement is a process of its own, which takes some samples before the clock starts, then as many as come
in SECONDS of the clock, and the seconds of all CPUs. What they are is not looked at, but torch collates them where
there is a DataLoader. Packages take turns, for ROUNDS; ratios are of medians. `epoch` is the time from `iter` to the
first sample, of 10^6 and 10^7 samples in shards that are not there, shuffled by py1e.
Command: `make bench`, or `python benchmarks/streaming_package.py [--rounds 5]` in its environment.
Result: benchmarks/results/streaming_package.json. (A module `streaming` here would hide the package of that name.)
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from throughput import DATA, RESULTS, ROOT, machine

PACKAGES = ("stoker.streaming", "streaming")
WHAT = ("random", "iterate", "2 workers", "epoch")
SECONDS = 3.0
SETS = ("small", "tokens")
EPOCHS = ("1e6", "1e7")
BATCH = 32


# ---------------------------------------------------------------- the data
def write_sets() -> None:
    """Writes the data sets where they are not there."""
    import stoker

    rng = np.random.default_rng(0)
    if not (DATA / "streaming" / "small").exists():
        with stoker.MDSWriter(columns={"n": "int", "text": "str"}, out=DATA / "streaming" / "small") as out:
            for n in range(100_000):
                out.write({"n": n, "text": rng.bytes(96).hex()})
        with stoker.MDSWriter(columns={"tokens": "ndarray:uint16"}, out=DATA / "streaming" / "tokens") as out:
            for _ in range(20_000):
                out.write({"tokens": rng.integers(0, 50_000, 4096).astype(np.uint16)})
    for name in EPOCHS:
        columns = {"column_names": ["n"], "column_encodings": ["int"], "column_sizes": [8], "hashes": []}
        rest = {"version": 2, "format": "mds", "compression": None, "size_limit": None, "zip_data": None}
        shards = [
            {**columns, **rest, "samples": 10_000, "raw_data": {"basename": f"{i}.mds", "bytes": 1, "hashes": {}}}
            for i in range(int(float(name)) // 10_000)
        ]
        (DATA / "streaming" / name).mkdir(exist_ok=True)
        (DATA / "streaming" / name / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))


# ---------------------------------------------------------------- one measurement
def measure(package_name: str, what: str, name: str) -> dict[str, float]:
    """Samples a second of the clock and CPU-seconds a sample; of an epoch, seconds to its first sample and memory."""
    if package_name == "streaming":
        sys.path.insert(0, str(ROOT / "tests" / "peers"))
        importlib.import_module("conftest")  # stands in for torchvision
    package: Any = importlib.import_module(package_name)
    local = str(DATA / "streaming" / name)
    if what == "epoch":
        return measure_epoch(package, local)
    data = package.StreamingDataset(local=local, batch_size=BATCH, shuffle=True)
    if what == "random":
        numbers = np.random.default_rng(1).integers(0, data.size, 1 << 16).tolist()
        items: Iterator[Any] = map(data.__getitem__, itertools.cycle(numbers))
        size = 1
    elif what == "iterate":
        items, size = (sample for _ in itertools.count() for sample in data), 1
    else:
        loader = package.StreamingDataLoader(data, batch_size=BATCH, num_workers=2, persistent_workers=True)
        items, size = (batch for _ in itertools.count() for batch in loader), BATCH
    warm_up = 4000 // size
    for _ in itertools.islice(items, warm_up):
        pass
    count, started, cpu_started = 0, time.perf_counter(), time.process_time()
    while (seconds := time.perf_counter() - started) < SECONDS:
        for _ in itertools.islice(items, 16):
            pass
        count += 16 * size
    cpu_s = time.process_time() - cpu_started
    if what == "2 workers":
        del items, loader  # ends the workers, whose time counts from their beginning
        of_workers = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s += (of_workers.ru_utime + of_workers.ru_stime) * count / (count + warm_up * size)
    return {"samples/s": count / seconds, "CPU us a sample": cpu_s / count * 1e6}


def measure_epoch(package: Any, local: str) -> dict[str, float]:
    class Numbers(package.StreamingDataset):  # type: ignore[misc, name-defined]
        def __getitem__(self, at: Any) -> Any:
            return at

        def prepare_shard(self, *args: Any, **kwargs: Any) -> None:
            """There are none; MosaicML Streaming fetches what is iterated."""

    data = Numbers(local=local, batch_size=BATCH, shuffle=True)
    if hasattr(data, "_shard_states"):
        data._shard_states.numpy()[:] = 3  # LOCAL
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    next(iter(data))
    seconds = time.perf_counter() - started
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": seconds, "MB": more / 1024}


# ---------------------------------------------------------------- all of them
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=3)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(*arguments.one)), flush=True)
        return
    (DATA / "streaming").mkdir(parents=True, exist_ok=True)
    write_sets()
    cases = [(what, name) for what in WHAT for name in (EPOCHS if what == "epoch" else SETS)]
    runs: dict[str, dict[str, list[dict[str, float]]]] = {
        f"{what}, {name}": {package: [] for package in PACKAGES} for what, name in cases
    }
    for _ in range(arguments.rounds):
        for (what, name), package in itertools.product(cases, PACKAGES):
            command = [sys.executable, "-W", "ignore", __file__, "--one", package, what, name]
            done = subprocess.run(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, check=True)
            runs[f"{what}, {name}"][package].append(json.loads(done.stdout.splitlines()[-1]))
    for case, of_case in runs.items():
        for unit in of_case[PACKAGES[0]][0]:
            ours, theirs = (statistics.median(run[unit] for run in of_case[package]) for package in PACKAGES)
            print(f"{case:20} {unit:10} {ours:12,.2f} {theirs:12,.2f} {ours / theirs:8.3g}x")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "streaming_package.json").write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
