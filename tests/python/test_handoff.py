"""Batches on a device, with a model of one: memory that is reused or read too early shows as poison."""

from __future__ import annotations

import itertools
import json
import os
import random
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import stoker
import stoker.accelerator
import stoker.handoff
from mds import write, write_dataset
from standin import POISON, StandIn

FIELDS = ["input_ids", "labels", "attention_mask", "position_ids", "sequence_id", "stream_ids", "cu_seqlens"]
LENGTHS = [[9, 30, 4, 17, 2] * 4, [25, 3] * 8]


@pytest.fixture
def streams(tmp_path: Path) -> list[stoker.Stream]:
    return [
        stoker.Stream(local=write_dataset(tmp_path, "chat", LENGTHS, labels="int32")),
        stoker.Stream(local=write_dataset(tmp_path, "web", LENGTHS)),
    ]


def load(streams: Any, device: Any = None, **changes: Any) -> stoker.DataLoader:
    arguments: dict[str, Any] = {
        "seq_len": 24,
        "batch_size": 3,
        "layout": "pack",
        "fields": FIELDS,
        "epoch_size": 10_000,
        "num_workers": 1,
        "pad_id": 7,
    }
    return stoker.DataLoader(streams, device=device, **{**arguments, **changes})


Batch = dict[str, Any]


def on_cpu(batch: Batch, device: StandIn) -> Batch:
    return {name: v if isinstance(v, int) else device.to_host(v) for name, v in batch.items()}


def take(loader: stoker.DataLoader, num_batches: int) -> list[Batch]:
    batches = list(itertools.islice(iter(loader), num_batches))
    assert len(batches) == num_batches
    return batches


def assert_same(got: list[Batch], want: list[Batch]) -> None:
    for b, (one, other) in enumerate(zip(got, want, strict=True)):
        assert list(one) == list(other)
        for name, values in other.items():
            if isinstance(values, int):
                assert one[name] == values
            else:
                assert one[name].dtype == values.dtype, name
                np.testing.assert_array_equal(one[name].numpy(), values.numpy(), err_msg=f"batch {b} {name}")


