"""One loader, run and measured in a process of its own: what benchmarks/throughput.py alternates between.

    python benchmarks/contenders.py NAME [--dtype uint16] [--compression raw] [--tokens 400e6] [--pin]

Each gives batches of `input_ids` and `labels`, (8, 2048) int64 torch tensors, from streams `a` and `b` 75/25, shuffled,
and is used as its own documentation says. Prints one JSON object: tokens, wall and CPU seconds of the process and its
children between the warm-up and the end, and the most anonymous memory above what was there before the loader.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

OUT = Path(__file__).resolve().parent.parent / ".bench"
SEQ_LEN, BATCH_SIZE = 2048, 8
Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


def stoker_loader(options: argparse.Namespace, workers: int) -> Batches:
    import stoker

    loader = stoker.DataLoader(
        [
            stoker.Stream(local=OUT / f"{name}-{options.dtype}-{options.compression}", proportion=p)
            for name, p in (("a", 0.75), ("b", 0.25))
        ],
        seq_len=SEQ_LEN,
        batch_size=BATCH_SIZE,
        num_workers=workers,
        # zstd: a cache that holds the blocks at hand, but not the data set, so that every pass decodes anew.
        **({"cache_memory": "100mb", "shuffle_block": 4096} if options.compression == "zstd" else {}),
    )
    while True:
        for batch in loader:
            yield batch["input_ids"], batch["labels"]


def import_streaming() -> Any:
    """MosaicML Streaming, with an empty torchvision, which is gigabytes."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "peers"))
    importlib.import_module("conftest")
    return importlib.import_module("streaming")


