"""Pinned memory and batches on a real GPU: what tests/python/test_handoff.py checks with a model of one."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import stoker
from mds import write_dataset

FIELDS = ["input_ids", "labels", "position_ids", "sequence_id", "cu_seqlens"]
LENGTHS = [[9, 30, 4, 17, 2] * 40, [25, 3] * 80]
SPIN_CYCLES = 2_000_000_000  # about a second


@pytest.fixture
def streams(tmp_path: Path) -> list[stoker.Stream]:
    return [
        stoker.Stream(local=write_dataset(tmp_path, "chat", LENGTHS, labels="int32")),
        stoker.Stream(local=write_dataset(tmp_path, "web", LENGTHS)),
    ]


def load(streams: Any, **changes: Any) -> stoker.DataLoader:
    arguments: dict[str, Any] = {
        "seq_len": 32,
        "batch_size": 4,
        "layout": "pack",
        "epoch_size": 10**6,
        "fields": FIELDS,
    }
    return stoker.DataLoader(streams, **{**arguments, **changes})


def take(loader: stoker.DataLoader, num_batches: int) -> list[dict[str, Any]]:
    return list(itertools.islice(loader, num_batches))


def delay_copies(loader: stoker.DataLoader) -> None:
    """Copies wait behind a kernel that spins, while the consumer goes on."""
    assert loader._handoff is not None
    with torch.cuda.stream(loader._handoff._copies):
        torch.cuda._sleep(SPIN_CYCLES)


def checksum(batch: dict[str, Any]) -> torch.Tensor:
    """Of all fields and places, on the batch's device, without waiting for it."""
    total = torch.zeros((), dtype=torch.int64, device=batch["input_ids"].device)
    for name in FIELDS:
        values = batch[name].flatten().long()
        total += (values * torch.arange(1, len(values) + 1, device=values.device)).sum()
    return total


def test_pinned_batches_are_copied_whole_though_they_are_dropped_at_once(streams: list[stoker.Stream]) -> None:
    with load(streams) as loader:
        want = [int(checksum(batch)) for batch in take(loader, 1000)]
    with load(streams, pin_memory=True) as loader:
        torch.cuda._sleep(SPIN_CYCLES)  # so that all copies wait while buffers are filled again
        sums = []
        for batch in itertools.islice(loader, 1000):
            assert batch["input_ids"].is_pinned()
            moved = {n: v.to("cuda", non_blocking=True) if isinstance(v, torch.Tensor) else v for n, v in batch.items()}
            sums.append(checksum(moved))
        del batch, moved
        assert [int(s) for s in sums] == want


@pytest.mark.parametrize("is_static", [False, True])
def test_a_thousand_batches_behind_a_spinning_kernel_arrive_whole(
    streams: list[stoker.Stream], is_static: bool
) -> None:
    with load(streams) as loader:
        want = [int(checksum(batch)) for batch in take(loader, 1000)]
    with load(streams, device="cuda", static_buffers=is_static) as loader:
        torch.cuda._sleep(SPIN_CYCLES)
        sums = []
        for b, batch in enumerate(itertools.islice(loader, 1000)):
            sums.append(checksum(batch))
            if b % 300 == 0:
                delay_copies(loader)
        assert [int(s) for s in sums] == want


def test_next_does_not_wait_for_the_device(streams: list[stoker.Stream]) -> None:
    with load(streams, device="cuda") as loader:
        iterator = iter(loader)
        next(iterator)
        torch.cuda.synchronize()
        torch.cuda._sleep(5 * SPIN_CYCLES)
        spun = torch.cuda.current_stream().record_event()
        for _ in range(20):
            next(iterator)
        assert not spun.query()
        spun.synchronize()


