"""What batches cost by LLM Foundry's YAML: in `stoker.foundry`, and in LLM Foundry itself.

Question: how many tokens come of a second of the CPU from the same configuration and the same files? How long does the
first batch take, and how long the order of an epoch, in how much memory?
Method: `build_dataloader` of both packages on the same dict: text (rows of 2048 tokens of two weighted streams,
shuffled), instructions as prompt and response (packed at a ratio of seq_len / mean, and a sample a row); beside them
stoker's own packing of the same samples, `layout: pack`. Each in a process of its own, without workers, for SECONDS
after the first batches; tokens that are no padding, CPU-seconds of all its processes; contenders take turns, for
ROUNDS, and ratios are of medians. stoker's shards of prompts and responses are made before the clock starts, as at the
second epoch; what making them takes is told beside. The order: one epoch of py1e over 8 ranks of one node, 1 canonical
node, from the index of shards that are not there; the most memory above what was there before.
Command: `make bench`, or `python benchmarks/drop_in.py [--rounds 3]` in its environment.
Result: benchmarks/results/drop_in.json; benchmarks/report.py puts it into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from contenders import OUT, cpu_seconds
from throughput import RESULTS, ROOT, machine

SECONDS = 6.0
SEQ_LEN, BATCH_SIZE = 2048, 8
CASES = ("text", "instructions", "instructions, packed")
SIZES = (1_000_000, 10_000_000, 100_000_000)
OWN = "instructions, layout: pack"


def write_pairs() -> Path:
    """The instructions of .bench/instruct as LLM Foundry has them: a prompt and a response."""
    import stoker

    out = OUT / "instruct-pairs"
    if (out / "index.json").exists():
        return out
    shutil.rmtree(out, ignore_errors=True)
    with (
        stoker.DataLoader(stoker.Stream(local=OUT / "instruct"), layout="pad", seq_len=8, batch_size=1) as loader,
        stoker.MDSWriter(columns={"input_ids": "bytes", "labels": "bytes"}, out=out) as writer,
    ):
        for shard, number in enumerate(loader.dataset.indexes[0].samples.tolist()):
            for sample in range(number):
                found = loader.dataset.read("instruct", shard, sample)
                prompt = int((found["labels"] == -100).sum())
                ids = found["tokens"].astype(np.int64)
                if 0 < prompt < min(len(ids), SEQ_LEN):
                    writer.write({"input_ids": ids[:prompt].tobytes(), "labels": ids[prompt:].tobytes()})
    return out


def make_tokenizer() -> Any:
    """With an end and a padding; neither package asks it for more, since all samples are tokens."""
    sys.path.insert(0, str(ROOT / "tests" / "python"))
    return importlib.import_module("foundry_tokenizers").make_tokenizer(1, 0, vocab_size=50_304)


def config_of(case: str) -> dict[str, Any]:
    if case == "text":
        streams = {
            name: {"local": str(OUT / f"{name}-int32-raw"), "proportion": p} for name, p in (("a", 0.75), ("b", 0.25))
        }
        dataset: dict[str, Any] = {"streams": streams, "max_seq_len": SEQ_LEN, "shuffle": True, "eos_token_id": 0}
        return {"name": "text", "dataset": dataset, "drop_last": True, "num_workers": 0}
    pairs = write_pairs()
    streams = {"instructions": {"local": str(pairs)}}
    dataset = {"streams": streams, "max_seq_len": SEQ_LEN, "shuffle": True, "decoder_only_format": True}
    if case == "instructions, packed":
        dataset["packing_ratio"] = round(SEQ_LEN / mean_tokens(), 1)
    if case == OWN:
        dataset["layout"] = "pack"
    return {"name": "finetuning", "dataset": dataset, "drop_last": True, "num_workers": 0}


def mean_tokens() -> float:
    """Of a sample, about: eight bytes a token, and the heads of samples."""
    index = json.loads((OUT / "instruct-pairs" / "index.json").read_text())
    sizes = [(shard["raw_data"]["bytes"], shard["samples"]) for shard in index["shards"]]
    return sum(size for size, _ in sizes) / sum(samples for _, samples in sizes) / 8


def build(package: str, config: dict[str, Any]) -> Any:
    if package == "stoker":
        from stoker.foundry import build_dataloader

        return build_dataloader(config, make_tokenizer(), BATCH_SIZE).dataloader
    sys.path.insert(0, str(ROOT / "tests" / "peers"))
    importlib.import_module("conftest")
    build_theirs = importlib.import_module("foundry").build_dataloader
    return build_theirs(
        {**config, "prefetch_factor": None, "persistent_workers": False}, make_tokenizer(), BATCH_SIZE
    ).dataloader


def speed(package: str, case: str) -> dict[str, float]:
    """Tokens of a second of the CPU, of a second of the clock, and seconds to the first batch."""
    config = config_of(case)
    importlib.import_module("torch")
    importlib.import_module("transformers")
    start = time.perf_counter()
    loader = build(package, config)
    batches = itertools.chain.from_iterable(loader for _ in itertools.count())
    next(batches)
    first_batch = time.perf_counter() - start
    for _ in range(3):
        next(batches)
    if package == "stoker" and case != "text":  # all shards are made
        for _ in loader:
            pass
        batches = itertools.chain.from_iterable(loader for _ in itertools.count())
        next(batches)
    tokens, cpu, begin = 0, cpu_seconds(), time.perf_counter()
    while time.perf_counter() - begin < SECONDS:
        tokens += sum(next(batches)["total_tokens"])
    seconds, cpu = time.perf_counter() - begin, cpu_seconds() - cpu
    return {"tokens/CPU s": tokens / cpu, "tokens/s": tokens / seconds, "first batch s": first_batch}


def epoch(package: str, size: str) -> dict[str, float]:
    """Seconds and bytes for the order of an epoch of so many samples, as one rank of 8 has it."""
    shards = [4096] * (int(size) // 4096)
    total = sum(shards)
    if package == "stoker":
        from stoker.streaming_order import StreamingOrder, World

        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        order = StreamingOrder(shard_sizes=[shards], choose=[total], batch_size=8, shuffle=True, num_canonical_nodes=1)
        order.epoch(0, 0, World(1, 8)).rank(0).samples(0, 8)
    else:
        sys.path.insert(0, str(ROOT / "tests" / "peers"))
        importlib.import_module("conftest")
        dataset = reference_dataset(shards)
        world = dataset._unreplicated_world
        from streaming.base.batching import generate_work

        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        generate_work("random", dataset, world, 0, 0)
    seconds = time.perf_counter() - start
    return {"s": seconds, "bytes/sample": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / total}


def reference_dataset(shards: list[int]) -> Any:
    """MosaicML Streaming's data set of these shards, on the first rank of eight."""
    os.environ |= {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8", "RANK": "0", "LOCAL_RANK": "0"}
    from streaming.base.spanner import Spanner
    from streaming.base.world import World

    class Shards:
        """Of StreamingDataset what its order asks for."""

        def __init__(self) -> None:
            self.num_samples = sum(shards)
            self.samples_per_shard = np.array(shards)
            self.shard_offset_per_stream, self.shards_per_stream = np.array([0]), np.array([len(shards)])
            self.sample_offset_per_shard = self.samples_per_shard.cumsum() - self.samples_per_shard
            self.num_streams, self.epoch_size = 1, self.num_samples
            self.shuffle, self.shuffle_algo, self.shuffle_seed, self.shuffle_block_size = True, "py1e", 9176, 4_000_000
            self.sampling_method, self.sampling_granularity, self.epoch_seed_change = "balanced", 1, True
            self.partition_algo, self.num_canonical_nodes, self.batch_size = "relaxed", 1, 8
            self.initial_physical_nodes, self.replication = None, None
            self.streams = [self]
            self.choose, self.proportion, self.repeat = self.num_samples, 1.0, 1.0
            self.spanner = Spanner(self.samples_per_shard)
            self._unreplicated_world = World.detect()

        def resample_streams(self, epoch: int, stream_id: int | None = None) -> Any:
            from streaming.base.dataset import StreamingDataset

            return StreamingDataset.resample_streams(self, epoch, stream_id)  # type: ignore[arg-type]

    return Shards()


def run(*arguments: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{arguments} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("what", nargs="*", help="one measurement, for the processes that this starts")
    options = parser.parse_args()
    if options.what:
        measure, package, what = options.what
        print(json.dumps({"speed": speed, "epoch": epoch}[measure](package, what)))
        return
    write_pairs()
    runs: dict[str, list[dict[str, float]]] = {}
    wanted = [("speed", package, case) for case in CASES for package in ("stoker", "LLM Foundry")]
    wanted.append(("speed", "stoker", OWN))
    wanted += [("epoch", package, str(size)) for size in SIZES for package in ("stoker", "MosaicML Streaming")]
    for _ in range(options.rounds):
        for measure, package, what in wanted:
            name = f"{measure}/{package}/{what}"
            runs.setdefault(name, []).append(run(measure, package, what))
            print(name, runs[name][-1], flush=True)
    document = {"machine": machine(), "runs": runs}
    (RESULTS / "drop_in.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
