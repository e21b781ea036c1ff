"""Writes docs/benchmarks.md, docs/scale.md and the figures of README.md and docs/remote.md from the JSON that the other
benchmarks have measured.

python benchmarks/report.py
"""

from __future__ import annotations

import hashlib
import json
import time
from statistics import median
from typing import Any

from throughput import RESULTS, ROOT

BEGIN, END = "<!-- measured: benchmarks/report.py -->", "<!-- end -->"
NAMES = {
    "stoker-0": "stoker, no threads",
    "stoker-1": "stoker, 1 thread",
    "stoker-2": "stoker, 2 threads (default)",
    "hand-written-0": "the best loop by hand",
    "nanogpt-0": "nanoGPT `get_batch`",
    "litdata-0": "LitData `TokensLoader`",
    "litdata-1": "LitData `TokensLoader`, 1 worker",
    "litdata-2": "LitData `TokensLoader`, 2 workers",
    "grain-0": "Grain `MapDataset.mix`",
    "grain-4": "Grain `MapDataset.mix`, 4 threads",
    "hf-datasets-0": "HF datasets, interleaved",
    "hf-datasets-2": "HF datasets, interleaved, 2 workers",
    "mosaicml-streaming-0": "MosaicML Streaming",
    "mosaicml-streaming-1": "MosaicML Streaming, 1 worker",
    "mosaicml-streaming-2": "MosaicML Streaming, 2 workers",
}


def heading(machine: dict[str, Any], command: str) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"Measured on {machine['cpus']} CPUs of {machine['cpu']}, Linux {machine['kernel']}, Python "
        f"{machine['python']}, {machine['compiler']}; {versions}; commit {machine['commit']}. This page is made by "
        f"`{command}`.\n"
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
            mebibytes = [f"{self.of(name, field) / (1 << 20):.0f}" for field in ("anonymous_bytes", "mapped_bytes")]
            rows.append(
                [
                    NAMES[name.split("/")[1]],
                    f"{self.cpu(name):.3f}",
                    f"{self.cpu(name) / self.cpu(f'{kind}/{reference}'):.2f}x",
                    f"{self.rate(name):,.0f}",
                    *mebibytes,
                ]
            )
        return table(["", "CPU-s / 100 M tokens", "of stoker's", "M tokens/s", "MiB", "mapped MiB"], rows)

    def bound(self, compression: str, ring: str = "1") -> float:
        """Million tokens a second that one thread can write, of raw shards or of zstd shards that it decodes first."""
        loop = self.rate(f"bound/shuffled-{ring}")
        return loop if compression == "raw" else 1 / (1 / self.rate("bound/decode") + 1 / loop)

    def core(self) -> str:
        rows = [
            ["plain loop, rows in file order, ring of 1 MiB", f"{self.rate('bound/rows-1'):,.0f}", ""],
            ["plain loop, rows in file order, ring of 64 MiB", f"{self.rate('bound/rows-64'):,.0f}", ""],
            ["plain loop, rows shuffled, ring of 1 MiB", f"{self.rate('bound/shuffled-1'):,.0f}", ""],
            ["plain loop, rows shuffled, ring of 2 MiB", f"{self.rate('bound/shuffled-2'):,.0f}", ""],
            ["plain loop, rows shuffled, ring of 64 MiB", f"{self.rate('bound/shuffled-64'):,.0f}", ""],
            ["libzstd alone, on the same frames", f"{self.rate('bound/decode'):,.0f}", ""],
            ["libzstd, then the shuffled loop", f"{self.bound('zstd'):,.0f}", ""],
        ]
        for compression in ("raw", "zstd"):
            for workers in (0, 1, 2):
                rate = self.rate(f"core/{compression}-{workers}")
                of_one = rate / self.rate(f"core/{compression}-0")
                rows.append(
                    [
                        f"stoker's core, {compression}, {number(workers)} beside the consumer",
                        f"{rate:,.0f}",
                        f"{rate / self.bound(compression):.0%}" + (f", {of_one:.2f}x of none" if workers else ""),
                    ]
                )
            for workers, ring in ((0, "1"), (1, "2"), (2, "2")):
                rate = self.rate(f"{compression}/stoker-{workers}")
                name = f"stoker through Python, {compression}, {number(workers)}"
                rows.append([name, f"{rate:,.0f}", f"{rate / self.bound(compression, ring):.0%}"])
        return table(["", "M tokens/s", "of one thread's bound"], rows)

    def batch(self, name: str) -> dict[str, float]:
        """Microseconds of a batch of a stoker loader, by what they went into."""
        threads = [run["threads"] for run in self.runs[name]]
        of = {what: median(t[what] / t["batches"] for t in threads) * 1e6 for what in ("plan_s", "load_s", "fill_s")}
        whole = median(run["wall_s"] / (run["tokens"] / (8 * 2048)) for run in self.runs[name]) * 1e6
        return {"whole": whole, **of}