def test_a_copy_runs_beside_compute(streams: list[stoker.Stream]) -> None:
    with load(streams, device="cuda", batch_size=4096) as loader:
        iterator = iter(loader)
        next(iterator)
        torch.cuda.synchronize()
        end = time.monotonic() + 60
        assert loader._feed is not None
        while not loader._feed.engine.has_batch:
            assert time.monotonic() < end
        torch.cuda._sleep(5 * SPIN_CYCLES)
        spun = torch.cuda.current_stream().record_event()
        next(iterator)  # launches copies of what is complete
        copies = [copy.done for copy, _ in loader._feed._under_way]  # type: ignore[attr-defined]
        assert copies
        copies[-1].synchronize()
        assert not spun.query()  # the kernel that was launched before the copy is still at it
        spun.synchronize()


def test_consumers_on_other_streams_and_two_of_them(streams: list[stoker.Stream]) -> None:
    with load(streams) as loader:
        want = [int(checksum(batch)) for batch in take(loader, 300)]
    for is_static in (False, True):
        mine, sums = [torch.cuda.Stream(), torch.cuda.Stream()], []
        with load(streams, device="cuda", static_buffers=is_static) as loader:
            iterator = iter(loader)
            for b in range(300):
                with torch.cuda.stream(mine[b // 3 % 2]):
                    if b % 50 == 0:
                        torch.cuda._sleep(SPIN_CYCLES // 20)
                    sums.append(checksum(next(iterator)))
        torch.cuda.synchronize()
        assert [int(s) for s in sums] == want


def test_a_graph_reads_static_buffers(streams: list[stoker.Stream]) -> None:
    with load(streams) as loader:
        want = [int(checksum(batch)) for batch in take(loader, 200)]
    with load(streams, device="cuda", static_buffers=True) as loader:
        iterator = iter(loader)
        batch = next(iterator)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            checksum(batch)  # warms up
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            total = checksum(batch)
            with pytest.raises(RuntimeError, match="captured"):
                next(iterator)
        sums = []
        for _ in range(200):
            graph.replay()
            sums.append(total.clone())
            next(iterator)
        assert [int(s) for s in sums] == want


def test_a_compiled_step_takes_batches(streams: list[stoker.Stream]) -> None:
    with load(streams) as loader:
        want = [int(checksum(batch)) for batch in take(loader, 20)]
    step = torch.compile(checksum, mode="reduce-overhead")
    with load(streams, device="cuda") as loader:
        got = []
        for batch in itertools.islice(loader, 20):
            torch.compiler.cudagraph_mark_step_begin()
            got.append(int(step({name: batch[name] for name in FIELDS})))
    assert got == want


def test_closed_in_the_middle_of_a_copy(streams: list[stoker.Stream]) -> None:
    with load(streams) as loader:
        want = [int(checksum(batch)) for batch in take(loader, 5)]
    with load(streams, device="cuda") as loader:
        iterator = iter(loader)
        batches = [next(iterator)]
        delay_copies(loader)
        batches += [next(iterator) for _ in range(4)]
    del loader, iterator
    assert [int(checksum(batch)) for batch in batches] == want


def test_torchs_default_device_changes_nothing(streams: list[stoker.Stream]) -> None:
    with load(streams) as loader:
        want = [int(checksum(batch)) for batch in take(loader, 5)]
    for arguments in ({"device": "cuda"}, {"pin_memory": True}):
        with load(streams, **arguments) as loader, torch.device("cuda"):
            assert [int(checksum(batch)) for batch in take(loader, 5)] == want


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU at most")
def test_another_device_than_the_current_one(streams: list[stoker.Stream]) -> None:
    with load(streams) as loader:
        want = [int(checksum(batch)) for batch in take(loader, 50)]
    with load(streams, device="cuda:1") as loader:
        batches = take(loader, 50)
        assert all(batch["input_ids"].device == torch.device("cuda", 1) for batch in batches)
        assert torch.cuda.current_device() == 0
        assert [int(checksum(batch)) for batch in batches] == want


def test_memory_on_the_device_does_not_grow(streams: list[stoker.Stream]) -> None:
    with load(streams, device="cuda", batch_size=256) as loader:
        iterator = iter(loader)
        for _ in range(50):
            next(iterator)
        before = torch.cuda.memory_reserved()
        for _ in range(500):
            next(iterator)
        torch.cuda.synchronize()
        assert torch.cuda.memory_reserved() <= 2 * before
