"""How full packed rows are, and what packing costs, beside LLM Foundry's packer and TRL's.

Question: how much of a batch is padding? What does packing cost of the CPU, per sample and per token?
Method: instructions, conversations (../shared/data, GPT-NeoX tokenizer) and a log-normal set, seq_len 2048 and 4096.
Fill is what `DataLoader.stats()` says over some passes, beside best fit over the whole set at once, LLM Foundry's
packer (`stoker.packing.FoundryPacker`, which equals it; batches of 8) at ratios 3, 9 and seq_len / mean, and TRL's
"bfd" over the whole set. Speed: the layout alone on lengths in memory (core_bench), packed batches and `concat` batches
of the same shards through Python, LLM Foundry's own collators on the same samples as lists, TRL's `pack_dataset`; every
one in a process of its own, in rounds.
Command: `make bench`, or `python benchmarks/packing.py [--rounds 3]` in its environment.
Result: benchmarks/results/packing.json; benchmarks/report.py puts it into docs/benchmarks.md, with the reading.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from typing import Any

import numpy as np
from contenders import OUT, cpu_seconds
from throughput import CORE, RESULTS, ROOT, machine

BATCH_SIZE = 8
SETS = ("instruct", "chat", "lognormal")
SEQ_LENS = (2048, 4096)


def lengths_of(name: str) -> np.ndarray:
    """Tokens of each sample, from the heads of the shards."""
    import stoker

    with stoker.DataLoader(
        stoker.Stream(local=OUT / name), layout="pad", seq_len=1 << 20, batch_size=1, shuffle=False
    ) as loader:
        dataset = loader.dataset
        lengths = [
            len(dataset.read(name, shard, sample)["tokens"])
            for shard, samples in enumerate(dataset.indexes[0].samples.tolist())
            for sample in range(samples)
        ]
    return np.array(lengths)


def fill(name: str, seq_len: int) -> dict[str, Any]:
    """Shares of tokens in the rows."""
    import stoker
    from stoker.packing import FoundryPacker, best_fit

    lengths = np.minimum(lengths_of(name), seq_len)
    total = int(lengths.sum())
    out: dict[str, Any] = {"samples": len(lengths), "tokens": total}
    out["whole set, best fit"] = total / (len(best_fit(lengths, seq_len)) * seq_len)
    stream = stoker.Stream(local=OUT / name, overflow="truncate")
    with stoker.DataLoader(stream, layout="pack", seq_len=seq_len, batch_size=1, epoch_size=4 * len(lengths)) as loader:
        for _ in loader:
            pass
        out["stoker"] = loader.stats()["fill"]
    shuffled = lengths[np.random.default_rng(0).permutation(len(lengths))]
    for label, ratio in (("3", 3.0), ("9", 9.0), ("seq_len / mean", seq_len / lengths.mean())):
        packer = FoundryPacker(BATCH_SIZE, seq_len)
        raw, rows, packed = int(BATCH_SIZE * ratio), 0, 0
        for begin in range(0, len(shuffled) - raw + 1, raw):
            for row in packer.pack(shuffled[begin : begin + raw]):
                packed += int(shuffled[row].sum())
                rows += 1
        out[f"LLM Foundry, ratio {label}"] = packed / (rows * seq_len)
        out[f"LLM Foundry, ratio {label}: left over"] = sum(map(len, packer.leftovers))
    out["TRL, bfd"] = total / (len(pack_by_trl(lengths, seq_len)) * seq_len)
    return out


def pack_by_trl(lengths: np.ndarray, seq_len: int) -> Any:
    import datasets
    from trl import pack_dataset

    datasets.disable_progress_bars()
    ids = [[0] * int(n) for n in lengths]
    return pack_dataset(datasets.Dataset.from_dict({"input_ids": ids}), seq_len, strategy="bfd")


def speed(what: str, name: str, seq_len: int) -> dict[str, float]:
    """Tokens, wall and CPU seconds."""
    return {"loader": loader_speed, "foundry": foundry_speed, "trl": trl_speed}[what.split("-")[0]](what, name, seq_len)


def loader_speed(what: str, name: str, seq_len: int) -> dict[str, float]:
    import stoker

    _, layout, workers = what.split("-")
    stream = stoker.Stream(local=OUT / name)
    with stoker.DataLoader(
        stream, layout=layout, seq_len=seq_len, batch_size=BATCH_SIZE, num_workers=int(workers), epoch_size=1 << 30
    ) as loader:
        batches = iter(loader)
        for _ in range(50):
            next(batches)
        before = loader.stats()["tokens"]
        cpu, start = cpu_seconds(), time.perf_counter()
        while loader.stats()["tokens"] - before < 100e6:
            for _ in range(200):
                next(batches)
        cpu, wall = cpu_seconds() - cpu, time.perf_counter() - start
        return {"tokens": loader.stats()["tokens"] - before, "wall_s": wall, "cpu_s": cpu}


def foundry_speed(what: str, name: str, seq_len: int) -> dict[str, float]:
    """LLM Foundry's finetuning collator and packer, on samples in memory as lists: no reading, no tokenizing."""
    import stoker

    sys.path.insert(0, str(ROOT / "tests" / "peers"))
    collator = importlib.import_module("foundry").packing_collator(seq_len, BATCH_SIZE)
    with stoker.DataLoader(stoker.Stream(local=OUT / name), layout="pad", seq_len=8, batch_size=1) as loader:
        samples = []
        for sample in range(3000):
            found = loader.dataset.read(name, 0, sample)
            prompt = int((found["labels"] == -100).sum())
            if prompt >= seq_len:
                continue  # which the collator refuses
            ids = found["tokens"].astype(int).tolist()
            samples.append({"turns": [{"input_ids": ids[:prompt], "labels": ids[prompt:]}]})
    raw = int(
        BATCH_SIZE
        * seq_len
        / np.mean([len(s["turns"][0]["input_ids"]) + len(s["turns"][0]["labels"]) for s in samples])
    )
    tokens = 0
    cpu, start = cpu_seconds(), time.perf_counter()
    for begin in range(0, len(samples) - raw + 1, raw):
        batch = collator(samples[begin : begin + raw])
        tokens += int(batch["attention_mask"].sum())
    return {"tokens": tokens, "wall_s": time.perf_counter() - start, "cpu_s": cpu_seconds() - cpu}