def number(workers: int) -> str:
    return {0: "no workers", 1: "1 worker"}.get(workers, f"{workers} workers")


def goals(t: Throughput, best: str) -> str:
    """What was set out for, and what came of it."""
    streaming = t.cpu("raw/mosaicml-streaming-0") / t.cpu(best)
    pinned = t.cpu("pinned/mosaicml-streaming-0") / min(t.cpu("pinned/stoker-0"), t.cpu("pinned/stoker-1"))
    with_workers = t.cpu("raw/mosaicml-streaming-2") / t.cpu("raw/stoker-2")
    rows = [
        (
            "MosaicML Streaming's CPU over stoker's, both with 2 workers",
            "100x",
            f"{with_workers:.0f}x",
            with_workers >= 100,
        ),
        ("the same, both at their best", "100x", f"{streaming:.0f}x", streaming >= 100),
        ("the same pinned to one CPU", "50x", f"{pinned:.0f}x", pinned >= 50),
    ]
    litdata = t.cpu("raw/litdata-0") / t.cpu(best)
    rows.append(("LitData's CPU over stoker's", "10x", f"{litdata:.1f}x", litdata >= 10))
    loop = t.cpu("raw/hand-written-0") / t.cpu(best)
    rows.append(("the best loop by hand over stoker", "1x", f"{loop:.2f}x", loop >= 1))
    for compression, aim in (("raw", 0.7), ("zstd", 0.8)):
        share = t.rate(f"core/{compression}-0") / t.bound(compression)
        rows.append((f"core, one thread, {compression}, of the bound", f"{aim:.0%}", f"{share:.0%}", share >= aim))
    share = t.rate("raw/stoker-0") / t.bound("raw")
    rows.append(("through Python, one thread, raw, of the bound", "60%", f"{share:.0%}", share >= 0.6))
    for compression, workers in (("raw", 1), ("zstd", 2)):
        two = t.rate(f"core/{compression}-{workers}") / t.rate(f"core/{compression}-0")
        rows.append((f"two threads over one, {compression}", "1.8x", f"{two:.2f}x", two >= 1.8))
    for fields, what, aim in (("2", "p50_us", 15), ("2", "p99_us", 100), ("6", "p50_us", 25)):
        got = t.of(f"latency/{fields}", what)
        name = f"`next()` with a ready batch, {fields} fields, {what.split('_')[0]}"
        rows.append((name, f"{aim} us", f"{got:.1f} us", got <= aim))
    memory = t.of("raw/stoker-2", "anonymous_bytes") / (1 << 20)
    rows.append(("memory above interpreter and torch, raw", "100 MiB", f"{memory:.0f} MiB", memory <= 100))
    return table(["", "goal", "measured", "met"], [[a, b, c, "yes" if met else "no"] for a, b, c, met in rows])


