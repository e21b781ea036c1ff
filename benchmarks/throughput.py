"""How many tokens a CPU-second gives, beside the peers and the bounds of the hardware.

Question: what does loading cost, of the CPUs that the trainer needs too?
Method: every contender of benchmarks/contenders.py and every mode of core_bench runs in a process of its own, in
rounds, one after the other, so that what else happens on the machine meets all of them. Medians of the rounds.
Command: `make bench`, or `python benchmarks/throughput.py [--rounds 5]` in its environment.
Result: benchmarks/results/throughput.json; benchmarks/report.py makes docs/benchmarks.md of it, with the reading.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CORE = ROOT / "build" / "release" / "core_bench"
CORE_AVX2 = ROOT / "build" / "avx2" / "core_bench"
DATA = ROOT / ".bench"
PACKAGES = ("stoker", "torch", "numpy", "mosaicml-streaming", "litdata", "grain", "datasets")

RAW = [
    *("stoker-0", "stoker-1", "stoker-2", "hand-written-0", "nanogpt-0", "litdata-0", "litdata-1", "litdata-2"),
    *("grain-0", "grain-4", "hf-datasets-0", "hf-datasets-2"),
    *("mosaicml-streaming-0", "mosaicml-streaming-1", "mosaicml-streaming-2"),
]
PINNED = ["stoker-0", "stoker-1", "hand-written-0", "mosaicml-streaming-0"]
ZSTD = ["stoker-0", "stoker-1", "stoker-2", "mosaicml-streaming-0"]
INT32 = ["stoker-0", "stoker-1", "mosaicml-streaming-0"]
COLD = ["stoker-2", "hand-written-0", "nanogpt-0", "litdata-0", "mosaicml-streaming-0"]
RINGS = ["1", "2", "64"]  # MiB: of the core's four buffers, of the loader's eight, and beyond the caches


def directories(compression: str) -> list[str]:
    return [str(DATA / f"{name}-uint16-{compression}") for name in ("a", "b")]


def commands() -> dict[str, list[str]]:
    """What is run, by its name in the results."""
    here = ROOT / "benchmarks"
    contender = [sys.executable, str(here / "contenders.py")]
    latency = [sys.executable, str(here / "latency.py")]
    flat = str(DATA / "a.bin")
    out = {f"raw/{name}": [*contender, name] for name in RAW}
    out |= {f"pinned/{name}": [*contender, name, "--pin"] for name in PINNED}
    out |= {f"zstd/{name}": [*contender, name, "--compression", "zstd"] for name in ZSTD}
    out |= {f"int32/{name}": [*contender, name, "--dtype", "int32"] for name in INT32}
    out |= {f"cold/{name}": [*contender, name, "--cold", "--tokens", "150e6"] for name in COLD}
    out |= {f"bound/rows-{ring}": [str(CORE), "bound", ring, flat] for ring in RINGS}
    out |= {f"bound/shuffled-{ring}": [str(CORE), "shuffled", ring, flat] for ring in RINGS}
    out["bound/decode"] = [str(CORE), "decode", *directories("zstd")]
    for compression in ("raw", "zstd"):
        for workers in ("0", "1", "2"):
            out[f"core/{compression}-{workers}"] = [str(CORE), "engine", workers, *directories(compression)]
    out["core-avx2/raw-0"] = [str(CORE_AVX2), "engine", "0", *directories("raw")]
    out |= {f"latency/{what}": [*latency, what] for what in ("2", "6", "gil")}
    return out


def machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"

    def first_line(*command: str) -> str:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip().split("\n")[0]

    is_dirty = first_line("git", "status", "--porcelain", "--untracked-files=no", "csrc", "python", "benchmarks/*.py")
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions,
        "compiler": first_line("c++", "--version"),
        "commit": first_line("git", "rev-parse", "--short", "HEAD") + (" and changes" if is_dirty else ""),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="run what has this in its name, for a look; writes nothing")
    options = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {}
    for number in range(options.rounds):
        for name, command in commands().items():
            if options.only not in name:
                continue
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
                result = json.loads(done.stdout.splitlines()[-1])
            except (subprocess.SubprocessError, json.JSONDecodeError, IndexError) as error:
                print(f"round {number}: {name} gave no result: {error}", flush=True)
                raise
            runs.setdefault(name, []).append(result)
            rate = (
                f"{result['cpu_s'] / result['tokens'] * 1e8:8.3f} CPU-s / 100 M tokens"
                if "tokens" in result
                else result
            )
            print(f"round {number}: {name:28} {rate}", flush=True)
    if options.only:
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "throughput.json").write_text(json.dumps({"machine": machine(), "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