# ---------------------------------------------------------------- what arrives
@given(st.data())
def test_a_batch_on_the_device_is_the_batch_on_the_cpu(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("shards")
    forms = [{}, {"dtype": "int32"}, {"dtype": "uint32"}, {"labels": "int32"}, {"labels": "int64", "dtype": "int64"}]
    chosen = data.draw(st.lists(st.sampled_from(forms), min_size=1, max_size=3))
    streams = [stoker.Stream(local=write_dataset(root, f"s{i}", LENGTHS, **form)) for i, form in enumerate(chosen)]
    changes: dict[str, Any] = {
        "layout": data.draw(st.sampled_from(["pad", "concat", "pack"])),
        "dtype": data.draw(st.sampled_from(["int32", "int64"])),
        "vocab_size": data.draw(st.sampled_from([None, 65_436, 65_536, 100_000])),
        "pad_id": data.draw(st.sampled_from([0, 50_001, 65_535, 65_536, -1])),
        "num_workers": data.draw(st.integers(0, 2)),
        "prefetch_factor": data.draw(st.integers(1, 4)),
    }
    with load(streams, **changes) as loader:
        want = take(loader, 6)
    device = StandIn(random.Random(data.draw(st.integers(0, 1000))))
    with load(streams, device, **changes) as loader:
        got = [on_cpu(batch, device) for batch in itertools.islice(loader, 6)]
    assert_same(got, want)


@pytest.mark.parametrize(
    ("ids", "labels", "vocab_size", "bytes_a_token"),
    [
        ("uint16", None, None, 3),  # and a byte that says where there is loss
        ("uint32", None, None, 5),
        ("uint32", None, 50_000, 3),
        ("uint16", "int32", None, 6),
        ("uint16", "int32", 65_436, 4),
        ("uint16", "int32", 65_437, 6),
    ],
)
def test_bytes_a_token_on_the_wire(
    tmp_path: Path, ids: str, labels: str | None, vocab_size: int | None, bytes_a_token: int
) -> None:
    form = {"dtype": ids} if labels is None else {"dtype": ids, "labels": labels}
    stream = stoker.Stream(local=write_dataset(tmp_path, "a", [[64] * 8], **form))
    device = StandIn()
    with load(
        stream, device, seq_len=64, batch_size=4, fields=["input_ids", "labels"], vocab_size=vocab_size
    ) as loader:
        take(loader, 1)
    assert set(device.copied_bytes) == {bytes_a_token * 64 * 4}


def test_streams_of_different_types_travel_as_the_widest(tmp_path: Path) -> None:
    streams = [
        stoker.Stream(local=write(tmp_path / name, [{"tokens": tokens}] * 9, dtype=dtype))
        for name, dtype, tokens in (("a", "uint16", [65_535] * 8), ("b", "uint32", [70_000] * 8))
    ]
    device = StandIn()
    with load(
        streams, device, layout="concat", seq_len=8, batch_size=6, fields=["input_ids"], epoch_size=None
    ) as loader:
        values = {int(v) for batch in loader for v in on_cpu(batch, device)["input_ids"].flatten()}
    assert values == {65_535, 70_000}
    assert set(device.copied_bytes) == {192}


def test_labels_near_minus_100_in_two_bytes(tmp_path: Path) -> None:
    samples = [{"input_ids": [5, 65_435, 40_000, 0], "labels": [-100, 65_435, 40_000, 0]}] * 4
    stream = stoker.Stream(local=write(tmp_path / "a", samples, dtype="uint32", labels_dtype="int32"))
    device = StandIn()
    with load(stream, device, layout="pad", seq_len=5, vocab_size=65_436, fields=["input_ids", "labels"]) as loader:
        batch = on_cpu(next(iter(loader)), device)
    assert batch["input_ids"][0].tolist() == [5, 65_435, 40_000, 0, 7]
    assert batch["labels"][0].tolist() == [-100, 65_435, 40_000, 0, -100]


# ---------------------------------------------------------------- memory and order
def scenario(streams: list[stoker.Stream], rng: random.Random | None, *, is_static: bool = False) -> None:
    """Trains on the device for a while, on several streams, late and at random. Fails where a batch is not what it is
    on the CPU."""
    num_batches = 24
    with load(streams) as loader:
        want = take(loader, num_batches)
    device = StandIn(rng)
    mine = device.new_stream()
    with load(streams, device, static_buffers=is_static) as loader:
        iterator = iter(loader)
        kept: list[tuple[Batch, int]] = []
        sums = []
        for b in range(num_batches):
            with device.launching_on(mine if b % 5 in (1, 2) else device.streams[0]):
                wait_for_a_batch(loader)
                batch = next(iterator)
                if b % 2:
                    device.current_stream().synchronize()  # the batch is there
                # A step that reads it later, as a kernel does.
                sums.append({name: v if isinstance(v, int) else v.clone() for name, v in batch.items()})
                if b % 5 == 2:
                    mine.synchronize()
                if not is_static:
                    kept.append((batch, b))
        # All is dropped while work is pending; what is allocated then must not be written by it.
        with device.launching_on(mine):
            batch = next(iterator)
        sizes = {(v.shape, v.dtype) for v in batch.values() if not isinstance(v, int)}
        del batch
    del loader, iterator
    fresh = [device.empty(shape, dtype) for shape, dtype in sizes for _ in range(4)]
    for tensor in fresh:
        tensor.fill_(1)
    device.current_stream().synchronize()
    got = []
    for stream in device.streams:
        stream.synchronize()
    assert all(bool((device.to_host(tensor) == 1).all()) for tensor in fresh)
    for batch in sums:
        got.append(on_cpu(batch, device))
    assert_same(got, want)
    for batch, b in kept:
        assert_same([on_cpu(batch, device)], [want[b]])


@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize("seed", [None, *range(12)])
def test_every_batch_arrives_whole(streams: list[stoker.Stream], seed: int | None, is_static: bool) -> None:
    scenario(streams, None if seed is None else random.Random(seed), is_static=is_static)


MUTATIONS = {
    "a read before the copy's event": [("consumer.wait_event(copy.done)", "pass")],
    "no record_stream": [("self._accelerator.keep_for(copy.staged, consumer)", "pass")],
    "record_stream for another stream": [("keep_for(copy.staged, consumer)", "keep_for(copy.staged, self._copies)")],
    "an event before the copy": [
        (
            "staged = self._accelerator.take(len(host))",
            "staged, done = self._accelerator.take(len(host)), self._copies.record_event()",
        ),
        ("return Copy(staged, self._copies.record_event())", "return Copy(staged, done)"),
    ],
    "a host buffer used again at once": [
        (
            "host = self._accelerator.take_host(self._form.format.size_bytes)",
            "host = self.__dict__.setdefault('_h', self._accelerator.take_host(self._form.format.size_bytes))",
        ),
    ],
    "staged bytes used again at once": [
        (
            "staged = self._accelerator.take(len(host))",
            "staged = self.__dict__.setdefault('_b', self._accelerator.take(len(host)))",
        ),
    ],
    "a copy on the consumer's stream": [("with self._accelerator.launching_on(self._copies):", "if True:")],
    "static tensors written while another stream reads them": [("consumer.wait_stream(self._reader)", "pass")],
    "static tensors written after they were dropped": [("self._accelerator.keep_for(static, consumer)", "pass")],
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_model_finds_each_mistake(name: str, streams: list[stoker.Stream], monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(stoker.handoff.__file__).read_text()
    for line, instead in MUTATIONS[name]:
        assert source.count(line) == 1
        source = source.replace(line, instead)
    mutant = types.ModuleType("mutant")
    exec(compile(source, "mutant", "exec"), mutant.__dict__)
    monkeypatch.setattr("stoker.loader.Handoff", mutant.__dict__["Handoff"])
    with pytest.raises(AssertionError):
        for seed in (None, *range(12)):
            for is_static in (False, True):
                scenario(streams, None if seed is None else random.Random(seed), is_static=is_static)


def wait_for_a_batch(loader: stoker.DataLoader) -> None:
    """Until the worker has filled one, so that its copy is launched ahead."""
    feed, end = loader._feed, time.monotonic() + 60
    while feed is not None and not feed.engine.has_batch:
        assert time.monotonic() < end
        time.sleep(1e-4)


def test_copies_are_launched_for_all_that_is_complete_two_ahead_at_most(streams: list[stoker.Stream]) -> None:
    device = StandIn()
    with load(streams, device, prefetch_factor=8) as loader:
        iterator = iter(loader)
        at_once, taken, end = 0, 0, time.monotonic() + 60
        while at_once < 2:  # until the worker has been quick enough
            assert time.monotonic() < end
            before = len(device.copied_bytes)
            next(iterator)
            taken += 1
            at_once = max(at_once, len(device.copied_bytes) - before)
            assert taken <= len(device.copied_bytes) <= taken + 2
            time.sleep(0.01)
    device = StandIn()
    with load(streams, device, num_workers=0) as loader:
        take(loader, 3)
    assert len(device.copied_bytes) == 3  # nothing is complete before it is asked for


@pytest.mark.parametrize("is_static", [False, True])
def test_next_does_not_wait_for_the_device(streams: list[stoker.Stream], is_static: bool) -> None:
    device = StandIn()
    with load(streams, device, static_buffers=is_static) as loader:
        take(loader, 6)
        assert len(device.streams) == 2
        assert all(stream.num_done == 0 and stream.num_launched > 0 for stream in device.streams)


def test_static_buffers_keep_their_place(streams: list[stoker.Stream]) -> None:
    device = StandIn()
    with load(streams) as loader:
        want = take(loader, 5)
    with load(streams, device, static_buffers=True) as loader:
        iterator = iter(loader)
        first = next(iterator)
        for b in range(1, 5):
            batch = next(iterator)
            assert all(batch[name] is first[name] for name in FIELDS)
            assert_same([on_cpu(batch, device)], [want[b]])


def test_closed_in_the_middle_of_a_copy(streams: list[stoker.Stream]) -> None:
    device = StandIn()
    with load(streams) as loader:
        want = take(loader, 3)
    with load(streams, device) as loader:
        iterator = iter(loader)
        batches = [next(iterator) for _ in range(2)]
        wait_for_a_batch(loader)
        batches.append(next(iterator))
        assert loader._feed is not None and loader._feed.ahead(loader._received)  # more are under way
        assert all(stream.num_done == 0 for stream in device.streams)  # and not a byte is copied yet
    del loader, iterator
    assert_same([on_cpu(batch, device) for batch in batches], want)


# ---------------------------------------------------------------- the loader around it
def test_state_and_stats_are_those_of_batches_received(streams: list[stoker.Stream]) -> None:
    device = StandIn()
    with load(streams) as one, load(streams, device, prefetch_factor=6) as other:
        for _, _ in zip(range(7), zip(one, other, strict=True), strict=False):
            assert one.state_dict() == other.state_dict()
            assert one.batch_info == other.batch_info
            theirs, ours = one.stats(), other.stats()
            assert theirs["streams"] == ours["streams"] and theirs["batches"] == ours["batches"]
        state = json.loads(json.dumps(other.state_dict()))
    with load(streams, device) as loader:
        next(iter(loader))
        loader.load_state_dict(state)
        assert loader.stats()["batches"] == 1
        again = [on_cpu(batch, device) for batch in itertools.islice(loader, 3)]
    with load(streams) as loader:
        loader.load_state_dict(state)
        assert_same(again, take(loader, 3))


def test_an_error_comes_after_the_batches_before_it(tmp_path: Path) -> None:
    stream = stoker.Stream(local=write_dataset(tmp_path, "a", [[8] * 6] * 4))
    with load(stream, shuffle=False, layout="pad", seq_len=8, batch_size=2, epoch_size=None) as loader:
        want = list(loader)
    (path,) = (Path(str(stream.local)) / "2").iterdir()
    path.unlink()
    device = StandIn()
    with load(stream, device, shuffle=False, layout="pad", seq_len=8, batch_size=2, epoch_size=None) as loader:
        iterator, got = iter(loader), []
        with pytest.raises(FileNotFoundError):
            while True:
                got.append(on_cpu(next(iterator), device))
        with pytest.raises(FileNotFoundError):
            next(iterator)
    assert_same(got, want[:6])


def test_an_exception_between_two_copies_changes_no_batch(
    streams: list[stoker.Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(streams) as loader:
        want = take(loader, 12)
    device = StandIn()
    with load(streams, device, prefetch_factor=4) as loader:
        iterator, got = iter(loader), []
        for b in range(12):
            real: Callable[..., Any] = StandIn.take
            failing = b % 3 == 1

            def broken(self: StandIn, size: int, real: Callable[..., Any] = real, failing: bool = failing) -> Any:
                if failing:
                    raise MemoryError("out of memory on the device")
                return real(self, size)

            monkeypatch.setattr(StandIn, "take", broken)
            if failing:
                with pytest.raises(MemoryError):
                    next(iterator)
            monkeypatch.setattr(StandIn, "take", real)
            got.append(on_cpu(next(iterator), device))
        assert loader.stats()["batches"] == 12
    assert_same(got, want)


def test_no_batch_while_a_graph_is_captured(streams: list[stoker.Stream]) -> None:
    device = StandIn()
    with load(streams) as loader:
        want = take(loader, 2)
    with load(streams, device) as loader:
        iterator = iter(loader)
        got = [on_cpu(next(iterator), device)]
        device.is_capturing = True
        with pytest.raises(RuntimeError, match="captured"):
            next(iterator)
        device.is_capturing = False
        got.append(on_cpu(next(iterator), device))
    assert_same(got, want)
    device.is_capturing = True
    before = len(device.streams)
    with load(streams, device) as loader, pytest.raises(RuntimeError, match="captured"):
        next(iter(loader))
    assert len(device.streams) == before  # nothing was begun


@pytest.mark.parametrize("has_started", [False, True])
def test_a_fork_can_not_use_a_loader_with_a_device(streams: list[stoker.Stream], has_started: bool) -> None:
    with load(streams, StandIn()) as loader:
        iterator = iter(loader)
        if has_started:
            next(iterator)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                next(iterator)  # made before the fork
            except stoker.LoaderClosedError:
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        next(iterator)


# ---------------------------------------------------------------- devices
@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "device is 'gpu': it must be torch's name of one"),
        (3.5, "device is 3.5"),
        ("meta", "finds no meta device here"),
        ("xpu", "finds no xpu device here: check the driver"),
        ("mps", "finds no mps device here"),
    ],
)
def test_a_device_that_does_not_exist_is_refused(streams: list[stoker.Stream], device: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(streams, device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused(streams: list[stoker.Stream]) -> None:
    with pytest.raises(ValueError, match=r"device is 'cuda:1', but torch .* finds no cuda device here"):
        load(streams, torch.device("cuda", 1))


def test_an_index_past_the_last_device_is_refused(
    streams: list[stoker.Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        ValueError, match=r"device is 'cuda:2', but there are 2 cuda devices here: the last one is cuda:1"
    ):
        load(streams, "cuda:2")


def test_the_cpu_is_no_accelerator(streams: list[stoker.Stream]) -> None:
    with load(streams, "cpu") as loader, load(streams) as plain:
        assert_same(take(loader, 2), take(plain, 2))
    with pytest.raises(ValueError, match="static_buffers=True needs `device`"):
        load(streams, static_buffers=True)


def test_a_padding_id_that_does_not_fit_the_wire_is_refused(streams: list[stoker.Stream]) -> None:
    for pad_id in (1 << 31, -(1 << 31) - 1):
        load(streams, pad_id=pad_id).close()
        with pytest.raises(ValueError, match=f"pad_id is {pad_id}: with a device it must fit 32 bits"):
            load(streams, StandIn(), pad_id=pad_id)


def test_torchs_default_device_changes_nothing(streams: list[stoker.Stream]) -> None:
    with load(streams) as loader:
        want = take(loader, 4)
    with load(streams, stoker.accelerator.TorchQueue(torch.device("cpu"))) as loader, torch.device("meta"):
        got = take(loader, 4)
    assert_same(got, want)


def test_static_tensors_may_be_made_in_inference_mode(streams: list[stoker.Stream]) -> None:
    with load(streams) as loader:
        want = take(loader, 3)
    with load(streams, stoker.accelerator.TorchQueue(torch.device("cpu")), static_buffers=True) as loader:
        iterator = iter(loader)
        with torch.inference_mode():
            next(iterator)
        for b in (1, 2):
            assert_same([next(iterator)], [want[b]])


def test_a_device_of_one_queue(streams: list[stoker.Stream]) -> None:
    """As MPS is one: with the CPU in its place."""
    with load(streams) as loader:
        want = take(loader, 4)
    with load(streams, stoker.accelerator.TorchQueue(torch.device("cpu"))) as loader:
        assert_same(take(loader, 4), want)


def test_poison_is_seen() -> None:
    """The model itself: a block that is freed without a word is poison in its stream's order."""
    device = StandIn()
    side = device.new_stream()
    for is_kept, want in ((True, 1), (False, POISON)):
        with device.launching_on(side):
            block = device.take(1)
            block.fill_(1)
        device.current_stream().wait_stream(side)
        if is_kept:
            device.keep_for(block, device.current_stream())
        read = block.clone()
        del block
        side.synchronize()
        assert int(device.to_host(read)) == want