def benchmarks() -> str:
    t = Throughput()
    best = min(("raw/stoker-0", "raw/stoker-1", "raw/stoker-2"), key=t.cpu)

    def ratio(peer: str) -> str:
        return f"{t.cpu(peer) / t.cpu(best):.1f}x"

    whole = t.batch("raw/stoker-0")

    return f"""# Benchmarks

{heading(t.machine, "make bench")}
The work: two streams, 75% and 25%, of 2048-token samples of real text (200 M tokens, uint16; about 15 M of them are
different, the rest repeats them), shuffled, in batches of 8 x 2048 `input_ids` and `labels` as int64 torch tensors,
from a warm page cache. Every loader runs in a process of its own, as its documentation says, with several numbers of
workers, in rounds one after the other; figures are medians of {len(t.runs[best])} rounds. *CPU-s* is what the
whole process and its children take: what the trainer's other work has to do without. *MiB* is the most memory of its
own above what was there before the loader, *mapped MiB* that of mapped files, which the system may take back.

{t.contenders("raw", best.split("/")[1])}
{goals(t, best)}
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
A cold page cache, from the first batch on (`posix_fadvise(DONTNEED)` before the start, after which
{t.of("cold/stoker-2", "resident_before"):.1%} of the pages are still there; the data comes from this machine's disk).
The read-ahead rule: when a block becomes the next one of its stream and lane, `MADV_WILLNEED` is given for what it
needs of each shard.

{t.contenders("cold", "stoker-2")}
## Bounds

What one thread can do on the same files, compiled with the same flags, and what the core alone does. The plain loop
reads uint16 rows from a mapped file and writes ids and labels. In file order the processor's prefetcher sees what
comes; a loader reads rows in random order, so the shuffled loop is its bound, into a ring as large as the buffers in
flight: four in the core's benchmark (1 MiB), three without workers through Python (1 MiB), eight with them (2 MiB).

{t.core()}
Without workers the consumer does all the work: one thread. With them it fills too while it waits, but decodes nothing,
so that raw shards have 2 threads with 1 worker, and zstd shards have 2 that decode with 2 workers. On
{t.machine["cpus"]} CPUs no more can be had. Two threads are less than twice one where the buffers move from one CPU's
cache to the other's, and where the consumer has its own work on the same CPU.

Of {whole["whole"]:.1f} us that a batch takes through Python without workers, planning takes {whole["plan_s"]:.1f} and
filling {whole["fill_s"]:.1f}; the rest, {whole["whole"] - whole["plan_s"] - whole["fill_s"]:.1f}, goes into tensors,
the dict and calls. This, and not the core, is what the share through Python is bound by: larger batches have as much of
it.

## The consumer's time

| | p50 | p99 |
|---|--:|--:|
| `next()` with a ready batch, 2 fields | {t.of("latency/2", "p50_us"):.1f} us | {t.of("latency/2", "p99_us"):.0f} us |
| `next()` with a ready batch, 6 fields | {t.of("latency/6", "p50_us"):.1f} us | {t.of("latency/6", "p99_us"):.0f} us |

A Python thread that spins while a worker fills on another CPU (for {t.of("latency/gil", "worker_busy"):.0%} of the
time) runs at {t.of("latency/gil", "spin_beside_over_apart"):.0%} of its speed beside another process that does the
same: the core does not hold the GIL (asserted by `make debug`).

{packing()}{training()}{drop_in()}{preparing()}{fetching()}## Choices

* The wheel is built for the baseline of its architecture (SSE2 on x86_64). Built for AVX2 (`-march=x86-64-v3`) the core
  makes {t.rate("core-avx2/raw-0"):,.0f} M tokens/s instead of {t.rate("core/raw-0"):,.0f} on raw shards: widening is
  bound by stores, not by instructions. So there is no function multiversioning.
* What else was tried, and what it gave when it was, stands in csrc/README.md.
"""


