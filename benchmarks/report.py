"""Writes docs/benchmarks.md and docs/scale.md from the JSON that throughput.py and scale.py have measured.

python benchmarks/report.py
"""

from __future__ import annotations

import json
from statistics import median
from typing import Any

from throughput import RESULTS, ROOT

NAMES = {
    "stoker-0": "stoker, no threads",
    "stoker-1": "stoker, 1 thread",
    "stoker-2": "stoker, 2 threads (default)",
    "hand-written-0": "the best loop by hand",
    "nanogpt-0": "nanoGPT `get_batch`",
    "litdata-0": "LitData `TokensLoader`",
    "litdata-1": "LitData `TokensLoader`, 1 worker",
    "grain-0": "Grain `MapDataset.mix`",
    "hf-datasets-0": "HF datasets, interleaved",
    "hf-datasets-2": "HF datasets, interleaved, 2 workers",
    "mosaicml-streaming-0": "MosaicML Streaming",
    "mosaicml-streaming-2": "MosaicML Streaming, 2 workers",
}


def heading(machine: dict[str, Any], command: str) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"Measured on {machine['cpus']} CPUs of {machine['cpu']} (shared, noisy), Linux {machine['kernel']}, Python "
        f"{machine['python']}; {versions}; commit {machine['commit']}. This page is made by `{command}`.\n"
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


class Throughput:
    """The runs of throughput.json, and their medians."""

    def __init__(self) -> None:
        document = json.loads((RESULTS / "throughput.json").read_text())
        self.machine = document["machine"]
        self.runs: dict[str, list[dict[str, Any]]] = document["runs"]

    def cpu(self, name: str) -> float:
        """CPU-seconds per 100 M tokens."""
        return median(run["cpu_s"] / run["tokens"] * 1e8 for run in self.runs[name])

    def rate(self, name: str) -> float:
        """Million tokens a second."""
        return median(run["tokens"] / run["wall_s"] / 1e6 for run in self.runs[name])

    def of(self, name: str, field: str) -> float:
        return median(run[field] for run in self.runs[name])

    def contenders(self, kind: str, reference: str) -> str:
        names = [name for name in self.runs if name.startswith(f"{kind}/")]
        rows = []
        for name in sorted(names, key=self.cpu):
            mebibytes = self.of(name, "anonymous_bytes") / (1 << 20)
            rows.append(
                [
                    NAMES[name.split("/")[1]],
                    f"{self.cpu(name):.3f}",
                    f"{self.cpu(name) / self.cpu(f'{kind}/{reference}'):.2f}x",
                    f"{self.rate(name):,.0f}",
                    f"{mebibytes:.0f}",
                ]
            )
        return table(["", "CPU-s / 100 M tokens", "of stoker's", "M tokens/s", "MiB"], rows)

    def core(self) -> str:
        def single(name: str) -> float:
            return self.of(name, "tokens") / self.of(name, "cpu_s") / 1e6

        decode_and_fill = 1 / (1 / single("bound/decode") + 1 / single("bound/shuffled-1"))
        rows = [
            ["plain loop, rows in file order, ring of 1 MiB", f"{single('bound/rows-1'):,.0f}", ""],
            ["plain loop, rows in file order, ring of 64 MiB", f"{single('bound/rows-64'):,.0f}", ""],
            ["plain loop, rows shuffled, ring of 1 MiB", f"{single('bound/shuffled-1'):,.0f}", ""],
            ["plain loop, rows shuffled, ring of 64 MiB", f"{single('bound/shuffled-64'):,.0f}", ""],
            ["libzstd alone, on the same frames", f"{single('bound/decode'):,.0f}", ""],
            ["libzstd, then the shuffled loop", f"{decode_and_fill:,.0f}", ""],
        ]
        for compression, bound in (("raw", single("bound/shuffled-1")), ("zstd", decode_and_fill)):
            rates = {n: self.rate(f"core/{compression}-{n}") for n in (0, 1, 2)}
            rows.append([f"stoker's core, {compression}, no workers", f"{rates[0]:,.0f}", f"{rates[0] / bound:.0%}"])
            for n in (1, 2):
                name = f"stoker's core, {compression}, {n} worker{'s' * (n > 1)} beside the consumer"
                rows.append([name, f"{rates[n]:,.0f}", f"{rates[n] / rates[0]:.2f}x of none"])
            for n in (0, 1):
                through = self.rate(f"{compression}/stoker-{n}")
                name = f"stoker through Python, {compression}, {n or 'no'} worker{'s' * (n != 1)}"
                rows.append([name, f"{through:,.0f}", f"{through / bound:.0%}"])
        return table(["", "M tokens/s", "of the shuffled bound"], rows)


