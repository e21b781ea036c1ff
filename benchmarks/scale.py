"""What a start, a resume and an epoch boundary cost, by the number of samples, shards and streams.

Question: does anything grow with the number of samples? Does it stay small with 10^5 shards and 10^3 streams?
Method: synthetic indexes whose many shards are a few real files under one name each. A process of its own for each
case measures the time to the first batch, of a resume in the middle of an epoch, of the step over an epoch's end, and
the memory at its end above what the interpreter with torch takes. MosaicML Streaming is measured on the same indexes
where it can run.
Command: `make bench`, or `python benchmarks/scale.py` in its environment.
Result: benchmarks/results/scale.json; benchmarks/report.py makes docs/scale.md of it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from contenders import import_streaming
from throughput import DATA, RESULTS, machine

OUT = DATA / "scale"
TOKENS = 8  # a sample
# (samples, shards, streams); shards and samples are those of all streams together
CASES = [
    (10**5, 10, 1),
    (10**7, 1000, 1),
    (10**7, 1000, 100),
    (10**8, 10**4, 1),
    (10**9, 10**5, 1),
    (10**9, 10**5, 10),
    (10**9, 10**5, 1000),
]
SMALL_BLOCK = 4096  # also measured with 1000 streams
PEER_CASES = [(10**5, 10, 1), (10**7, 1000, 1), (10**8, 10**4, 1)]  # at 10^9 samples it needs 60 GB


def write_index(samples: int, shards: int, streams: int) -> list[Path]:
    """Directories whose shards all are one file of samples / shards samples of 8 tokens."""
    import stoker

    a_shard = samples // shards
    out = []
    for number in range(streams):
        directory = OUT / f"{samples}-{shards}-{streams}" / f"s{number}"
        out.append(directory)
        if (directory / "index.json").exists():
            continue
        shutil.rmtree(directory, ignore_errors=True)
        row = np.arange(TOKENS, dtype=np.uint16)
        with stoker.MDSWriter(columns={"tokens": "ndarray:uint16"}, out=directory, size_limit=None) as writer:
            for _ in range(a_shard):
                writer.write({"tokens": row})
        path = directory / "index.json"
        index = json.loads(path.read_text())
        n = shards // streams
        index["shards"] *= n
        index["stoker"] = {
            key: value * n if isinstance(value, list) else value for key, value in index["stoker"].items()
        }
        path.write_text(json.dumps(index))
    return out


class Memory:
    """The most that this process has taken above what it took when this was made, in MiB: its own, and pages of mapped
    files. A thread looks every 5 ms."""

    def __init__(self) -> None:
        self._before = self._now()
        self._most = dict(self._before)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            for name, size in self._now().items():
                self._most[name] = max(self._most[name], size)
            time.sleep(0.005)

    @staticmethod
    def _now() -> dict[str, float]:
        lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines()]
        return {line[0]: int(line[1]) / 1024 for line in lines if line[0] in ("RssAnon:", "RssFile:")}

    def report(self) -> dict[str, float]:
        time.sleep(0.02)
        return {
            "anonymous_mib": self._most["RssAnon:"] - self._before["RssAnon:"],
            "mapped_mib": self._most["RssFile:"] - self._before["RssFile:"],
        }


def measure_stoker(directories: list[Path], shuffle_block: int = 16384) -> dict[str, float]:
    import torch  # noqa: F401  # counted as the interpreter's

    import stoker

    memory = Memory()
    streams = [stoker.Stream(local=d) for d in directories]

    def first_batch_s(state: dict[str, Any] | None, **more: Any) -> tuple[stoker.DataLoader, float]:
        start = time.perf_counter()
        loader = stoker.DataLoader(
            streams, seq_len=TOKENS, batch_size=8, layout="pad", shuffle_block=shuffle_block, **more
        )
        if state is not None:
            loader.load_state_dict(state)
        next(iter(loader))
        return loader, time.perf_counter() - start

    loader, out = first_batch_s(None)
    result = {"first_batch_s": out}
    batches = iter(loader)
    for _ in range(2000):
        next(batches)
    steps = len(loader)
    state = {**loader.state_dict(), "epoch": 0, "epoch_begin": 0}
    loader.close()
    loader, result["resume_s"] = first_batch_s({**state, "rows": steps // 2 * 8})
    loader.close()
    # The last batch of the epoch; without workers, which would have filled the next one ahead.
    loader, _ = first_batch_s({**state, "rows": (steps - 1) * 8}, num_workers=0)
    start = time.perf_counter()
    next(iter(loader))
    result["epoch_boundary_s"] = time.perf_counter() - start
    result |= memory.report()
    loader.close()
    return result


def measure_mosaicml(directories: list[Path]) -> dict[str, float]:
    streaming = import_streaming()
    memory = Memory()

    def first_batch_s(state: dict[str, Any] | None) -> tuple[Any, float]:
        start = time.perf_counter()
        streams = [streaming.Stream(local=str(d)) for d in directories]
        dataset = streaming.StreamingDataset(streams=streams, shuffle=True, batch_size=8)
        loader = streaming.StreamingDataLoader(dataset, batch_size=8, num_workers=0)
        if state is not None:
            loader.load_state_dict(state)
        next(iter(loader))
        return loader, time.perf_counter() - start

    loader, first = first_batch_s(None)
    start = time.perf_counter()
    next(iter(loader))  # it begins the next epoch
    boundary = time.perf_counter() - start
    state = {**loader.state_dict(), "epoch": 0, "sample_in_epoch": loader.dataset.size // 2}
    _, resume = first_batch_s(state)
    return {"first_batch_s": first, "resume_s": resume, "epoch_boundary_s": boundary, **memory.report()}


def measure_ranks(directories: list[Path], world_size: int) -> dict[str, Any]:
    """The last rank of a world: its cost to start, and which shards it touches in each of two passes."""
    import stoker

    loader = stoker.DataLoader(
        [stoker.Stream(local=d) for d in directories],
        seq_len=TOKENS, batch_size=8, layout="pad", world_size=world_size, rank=world_size - 1, shuffle_block=512,
    )  # fmt: skip
    start = time.perf_counter()
    next(iter(loader))
    first_batch_s = time.perf_counter() - start
    loader.close()
    steps = len(loader)
    passes = []
    for number in range(2):
        shards = set()
        for step in np.linspace(number * steps, (number + 1) * steps - 1, min(steps, 2000)).astype(int).tolist():
            shards |= {segment.shard for row in loader.order(step)[world_size - 1 :: world_size] for segment in row}
        passes.append(shards)
    total = len(loader.dataset.indexes[0].samples)
    return {
        "first_batch_s": first_batch_s,
        "shards": total,
        "shards_touched": len(passes[0]),
        "of_them_in_the_next_pass": len(passes[0] & passes[1]),
    }


def run(what: str, *numbers: int) -> dict[str, Any]:
    command = [sys.executable, __file__, what, *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command} failed: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    if len(sys.argv) > 1:
        what, *rest = sys.argv[1:]
        numbers = [int(n) for n in rest]
        directories = write_index(*numbers[:3])
        measures = {"stoker": measure_stoker, "mosaicml": measure_mosaicml}
        print(
            json.dumps(
                measure_ranks(directories, numbers[3]) if what == "ranks" else measures[what](directories, *numbers[3:])
            )
        )
        return
    rows = []
    for case in CASES:
        write_index(*case)
        row: dict[str, Any] = {"samples": case[0], "shards": case[1], "streams": case[2]}
        row["stoker"] = [run("stoker", *case) for _ in range(3)]
        if case in PEER_CASES:
            row["mosaicml-streaming"] = [run("mosaicml", *case) for _ in range(3 if case[0] < 10**8 else 1)]
        if case == CASES[-1]:
            row["small block"] = [run("stoker", *case, SMALL_BLOCK) for _ in range(3)]
        index = Path(write_index(*case)[0], "index.json")
        row["index_bytes_a_shard"] = index.stat().st_size * case[2] / case[1]
        rows.append(row)
        print(row, flush=True)
    ranks = {n: [run("ranks", 10**7, 1000, 1, n) for _ in range(3)] for n in (1, 8, 1024)}
    print(ranks, flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "scale.json").write_text(
        json.dumps({"machine": machine(), "cases": rows, "ranks": ranks}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