def packing() -> str:
    """The section of docs/benchmarks.md on packing."""
    document = json.loads((RESULTS / "packing.json").read_text())
    head = ["", "stoker", "whole set, best fit", "TRL, bfd"]
    ratios = ["3", "9", "seq_len / mean"]
    rows = []
    for name, fill in document["fill"].items():
        others = [f"{fill[f'LLM Foundry, ratio {ratio}']:.1%}" for ratio in ratios]
        shares = ["" if fill[column] is None else f"{fill[column]:.2%}" for column in head[1:]]
        rows.append([name.replace("/", ", "), *shares, *others])
    fills = table([*head, *(f"LLM Foundry, ratio {ratio}" for ratio in ratios)], rows)
    speed: dict[str, list[dict[str, float]]] = document["speed"]

    def cpu(name: str) -> float:
        return median(run["cpu_s"] / run["tokens"] * 1e8 for run in speed[name])

    sets = [name.split("/")[1] for name in speed if name.startswith("layout/")]
    names = {
        "loader-pack-0": "stoker, packed, no workers",
        "loader-pack-1": "stoker, packed, 1 worker",
        "loader-concat-0": "stoker, `concat`, no workers",
        "loader-concat-1": "stoker, `concat`, 1 worker",
        "trl": "TRL `pack_dataset`, which makes no batches",
        "foundry": "LLM Foundry's collators, from lists in memory",
    }
    costs = [[label, *(f"{cpu(f'{what}/{name}'):.3g}" for name in sets)] for what, label in names.items()]
    rates = [f"{median(r['samples'] / r['cpu_s'] for r in speed[f'layout/{name}']) / 1e6:.1f}" for name in sets]
    wins = {
        peer: min(cpu(f"{peer}/{name}") / cpu(f"loader-pack-0/{name}") for name in sets) for peer in ("foundry", "trl")
    }
    shares = [cpu(f"loader-concat-0/{name}") / cpu(f"loader-pack-0/{name}") for name in sets]
    behind = max(fill["whole set, best fit"] - fill["stoker"] for fill in document["fill"].values())
    slowest = min(float(rate) for rate in rates)
    aims = [("at most behind whole-set best fit", "0.3 points", f"{behind * 100:.2f} points", behind <= 0.003)]
    if "instruct/2048" in document["fill"]:
        full = min(document["fill"][f"instruct/{n}"]["stoker"] for n in (2048, 4096))
        aims.insert(0, ("instructions, share of tokens in a batch", "99.7%", f"{full:.2%}", full >= 0.997))
    aims += [
        ("the layout alone, samples a second a thread", "10 M", f"{slowest:.1f} M", slowest >= 10),
        ("packed over `concat`, tokens per CPU-second", "50%", f"{min(shares):.0%}", min(shares) >= 0.5),
        ("LLM Foundry's CPU over stoker's", "1000x", f"{wins['foundry']:,.0f}x", wins["foundry"] >= 1000),
        ("TRL's CPU over stoker's, which makes batches", "10x", f"{wins['trl']:.1f}x", wins["trl"] >= 10),
    ]
    goal_rows = [[name, aim, got, "yes" if met else "no"] for name, aim, got, met in aims]
    left = document["fill"][f"{sets[0]}/2048"]
    return f"""## Packing

How much of a row is tokens, where samples are packed whole (batches of 8 rows; window 4096):

{fills}
LLM Foundry's packer leaves samples over at the end of an epoch, which are lost: of {left["samples"]:,} of {sets[0]} at
seq_len 2048, {left["LLM Foundry, ratio 3: left over"]:,} at ratio 3,
{left["LLM Foundry, ratio 9: left over"]:,} at ratio 9 and
{left["LLM Foundry, ratio seq_len / mean: left over"]:,} at seq_len / mean, and each worker has its own. Stoker loses
none, over any number of ranks (tests/python/test_pack.py).

CPU-seconds per 100 M tokens that are no padding, seq_len 2048:

{table(["", *sets], costs)}
{table(["worst of the sets", "goal", "measured", "met"], goal_rows)}
Reading: a packed row has as many places in the shards as it has samples, which is what it costs more than a row of
`concat`.

"""