def trl_speed(what: str, name: str, seq_len: int) -> dict[str, float]:
    import datasets
    from trl import pack_dataset

    datasets.disable_progress_bars()
    lengths = np.minimum(lengths_of(name), seq_len)
    data = datasets.Dataset.from_dict({"input_ids": [[0] * int(n) for n in lengths]})
    cpu, start = cpu_seconds(), time.perf_counter()
    pack_dataset(data, seq_len, strategy="bfd")
    return {"tokens": int(lengths.sum()), "wall_s": time.perf_counter() - start, "cpu_s": cpu_seconds() - cpu}


def run(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{arguments} failed: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("what", nargs="*", help="one measurement, for the processes that this starts")
    options = parser.parse_args()
    if options.what:
        what, name, seq_len = options.what
        print(json.dumps(fill(name, int(seq_len)) if what == "fill" else speed(what, name, int(seq_len))))
        return
    me = [sys.executable, __file__]
    sets = [name for name in SETS if (OUT / name).exists()]
    for name in set(SETS) - set(sets):
        print(f"{name} is left out: its source, ../shared/data, is not here", flush=True)
    fills = {}
    for name in sets:
        for seq_len in SEQ_LENS:
            fills[f"{name}/{seq_len}"] = run(*me, "fill", name, str(seq_len))
            print(name, seq_len, fills[f"{name}/{seq_len}"], flush=True)
    speeds: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for name in sets:
            speeds.setdefault(f"layout/{name}", []).append(run(str(CORE), "pack", "2048", str(OUT / name)))
            for what in ("loader-pack-0", "loader-pack-1", "loader-concat-0", "loader-concat-1", "foundry", "trl"):
                speeds.setdefault(f"{what}/{name}", []).append(run(*me, what, name, "2048"))
                print(what, name, speeds[f"{what}/{name}"][-1], flush=True)
    document = {"machine": machine(), "fill": fills, "speed": speeds}
    (RESULTS / "packing.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
