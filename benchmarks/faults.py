"""What loaders do when a remote store, a network, a disk or a process fails; and how fast a copy is made.

Question: does a fault end an epoch early, without a word? Hang the job? Give wrong tokens? Is there an error that
says what is wrong? And what does `stoker fetch` take beside obstore alone?
Method: a data set of 20 shards of random tokens in a real S3 server (SeaweedFS) on loopback, behind a proxy that has
one fault for each case. Each loader reads an epoch in file order in a process of its own, which has a minute; each
sample is compared with what was written. MosaicML Streaming as its documentation says, in the main process and with
two workers of torch's DataLoader, with `validate_hash` and without. For speed, 1 GB in shards of 64 MB is fetched from
the same server, without the proxy, in rounds: by `stoker fetch`, which compares hashes, or without hashes waits for the
disk; and by obstore alone, 8 MiB ranges in as many threads, into files, with and without an fsync of each.
Command: `make bench`, or `python benchmarks/faults.py` in its environment.
Result: benchmarks/results/faults.json; benchmarks/report.py puts it into docs/remote.md and docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from throughput import DATA, RESULTS, ROOT, machine

sys.path[:0] = [str(ROOT / "tests" / "servers"), str(ROOT / "tests" / "python")]

import seaweed  # noqa: E402
from servers import Fault, Proxy  # noqa: E402

SAMPLES, LENGTH = 2000, 128  # of 20 shards
LIMIT_S = 60
LOADERS = ("stoker", "streaming", "streaming, 2 workers", "streaming, validate_hash")
ROUNDS = 5


def samples() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 60_000, (SAMPLES, LENGTH)).astype(np.uint16)


def bad_shard(kind: str, *, first_only: bool = False) -> Callable[[str, int], Fault | None]:
    """A fault of every request for shard 7, or of the first one."""

    def fault(path: str, number: int) -> Fault | None:
        is_it = "shard.00007" in path and (number == 0 or not first_only)
        return Fault(kind, 2 * LIMIT_S) if is_it else None

    return fault


def cut(copy: Path) -> None:
    path = copy / "shard.00007.mds"
    path.write_bytes(path.read_bytes()[:-1000])


def flip(copy: Path) -> None:
    path = copy / "shard.00007.mds"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


# By name: a fault of the network, or of the copy that a run before has left; and whether that run is killed.
CASES: dict[str, tuple[Callable[[str, int], Fault | None] | None, Callable[[Path], None] | None]] = {
    "no fault": (None, None),
    "a shard is not there (404)": (bad_shard("404"), None),
    "a shard is refused for good (503)": (bad_shard("503"), None),
    "a connection is dropped once": (bad_shard("drop", first_only=True), None),
    "connections for a shard are always dropped": (bad_shard("drop"), None),
    "an answer is cut once": (bad_shard("truncate", first_only=True), None),
    "a byte of an answer is wrong once": (bad_shard("corrupt", first_only=True), None),
    "a request is never answered": (bad_shard("delay"), None),
    "a local file is cut": (None, cut),
    "a byte of a local file is wrong": (None, flip),
}


# ---------------------------------------------------------------- one loader
def read(loader: str, url: str, copy: str) -> None:
    """Reads an epoch, and prints how many samples came, and how many of them were right."""
    want = samples()
    right = number = 0
    for number, got in enumerate(
        read_by_stoker(url, copy) if loader == "stoker" else read_by_streaming(loader, url, copy), 1
    ):
        right += bool(number <= SAMPLES and np.array_equal(got, want[number - 1]))
    print(json.dumps({"samples": number, "right": right}))


def read_by_stoker(url: str, copy: str) -> Any:
    import stoker

    stream = stoker.Stream(
        remote=url, local=copy, download_retry=2, download_timeout=10, validate_cached=True, validate_hash="sha1"
    )
    with stoker.DataLoader(
        stream, seq_len=LENGTH, batch_size=1, layout="pad", shuffle=False, drop_last=False
    ) as loader:
        for batch in loader:
            yield batch["input_ids"][0].numpy()


def read_by_streaming(loader: str, url: str, copy: str) -> Any:
    sys.path.insert(0, str(ROOT / "tests" / "peers"))
    importlib.import_module("conftest")  # a stand-in for torchvision, which is gigabytes
    import torch
    from streaming import StreamingDataset

    dataset = StreamingDataset(
        remote=url,
        local=copy,
        shuffle=False,
        batch_size=1,
        download_retry=2,
        download_timeout=10,
        validate_hash="sha1" if "validate_hash" in loader else None,
    )
    if "workers" not in loader:
        for sample in dataset:
            yield sample["tokens"]
        return
    for batch in torch.utils.data.DataLoader(dataset, batch_size=1, num_workers=2):
        yield batch["tokens"][0].numpy()


def outcome(loader: str, url: str, copy: Path, environment: dict[str, str]) -> str:
    """In words, what a loader did."""
    command = [sys.executable, __file__, "--read", loader, "--url", url, "--copy", str(copy)]
    run = subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        out, errors = run.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
        return f"hangs (nothing in {LIMIT_S} s)"
    if run.returncode:
        last = [line for line in errors.decode().splitlines() if line and not line[0].isspace()]
        kind, _, message = (last[-1] if last else str(run.returncode)).partition(": ")
        return f"error: {kind.rpartition('.')[2]}: {message[:300]}"
    told = json.loads(out.decode().strip().splitlines()[-1])
    if told["right"] == told["samples"] == SAMPLES:
        return "all is right"
    if told["samples"] < SAMPLES:
        return f"short epoch: {told['samples']:,} of {SAMPLES:,} samples, no error"
    return f"wrong data: {told['samples'] - told['right']:,} samples, no error"


def compare(bucket: seaweed.Bucket, folder: Path) -> dict[str, dict[str, str]]:
    """What each loader does in each case."""
    import stoker

    with stoker.MDSWriter(
        columns={"tokens": f"ndarray:uint16:{LENGTH}"},
        out=f"{bucket.url}/web",
        size_limit=100 * (2 * LENGTH + 4) + 600,
        hashes=["sha1"],
        storage_options=bucket.options,
    ) as out:
        for sample in samples():
            out.write({"tokens": sample})
    url = f"{bucket.url}/web"
    found: dict[str, dict[str, str]] = {}
    for case, (fault, damage) in CASES.items():
        for number, loader in enumerate(LOADERS):
            proxy = Proxy(bucket.endpoint, fault or (lambda path, number: None))
            copy = folder / f"copy{number}"
            shutil.rmtree(copy, ignore_errors=True)
            with proxy.running() as endpoint:
                environment = bucket.environment | {"AWS_ENDPOINT_URL": endpoint, "S3_ENDPOINT_URL": endpoint}
                if damage is not None:
                    outcome(loader, url, copy, environment)
                    damage(copy)
                found.setdefault(case, {})[loader] = outcome(loader, url, copy, environment)
                print(f"{case:45} {loader:25} {found[case][loader]}", flush=True)
    return found


# ---------------------------------------------------------------- speed
def fetch_by_obstore(url: str, options: dict[str, str], copy: Path, *, is_synced: bool) -> None:
    """Ranges of 8 MiB in as many threads as `stoker fetch` has, into files."""
    from concurrent.futures import ThreadPoolExecutor

    from obstore.store import from_url

    store = from_url(url, client_options={"allow_http": True}, **options)
    index = json.loads(bytes(store.get("index.json").bytes()))
    copy.mkdir(parents=True)
    with ThreadPoolExecutor(16) as threads:
        files, waiting = [], []
        for entry in index["shards"]:
            name, size = entry["raw_data"]["basename"], entry["raw_data"]["bytes"]
            file = os.open(copy / name, os.O_WRONLY | os.O_CREAT)
            files.append(file)
            for begin in range(0, size, 8 << 20):
                end = min(begin + (8 << 20), size)
                waiting.append(
                    threads.submit(
                        lambda file=file, name=name, begin=begin, end=end: os.pwrite(
                            file, store.get_range(name, start=begin, end=end), begin
                        )
                    )
                )
        for one in waiting:
            one.result()
        list(threads.map(os.fsync if is_synced else lambda file: None, files))
        for file in files:
            os.close(file)


def measure_speed(bucket: seaweed.Bucket, folder: Path) -> dict[str, list[float]]:
    """Seconds of each way, by round."""
    import stoker
    from stoker import fetching

    tokens = np.random.default_rng(1).integers(0, 60_000, 1 << 20).astype(np.uint16)
    with stoker.MDSWriter(
        columns={"tokens": "ndarray:uint16"},
        out=f"{bucket.url}/large",
        hashes=["sha256"],
        storage_options=bucket.options,
    ) as out:
        for _ in range(500):
            out.write({"tokens": tokens})
    url = f"{bucket.url}/large"

    def by_stoker(copy: Path, hashed: str | None) -> None:
        stream = stoker.Stream(remote=url, local=copy, storage_options=bucket.options, validate_hash=hashed)
        fetching.fetch(stream)

    ways: dict[str, Callable[[Path], None]] = {
        "obstore alone": lambda copy: fetch_by_obstore(url, bucket.options, copy, is_synced=False),
        "obstore alone, then fsync": lambda copy: fetch_by_obstore(url, bucket.options, copy, is_synced=True),
        "stoker fetch": lambda copy: by_stoker(copy, "auto"),
        "stoker fetch, sizes alone": lambda copy: by_stoker(copy, None),
    }
    seconds: dict[str, list[float]] = {}
    for number in range(ROUNDS + 1):  # the first one warms the server
        for name, fetch in ways.items():
            copy = folder / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            os.sync()
            begin = time.perf_counter()
            fetch(copy)
            took = time.perf_counter() - begin
            if number:
                seconds.setdefault(name, []).append(took)
            print(f"round {number}: {name:30} {took:.2f} s", flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--read", choices=LOADERS)
    parser.add_argument("--url")
    parser.add_argument("--copy")
    parser.add_argument("--only", choices=("faults", "speed"))
    options = parser.parse_args()
    if options.read:
        read(options.read, options.url, options.copy)
        return
    DATA.mkdir(exist_ok=True)
    path = RESULTS / "faults.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory(dir=DATA) as name:
        folder = Path(name)
        (folder / "weed").mkdir()
        with seaweed.running(folder / "weed") as endpoint:
            bucket = seaweed.Bucket(endpoint, f"{seaweed.BUCKET}/bench")
            if options.only != "speed":
                results["faults"] = compare(bucket, folder)
            if options.only != "faults":
                results["speed"] = measure_speed(bucket, folder)
    results["machine"] = machine()
    path.write_text(json.dumps(results, indent=1) + "\n")
    if "speed" in results:
        print({name: statistics.median(seconds) for name, seconds in results["speed"].items()})


if __name__ == "__main__":
    main()