def training() -> str:
    """The section of docs/benchmarks.md on what a training job notices."""
    runs: dict[str, list[dict[str, float]]] = json.loads((RESULTS / "training.json").read_text())["runs"]

    def of(run: str, figure: str) -> float:
        return median(result[figure] for result in runs[run])

    steps = [
        [
            NAMES[run.split("/")[1]],
            f"{of(run, 'wait_share'):.3%}",
            f"{max(result['wait_share'] for result in runs[run]):.3%}",
            f"{of(run, 'next_share'):.2%}",
            f"{of(run, 'ready_us'):.0f}",
            f"{of(run, 'longest_ms'):.1f}",
            f"{of(run, 'cpu_share'):.1%}",
            f"{of(run, 'anonymous_bytes') / 2**20:.0f}",
        ]
        for run in runs
        if run.startswith("step/")
    ]
    ranks = []
    for name in ("stoker-0", "stoker-1", "mosaicml-streaming-1"):
        costs = [median(r["cpu_s"] / r["tokens"] * 1e8 for r in runs[f"ranks/{name}/{w}"]) for w in (1, 4)]
        memory = [
            of(f"ranks/{name}/{w}", which) / 2**20 for which in ("anonymous_bytes", "mapped_bytes") for w in (1, 4)
        ]
        ranks.append([NAMES[name], *(f"{c:.3g}" for c in costs), *(f"{m:.0f}" for m in memory)])
    share = max(result["wait_share"] for result in runs["step/stoker-2"])
    peer = of("step/mosaicml-streaming-2", "wait_share")
    goal = [["stoker waits, worst round", "0.1%", f"{share:.3%}", "yes" if share < 0.001 else "no"]]
    return f"""## Beside a training step

A loop that sleeps 20 ms a step, as a CPU does while its GPU works, on zstd shards (8 x 2048 tokens a batch). Waiting is
the time in `next()` over that of a batch that is ready, the median, as a share of all time. After 20 ms of sleep the
caches of the CPU are cold, which is why a ready batch takes longer here than above. CPU is that of the loop and all
that the loader runs, memory what it takes above interpreter and torch.

{table(["", "waiting", "worst round", "in `next()`", "ready, us", "longest, ms", "CPU", "MiB"], steps)}
{table(["", "goal", "measured", "met"], goal)}
MosaicML Streaming with 2 workers waits {peer:.3%} of the time. The CPUs are shared: whatever else they do in a round is
in these figures.

Several ranks on this machine, raw shards, as fast as they go: CPU-seconds per 100 M tokens, and what each rank adds to
its resident memory above interpreter and torch: its own, and pages of the mapped shards, which all ranks share, MiB:

{table(["", "1 rank", "4 ranks", "own, 1", "own, 4", "mapped, 1", "mapped, 4"], ranks)}
What ran on a GPU is told in [training](training.md).

"""


