"""One loader, run and measured in a process of its own: what benchmarks/throughput.py alternates between.

    python benchmarks/contenders.py NAME [--dtype uint16] [--compression raw] [--tokens 400e6] [--pin]

Each gives batches of `input_ids` and `labels`, (8, 2048) int64 torch tensors, from streams `a` and `b` 75/25, shuffled,
and is used as its own documentation says. Prints one JSON object: tokens, wall and CPU seconds of the process and its
children between the warm-up and the end, the most memory above what was there before the loader (anonymous, and pages
of mapped files), and of stoker what its threads did. With --cold it begins with the first batch, without a warm-up, and
says which share of the files was still in the page cache.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import mmap
import os
import shutil
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
STATS: list[Callable[[], dict[str, float]]] = []  # of a stoker loader


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
    STATS.append(lambda: {name: loader.stats()[name] for name in ("batches", "plan_s", "load_s", "fill_s", "wait_s")})
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

    directories = {name: OUT / f"{name}-{options.dtype}-{options.compression}" for name in ("a", "b")}
    if options.compression == "zstd":  # it decompresses shards beside their index: into a copy of the directory
        for name, directory in directories.items():
            directories[name] = OUT / f"streaming-{directory.name}"
            if not directories[name].exists():
                shutil.copytree(directory, directories[name], copy_function=os.link)
    streams = [streaming.Stream(local=str(directories[name]), proportion=p) for name, p in (("a", 0.75), ("b", 0.25))]
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
    """MapDataset.mix over memory-mapped rows, shuffled, batched, read by its threads. (Its worker processes wait for
    ever behind torch here, so they are left out.)"""
    import grain.python as pg

    parts = [pg.MapDataset.source(_FlatRows(OUT / f"{name}.bin")).shuffle(seed=0).repeat() for name in ("a", "b")]
    dataset = pg.MapDataset.mix(parts, weights=[0.75, 0.25]).batch(BATCH_SIZE)
    iterable = dataset.to_iter_dataset(pg.ReadOptions(num_threads=workers, prefetch_buffer_size=16))
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
    **{f"grain-{n}": (grain, n) for n in (0, 4)},
    **{f"hf-datasets-{n}": (hf_datasets, n) for n in (0, 2)},
    "nanogpt-0": (nanogpt, 0),
    "hand-written-0": (hand_written, 0),
}


def processes() -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def cpu_seconds() -> float:
    """Of this process, its children, and those of them that have ended."""
    total = 0.0
    for process in processes():
        times = process.cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return total


class Memory:
    """The most memory that this process and its children have taken since this was made, as far as it was looked at."""

    def __init__(self) -> None:
        self._before = self._now()
        self.most = dict.fromkeys(self._before, 0)

    @staticmethod
    def _now() -> dict[str, int]:
        total = {"RssAnon": 0, "RssFile": 0}
        for process in processes():
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                name = line.split(":")[0]
                if name in total:
                    total[name] += int(line.split()[1]) << 10
        return total

    def look(self) -> None:
        for name, size in self._now().items():
            self.most[name] = max(self.most[name], size - self._before[name])


def data_files() -> list[Path]:
    return [path for path in OUT.rglob("*") if path.is_file() and path.stat().st_size and "scale" not in path.parts]


def put_out_of_cache() -> float:
    """Puts the data sets out of the page cache. Returns which share is still there."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    resident = pages = 0
    for path in data_files():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        size = os.fstat(descriptor).st_size
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        flags = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), flags) == 0:
            resident += sum(flag & 1 for flag in flags)
            pages += len(flags)
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
        os.close(descriptor)
    return resident / max(1, pages)


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
    resident = put_out_of_cache() if options.cold else None
    make, workers = CONTENDERS[options.name]
    torch.set_num_threads(1)
    memory = Memory()
    tokens = checksum = 0
    cpu, begin = cpu_seconds(), time.perf_counter()
    batches = make(options, workers)
    next(batches)
    first_batch_s = time.perf_counter() - begin
    if not options.cold:
        for _ in range(50):
            next(batches)
        memory.look()
        cpu, begin = cpu_seconds(), time.perf_counter()
    looks = 0
    while tokens < options.tokens and time.perf_counter() - begin < options.seconds:
        for _ in range(64):
            ids, labels = next(batches)
            tokens += ids.numel()
        checksum ^= int(ids[0, 0]) ^ int(labels[-1, -1])
        if tokens > looks * options.tokens / 4:  # a few times only: looking takes CPU too
            memory.look()
            looks += 1
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - begin
    assert ids.dtype == labels.dtype == torch.int64
    assert ids.shape == labels.shape == (BATCH_SIZE, SEQ_LEN)
    memory.look()
    print(
        json.dumps(
            {
                "name": options.name,
                "tokens": tokens,
                "wall_s": wall,
                "cpu_s": cpu,
                "first_batch_s": first_batch_s,
                "anonymous_bytes": memory.most["RssAnon"],
                "mapped_bytes": memory.most["RssFile"],
                "resident_before": resident,
                "threads": STATS[-1]() if STATS else None,
            }
        ),
        flush=True,
    )
    os._exit(0)  # some loaders' worker processes do not end by themselves


if __name__ == "__main__":
    main()