def benchmarks() -> str:
    t = Throughput()
    best = min(("raw/stoker-0", "raw/stoker-1", "raw/stoker-2"), key=t.cpu)

    def ratio(peer: str) -> str:
        return f"{t.cpu(peer) / t.cpu(best):.1f}x"

    return f"""# Benchmarks

{heading(t.machine, "make bench")}
The work: two streams, 75% and 25%, of 2048-token samples of real text (200 M tokens, uint16), shuffled, in batches of
8 x 2048 `input_ids` and `labels` as int64 torch tensors, from a warm page cache. Every loader runs in a process of its
own, as its documentation says, in rounds one after the other; figures are medians of {len(t.runs[best])} rounds.
*CPU-s* is what the whole process and its children take: what the trainer's other work has to do without. *MiB* is
anonymous memory above what was there before the loader.

{t.contenders("raw", best.split("/")[1])}
Reading: beside stoker at its best, the best loop by hand takes {ratio("raw/hand-written-0")} the CPU-seconds, though
it neither mixes, shuffles by pass, decodes, checks nor resumes; MosaicML Streaming {ratio("raw/mosaicml-streaming-0")}
(with 2 workers {ratio("raw/mosaicml-streaming-2")}), LitData {ratio("raw/litdata-0")}, Grain {ratio("raw/grain-0")}.

## Pinned to one CPU

{t.contenders("pinned", "stoker-1")}
## Other shards

int32 instead of uint16:

{t.contenders("int32", "stoker-1")}
zstd level 3 in frames of 1 MiB, with a cache that holds the blocks at hand (shuffle_block 4096, cache_memory 100 MB)
but not the data set, so that every pass decodes anew:

{t.contenders("zstd", "stoker-1")}
A cold page cache (`posix_fadvise(DONTNEED)` before the start; the data comes from this machine's disk). The
read-ahead rule: when a block becomes the next one of its stream and lane, `MADV_WILLNEED` is given for what it needs
of each shard.

{t.contenders("cold", "stoker-2")}
## Bounds

What one thread can do on the same files, compiled with the same flags, and what the core alone does. The plain loop
reads uint16 rows from a mapped file and writes ids and labels. In file order the processor's prefetcher sees what
comes; a loader reads rows in random order, so the shuffled loop is its bound, and the four buffers in flight are a
ring of 1 MiB.

{t.core()}
Without workers the consumer does all the work: one thread. With them it fills too while it waits, but decodes nothing,
so that raw shards have 2 threads with 1 worker, and zstd shards have 2 that decode with 2 workers. On 2 CPUs no more
can be had. What keeps two from twice: the buffers move from one CPU's cache to the other's.

## The consumer's time

| | p50 | p99 |
|---|--:|--:|
| `next()` with a ready batch, 2 fields | {t.of("latency/2", "p50_us"):.1f} us | {t.of("latency/2", "p99_us"):.0f} us |
| `next()` with a ready batch, 6 fields | {t.of("latency/6", "p50_us"):.1f} us | {t.of("latency/6", "p99_us"):.0f} us |

A Python thread that spins while a worker fills on another CPU runs at
{t.of("latency/gil", "spin_beside_over_apart"):.0%} of its speed beside another process that does the same: the core
does not hold the GIL (asserted by `make debug`).

## Choices

* The wheel is built for the baseline of its architecture (SSE2 on x86_64). Built for AVX2 the same loops are not faster
  here: widening is bound by stores, not by instructions. So there is no function multiversioning.
* Rows are prefetched one ahead (512 bytes): it took the core from 1.3 to 1.7 G tokens/s on these files.
* Decoded pieces lie on huge pages where the system gives them: a fifth less CPU than on small ones.
"""


def scale() -> str:
    document = json.loads((RESULTS / "scale.json").read_text())
    rows = []
    for case in document["cases"]:
        size = [f"{case['samples']:.0e}".replace("+0", ""), f"{case['shards']:,}", f"{case['streams']:,}"]
        for name in ("stoker", "mosaicml-streaming"):
            runs = [run for run in case.get(name, []) if "error" not in run]
            if not runs:
                continue
            figures = [
                f"{median(run[f] for run in runs):.3f}" if f in runs[0] else ""
                for f in ("first_batch_s", "resume_s", "epoch_boundary_s")
            ]
            memory = [f"{median(run[f] for run in runs):.0f}" for f in ("anonymous_mib", "mapped_mib")]
            rows.append([name, *size, *figures, *memory])
    ranks = []
    for world_size, r in document["ranks"].items():
        touched = f"{r['shards_touched']} of {r['shards']}"
        ranks.append([world_size, f"{r['first_batch_s']:.3f}", touched, f"{r['of_them_in_the_next_pass']}"])
    head = [
        "",
        "samples",
        "shards",
        "streams",
        "first batch s",
        "resume s",
        "epoch boundary s",
        "own MiB",
        "mapped MiB",
    ]
    return f"""# Scale

{heading(document["machine"], "make bench")}
Synthetic indexes: all shards of a stream are one real file under one name; 8 tokens a sample, layout `pad`, the
default shuffle. Each case runs in a process of its own; medians of three. Memory is what the process has above the
interpreter with torch at its end: its own (anonymous), and apart from it the pages of mapped files, which the system
takes back when it needs them. A start reads the index files and opens the shards of the first batches: no file is
looked at before.

{table(head, rows)}
Reading: nothing grows with the number of samples; what there is to do at a start is to read index.json, 0.35 KB a
shard. Memory grows with the shards and with the number of streams: each stream (and lane) has a table of shuffle_block
entries, 4 bytes each, and the heads of the shards under its block at hand and the next one, 8 bytes a sample. With
1000 streams these are 5 shards of 10^4 samples a stream; `shuffle_block=4096` makes it a third.

## Ranks

Rank 0 of W, on 10^7 samples in 1000 shards, shuffle_block 512: what it costs to start, how many shards it touches in a
pass (sampled at 2000 batches), and how many of these in the next pass.

{table(["W", "first batch s", "shards touched", "again in the next pass"], ranks)}
"""


def main() -> None:
    (ROOT / "docs" / "benchmarks.md").write_text(benchmarks())
    (ROOT / "docs" / "scale.md").write_text(scale())


if __name__ == "__main__":
    main()