def drop_in() -> str:
    """The section of docs/benchmarks.md on `stoker.foundry`."""
    runs: dict[str, list[dict[str, float]]] = json.loads((RESULTS / "drop_in.json").read_text())["runs"]

    def of(name: str, what: str) -> float:
        return median(result[what] for result in runs[name])

    rows = []
    wins = {}
    own = "instructions, layout: pack"
    for case in ("text", "instructions", "instructions, packed", own):
        ours = f"speed/stoker/{case}"
        theirs = f"speed/LLM Foundry/{'instructions, packed' if case == own else case}"
        wins[case] = of(ours, "tokens/CPU s") / of(theirs, "tokens/CPU s")
        rates = [f"{of(name, 'tokens/CPU s') / 1e6:.3g}" for name in (theirs, ours)]
        firsts = [f"{of(name, 'first batch s'):.2f}" for name in (theirs, ours)]
        rows.append([case, *rates, f"{wins[case]:,.0f}x", *firsts])
    goals = [
        [name, f"{goal}x", f"{wins[case]:,.0f}x", "yes" if wins[case] >= goal else "no"]
        for name, case, goal in (
            ("text", "text", 50),
            ("finetuning, with its packer", "instructions, packed", 50),
            ("finetuning, with stoker's packing", own, 500),
        )
    ]
    orders = []
    for size in ("1000000", "10000000", "100000000"):
        names = [f"epoch/{package}/{size}" for package in ("MosaicML Streaming", "stoker")]
        seconds, memory = ([f"{of(name, what):.3g}" for name in names] for what in ("s", "bytes/sample"))
        orders.append([f"{int(size):,}", *seconds, *memory])
    return f"""## By LLM Foundry's YAML

`build_dataloader` of `stoker.foundry` and of LLM Foundry 0.22 on the same configuration and files, no workers: text is
rows of 2048 tokens of two weighted streams, instructions are prompts and responses as token ids. Millions of tokens
that are no padding for a second of the CPU, {over(runs["speed/stoker/text"])}, and seconds to the first batch
(stoker's with making its first shards of prompts and responses, where they are not made yet; importing is in neither).
stoker's packing stands beside LLM Foundry's.

{table(["", "LLM Foundry, M/CPU s", "stoker, M/CPU s", "win", "LLM Foundry, first", "stoker, first"], rows)}
{table(["tokens of a second of the CPU", "goal", "measured", "met"], goals)}
The order of an epoch (py1e, 8 ranks), as one rank has it: seconds, and bytes a sample at most. The reference's is made
once a node, while all ranks wait; stoker's on each rank, and from the second epoch on while the one before is
delivered.

{table(["samples", "Streaming, s", "stoker, s", "Streaming, bytes a sample", "stoker, bytes a sample"], orders)}
"""


def preparing() -> str:
    """The section of docs/benchmarks.md on `stoker prepare`."""
    runs: dict[str, list[dict[str, float]]] = json.loads((RESULTS / "preparing.json").read_text())["runs"]
    rows = []
    shares = {}
    for name, results in runs.items():
        source, contender = name.split("/", 1)
        if source == "large":
            continue
        bound = runs[f"{source}/encode_batch"]
        size = bound[0]["bytes"]
        rate, cpu = (
            median(one[what] / other[what] for one, other in zip(bound, results, strict=True))
            for what in ("seconds", "cpu_s")
        )
        shares[name] = rate
        rows.append(
            [
                f"{source}, {contender}",
                f"{size / 1e6 / median(result['seconds'] for result in results):.2f}",
                f"{rate:.0%}",
                "not known" if contender == "datatrove" else f"{cpu:.0%}",  # whose processes are not its children
                f"{max(result['resident_bytes'] for result in results) / 2**20:.0f}",
            ]
        )
    worst = min(shares["text/stoker"], shares["instructions/stoker"])
    goal = [["`stoker prepare`, of encode_batch's rate", "95%", f"{worst:.0%}", "yes" if worst >= 0.95 else "no"]]
    sizes = [
        [of.removeprefix("large/"), f"{results[0]['resident_bytes'] / 2**20:.0f}"]
        for of, results in runs.items()
        if of.startswith("large/")
    ]
    large = f"Memory does not grow with a source:\n\n{table(['', 'MiB at most'], sizes)}\n" if sizes else ""
    return f"""## Preparing data

Raw text of ../shared/data as JSON lines to shards, GPT-NeoX tokenizer, all CPUs. The bound is the tokenizer alone
(`tokenizers.encode_batch`, 1000 texts at a time, in its own threads), of which nothing but the call is timed; the
others are timed from their start to the last file: `stoker prepare`, LLM Foundry's `convert_dataset_json` (rows of
2048 tokens), datatrove's `DocumentTokenizer`. Rates and CPU-seconds are beside the bound's in the same round,
{over(runs["text/stoker"])}; memory is the most that a process and its children have resident.

{table(["", "MB/s of text", "of the bound's rate", "bound's CPU over its own", "MiB"], rows)}
{table(["", "goal", "measured", "met"], goal)}
{large}Reading: what a preparation takes is tokenizing. A process that works alone lets the tokenizer's threads use all
CPUs; of several each has one, so that none waits for the others.

"""