def mosaicml_streaming(options: argparse.Namespace, workers: int) -> Batches:
    """StreamingDataset with two proportioned streams behind StreamingDataLoader, collated as LLM Foundry does."""
    streaming = import_streaming()

    def collate(samples: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.from_numpy(np.stack([s["tokens"] for s in samples]).astype(np.int64))
        return ids, ids.clone()

    streams = [
        streaming.Stream(local=str(OUT / f"{name}-{options.dtype}-{options.compression}"), proportion=p)
        for name, p in (("a", 0.75), ("b", 0.25))
    ]
    dataset = streaming.StreamingDataset(streams=streams, shuffle=True, batch_size=BATCH_SIZE)
    loader = streaming.StreamingDataLoader(
        dataset, batch_size=BATCH_SIZE, num_workers=workers, collate_fn=collate, drop_last=True
    )
    while True:
        yield from loader


def litdata(options: argparse.Namespace, workers: int) -> Batches:
    """CombinedStreamingDataset of two optimised data sets with TokensLoader, as in LitData's guide for pretraining."""
    import litdata as ld

    parts = []
    for name in ("a", "b"):
        directory = OUT / f"litdata-{name}"
        if not (directory / "index.json").exists():
            tokens = np.fromfile(OUT / f"{name}.bin", np.uint16).reshape(-1, SEQ_LEN)
            ld.optimize(
                fn=_LitRows(tokens),
                inputs=list(range(0, len(tokens), 256)),
                output_dir=str(directory),
                chunk_bytes="64MB",
                num_workers=1,
                item_loader=ld.TokensLoader(),
            )
        parts.append(
            ld.StreamingDataset(
                str(directory), item_loader=ld.TokensLoader(block_size=SEQ_LEN), shuffle=True, drop_last=True
            )
        )
    dataset = ld.CombinedStreamingDataset(parts, weights=[0.75, 0.25], seed=0, iterate_over_all=False)
    loader = ld.StreamingDataLoader(dataset, batch_size=BATCH_SIZE, num_workers=workers)
    while True:
        for ids in loader:
            ids = ids.to(torch.int64)
            yield ids, ids.clone()


class _LitRows:
    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens

    def __call__(self, begin: int) -> Iterator[torch.Tensor]:
        for row in self.tokens[begin : begin + 256]:
            yield torch.from_numpy(row.astype(np.int32))


class _FlatRows:
    """Rows of a flat file as a random-access source."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = np.memmap(path, np.uint16, mode="r").reshape(-1, SEQ_LEN)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.rows[i].astype(np.int64)

    def __reduce__(self) -> tuple[type[_FlatRows], tuple[Path]]:
        return type(self), (self.path,)


def grain(options: argparse.Namespace, workers: int) -> Batches:
    """MapDataset.mix over memory-mapped rows, shuffled, batched; worker processes where asked for."""
    import grain.python as pg

    parts = [pg.MapDataset.source(_FlatRows(OUT / f"{name}.bin")).shuffle(seed=0).repeat() for name in ("a", "b")]
    dataset = pg.MapDataset.mix(parts, weights=[0.75, 0.25]).batch(BATCH_SIZE)
    iterable = dataset.to_iter_dataset(pg.ReadOptions(num_threads=0 if workers == 0 else 4, prefetch_buffer_size=16))
    if workers > 0:
        iterable = iterable.mp_prefetch(pg.MultiprocessingOptions(num_workers=workers))
    for rows in iterable:
        ids = torch.from_numpy(rows)
        yield ids, ids.clone()


def hf_datasets(options: argparse.Namespace, workers: int) -> Batches:
    """Arrow data sets interleaved by probability, in torch format, behind torch's DataLoader."""
    import datasets
    import pyarrow

    parts = []
    for name in ("a", "b"):
        directory = OUT / f"arrow-{name}"
        if not directory.exists():
            values = pyarrow.array(np.fromfile(OUT / f"{name}.bin", np.uint16))
            rows = pyarrow.FixedSizeListArray.from_arrays(values, SEQ_LEN)
            datasets.Dataset(pyarrow.table({"input_ids": rows})).save_to_disk(directory)
        parts.append(datasets.load_from_disk(directory))
    datasets.disable_progress_bars()
    mixed = datasets.interleave_datasets(parts, probabilities=[0.75, 0.25], seed=0).shuffle(seed=0)
    loader = torch.utils.data.DataLoader(
        mixed.with_format("torch"), batch_size=BATCH_SIZE, num_workers=workers, drop_last=True
    )
    while True:
        for batch in loader:
            ids = batch["input_ids"].to(torch.int64)
            yield ids, ids.clone()


def nanogpt(options: argparse.Namespace, workers: int) -> Batches:
    """get_batch of nanoGPT, a stream drawn for each batch."""
    rng = np.random.default_rng(0)
    while True:
        name = "a" if rng.random() < 0.75 else "b"
        data = np.memmap(OUT / f"{name}.bin", dtype=np.uint16, mode="r")  # anew for each batch, as it does
        ix = torch.randint(len(data) - SEQ_LEN, (BATCH_SIZE,))
        x = torch.stack([torch.from_numpy((data[i : i + SEQ_LEN]).astype(np.int64)) for i in ix])
        y = torch.stack([torch.from_numpy((data[i + 1 : i + 1 + SEQ_LEN]).astype(np.int64)) for i in ix])
        yield x, y


def hand_written(options: argparse.Namespace, workers: int) -> Batches:
    """The best loop we could write by hand: shuffled rows of one mapped file, assigned row by row. It neither mixes,
    shuffles by pass, decodes, checks nor resumes."""
    data = np.memmap(OUT / "a.bin", dtype=np.uint16, mode="r").reshape(-1, SEQ_LEN)
    rng = np.random.default_rng(0)
    while True:
        order = rng.permutation(len(data)).tolist()
        for begin in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            ids = np.empty((BATCH_SIZE, SEQ_LEN), np.int64)
            for i, row in enumerate(order[begin : begin + BATCH_SIZE]):
                ids[i] = data[row]
            yield torch.from_numpy(ids), torch.from_numpy(ids.copy())


CONTENDERS: dict[str, tuple[Callable[[argparse.Namespace, int], Batches], int]] = {
    **{f"stoker-{n}": (stoker_loader, n) for n in (0, 1, 2, 4)},
    **{f"mosaicml-streaming-{n}": (mosaicml_streaming, n) for n in (0, 1, 2)},
    **{f"litdata-{n}": (litdata, n) for n in (0, 1, 2)},
    **{f"grain-{n}": (grain, n) for n in (0, 1)},
    **{f"hf-datasets-{n}": (hf_datasets, n) for n in (0, 2)},
    "nanogpt-0": (nanogpt, 0),
    "hand-written-0": (hand_written, 0),
}


def processes() -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def cpu_seconds() -> float:
    times = [p.cpu_times() for p in processes()]
    return sum(t.user + t.system for t in times)


def anonymous_bytes() -> int:
    total = 0
    for process in processes():
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                total += int(line.split()[1]) << 10
    return total


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("--dtype", default="uint16")
    parser.add_argument("--compression", default="raw")
    parser.add_argument("--tokens", type=float, default=400e6)
    parser.add_argument("--seconds", type=float, default=8, help="stop after this time, whatever the tokens")
    parser.add_argument("--pin", action="store_true", help="run on one CPU")
    parser.add_argument("--cold", action="store_true", help="put the files out of the page cache first")
    options = parser.parse_args()
    if options.pin:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if options.cold:
        for path in OUT.rglob("*"):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)
    make, workers = CONTENDERS[options.name]
    torch.set_num_threads(1)
    before = anonymous_bytes()
    start = time.perf_counter()
    batches = make(options, workers)
    next(batches)
    first_batch_s = time.perf_counter() - start
    for _ in range(50):
        next(batches)
    most, tokens, checksum = anonymous_bytes(), 0, 0
    cpu, start = cpu_seconds(), time.perf_counter()
    while tokens < options.tokens and time.perf_counter() - start < options.seconds:
        for _ in range(64):
            ids, labels = next(batches)
            tokens += ids.numel()
        checksum ^= int(ids[0, 0]) ^ int(labels[-1, -1])
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - start
    assert ids.dtype == labels.dtype == torch.int64
    assert ids.shape == labels.shape == (BATCH_SIZE, SEQ_LEN)
    most = max(most, anonymous_bytes())
    print(
        json.dumps(
            {
                "name": options.name,
                "tokens": tokens,
                "wall_s": wall,
                "cpu_s": cpu,
                "first_batch_s": first_batch_s,
                "anonymous_bytes": most - before,
            }
        ),
        flush=True,
    )
    os._exit(0)  # some loaders' worker processes do not end by themselves


if __name__ == "__main__":
    main()
