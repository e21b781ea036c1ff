"""What a training job notices of its loader.

Question: how long does a step wait for its batch while shards are decoded, and what do several ranks on one machine
cost each?
Method: `step` is a loop that sleeps 20 ms a step, as a CPU does whose GPU works, and looks at how long `next()` takes,
over that of a batch that is ready (the median); shards are zstd. `ranks` runs 1 and 4 processes of
benchmarks/contenders.py at once, which know rank and world size from torchrun's environment. Rounds alternate.
Command: `make bench`, or `python benchmarks/training.py [--rounds 5]` in its environment.
Result: benchmarks/results/training.json; benchmarks/report.py makes a section of docs/benchmarks.md of it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import contenders
import torch
from throughput import RESULTS, machine

STEP_S = 0.02
STEPS = 1500
STEPPED = ("stoker-1", "stoker-2", "mosaicml-streaming-1", "mosaicml-streaming-2")
RANKED = ("stoker-0", "stoker-1", "mosaicml-streaming-1")
WORLD_SIZES = (1, 4)


def step(name: str) -> dict[str, Any]:
    """Takes batches of zstd shards at the pace of a trainer."""
    make, workers = contenders.CONTENDERS[name]
    torch.set_num_threads(1)
    memory = contenders.Memory()
    batches = make(argparse.Namespace(dtype="uint16", compression="zstd"), workers)
    for _ in range(50):
        next(batches)
    waits = []
    cpu, begin = contenders.cpu_seconds(), time.perf_counter()
    for _ in range(STEPS):
        time.sleep(STEP_S)
        start = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - start)
    wall, cpu = time.perf_counter() - begin, contenders.cpu_seconds() - cpu
    memory.look()
    ready = statistics.median(waits)
    return {
        "wait_share": sum(max(0.0, wait - ready) for wait in waits) / wall,
        "next_share": sum(waits) / wall,
        "ready_us": ready * 1e6,
        "longest_ms": max(waits) * 1e3,
        "cpu_share": cpu / wall,
        "anonymous_bytes": memory.most["RssAnon"],
    }


def ranks(name: str, world_size: int) -> dict[str, Any]:
    """Runs as many processes at once. Returns their CPU-seconds per 100 M tokens and memory, each on average."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    script = Path(__file__).with_name("contenders.py")
    command = [sys.executable, str(script), name, "--tokens", "100e6", "--seconds", "60"]
    processes = []
    for rank in range(world_size):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
        }
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    results = []
    try:
        for process in processes:
            out, errors = process.communicate(timeout=180)
            if process.returncode != 0:
                raise RuntimeError(f"{name} failed: {errors.decode()[-2000:]}")
            results.append(json.loads(out.splitlines()[-1]))
    finally:
        for process in processes:
            process.kill()
    tokens = sum(result["tokens"] for result in results)
    return {
        "cpu_s": sum(result["cpu_s"] for result in results),
        "tokens": tokens,
        "anonymous_bytes": statistics.mean(result["anonymous_bytes"] for result in results),
        "mapped_bytes": statistics.mean(result["mapped_bytes"] for result in results),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", choices=("step",))
    parser.add_argument("name", nargs="?", choices=STEPPED)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.what:
        print(json.dumps(step(options.name)), flush=True)
        os._exit(0)  # some loaders' worker processes do not end by themselves
    runs: dict[str, list[dict[str, Any]]] = {}
    for number in range(options.rounds):
        for name in STEPPED:
            command = [sys.executable, __file__, "step", name]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
            runs.setdefault(f"step/{name}", []).append(json.loads(done.stdout.splitlines()[-1]))
        for name in RANKED:
            for world_size in WORLD_SIZES:
                runs.setdefault(f"ranks/{name}/{world_size}", []).append(ranks(name, world_size))
        for name, results in runs.items():
            print(f"round {number}: {name:32} {results[-1]}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "training.json").write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