def fetching() -> str:
    """The section of docs/benchmarks.md on `stoker fetch`."""
    speed: dict[str, list[float]] = json.loads((RESULTS / "faults.json").read_text())["speed"]
    bound = speed["obstore alone"]

    def relative(name: str) -> float:
        return median(one / other for one, other in zip(bound, speed[name], strict=True))

    rows = [[name, f"{median(speed[name]):.2f}", f"{relative(name):.0%}"] for name in speed]
    share = relative("stoker fetch")
    name = "`stoker fetch` with hashes, of obstore's rate"
    goal = [[name, "90%", f"{share:.0%}", "yes" if share >= 0.9 else "no"]]
    return f"""## Fetching

1 GB in shards of 64 MB from a real S3 server (SeaweedFS) on this machine, medians of {len(speed["stoker fetch"])}
rounds. `stoker fetch` compares each shard with its sha256, or without hashes (`validate_hash=None`) waits until it is
on the disk; obstore alone writes ranges of 8 MiB into files from as many threads, with and without waiting for the
disk.

{table(["", "seconds", "of obstore's rate"], rows)}
{table(["", "goal", "measured", "met"], goal)}
Reading: client, server and hashing share two CPUs here, so that whatever stoker does besides takes from the rate:
sha256 alone is {1 / sha256_rate():.1f} s of CPU.

"""


def over(results: list[dict[str, float]]) -> str:
    """What figures are of."""
    return "of one round" if len(results) == 1 else f"medians of {len(results)} rounds"


def sha256_rate() -> float:
    """GB a second, here."""
    block = bytes(64 << 20)
    begin = time.perf_counter()
    hashlib.sha256(block).digest()
    return len(block) / 1e9 / (time.perf_counter() - begin)


def remote() -> str:
    """docs/remote.md with what loaders did when something failed."""
    faults: dict[str, dict[str, str]] = json.loads((RESULTS / "faults.json").read_text())["faults"]
    loaders = list(faults["no fault"])
    rows = [[case, *(shortened(outcomes[loader]) for loader in loaders)] for case, outcomes in faults.items()]
    names = [loader.replace("streaming", "MosaicML Streaming", 1) for loader in loaders]
    lines = [["", *names], ["---"] * (1 + len(loaders)), *rows]
    shown = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return between_marks(
        (ROOT / "docs" / "remote.md").read_text(),
        f"""What came of it in an epoch of 2,000 samples in 20 shards, from an S3 server behind a proxy that has one
fault, each loader in a process of its own (`benchmarks/faults.py`; MosaicML Streaming 0.13):

{shown}
""",
    )


def shortened(outcome: str) -> str:
    """Without the text of an error, but for its class."""
    kind, _, rest = outcome.partition(": ")
    return f"`{rest.split(':')[0]}`" if kind == "error" else outcome


def between_marks(text: str, figures: str) -> str:
    """The text with what stands between its markers replaced."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + figures + END + rest.split(END)[1]


def scale() -> str:
    document = json.loads((RESULTS / "scale.json").read_text())
    rows = []
    for case in document["cases"]:
        size = [f"{case['samples']:.0e}".replace("+0", ""), f"{case['shards']:,}", f"{case['streams']:,}"]
        names = {
            "stoker": "stoker",
            "small block": "the same, shuffle_block 4096",
            "mosaicml-streaming": "mosaicml-streaming",
        }
        for key, name in names.items():
            if key not in case:
                continue
            seconds = [
                f"{median(r[f] for r in case[key]):.3f}" for f in ("first_batch_s", "resume_s", "epoch_boundary_s")
            ]
            memory = [f"{median(r[f] for r in case[key]):.0f}" for f in ("anonymous_mib", "mapped_mib")]
            rows.append([name, *size, *seconds, *memory])
    ranks = []
    for world_size, runs in document["ranks"].items():
        touched = f"{runs[0]['shards_touched']} of {runs[0]['shards']}"
        seconds = f"{median(r['first_batch_s'] for r in runs):.3f}"
        ranks.append([world_size, seconds, touched, f"{runs[0]['of_them_in_the_next_pass']}"])
    kilobytes = document["cases"][-1]["index_bytes_a_shard"] / 1000
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
Synthetic indexes: all shards of a stream are one real file under one name; 8 tokens a sample, layout `pad`, the default
shuffle. Each case runs in a process of its own; medians of three (of mosaicml-streaming at 10^8 samples one run; at
10^9 it would need 60 GB). *Epoch boundary* is the step over an epoch's end without workers, which would have filled
that batch ahead. Memory is the most that the process takes above the interpreter with torch: its own (anonymous), and
apart from it the pages of mapped files, which the system takes back when it needs them. A start reads the index files
and opens the shards of the first batches: no file is looked at before.

{table(head, rows)}
Reading: nothing grows with the number of samples; what there is to do at a start is to read index.json,
{kilobytes:.2f} KB a shard. Memory grows with the shards and with the number of streams: each stream (and lane) has a
table of shuffle_block entries, 4 bytes each, and the heads of the shards under its block at hand and the next one, 8
bytes a sample. With 1000 streams these are 5 shards of 10^4 samples a stream; a smaller `shuffle_block` makes it less.

## Ranks

The last rank of W, on 10^7 samples in 1000 shards, shuffle_block 512: what it costs to start, how many shards it
touches in a pass (looked at in up to 2000 batches of it), and how many of these in the next pass.

{table(["W", "first batch s", "shards touched", "again in the next pass"], ranks)}
"""


def readme() -> str:
    """README.md with the figures between its markers measured anew."""
    t, document = Throughput(), json.loads((RESULTS / "scale.json").read_text())
    best = min(("raw/stoker-0", "raw/stoker-1", "raw/stoker-2"), key=t.cpu)
    hand = "raw/hand-written-0"
    peers = {
        "stoker": best,
        "the best loop by hand, which neither mixes, shuffles by pass, decodes, checks nor resumes": hand,
        "Grain `MapDataset.mix`": "raw/grain-0",
        "LitData `TokensLoader`": "raw/litdata-0",
        "HF datasets, interleaved": "raw/hf-datasets-0",
        "nanoGPT `get_batch`": "raw/nanogpt-0",
        "MosaicML Streaming": "raw/mosaicml-streaming-0",
    }
    rows = [
        [name, f"{t.cpu(run):.3g}", f"{t.cpu(run) / t.cpu(best):.3g}x"]
        for name, run in sorted(peers.items(), key=lambda peer: t.cpu(peer[1]))
    ]
    largest = next(c for c in document["cases"] if (c["samples"], c["streams"]) == (10**9, 1))["stoker"]
    peer = next(c for c in document["cases"] if c["samples"] == 10**8)["mosaicml-streaming"][0]
    figures = f"""{table(["", "CPU-s", ""], rows)}
10^9 samples in 10^5 shards give their first batch after {median(r["first_batch_s"] for r in largest):.1f} s and resume,
at any batch, in {median(r["resume_s"] for r in largest):.1f} s; MosaicML Streaming takes {peer["first_batch_s"]:.0f} s
and {peer["anonymous_mib"] / 1024:.1f} GB at 10^8 samples ([scale](docs/scale.md)).
"""
    return between_marks((ROOT / "README.md").read_text(), figures)


def main() -> None:
    (ROOT / "docs" / "benchmarks.md").write_text(benchmarks())
    (ROOT / "docs" / "scale.md").write_text(scale())
    (ROOT / "docs" / "remote.md").write_text(remote())
    (ROOT / "README.md").write_text(readme())


if __name__ == "__main__":
    main()
