"""MosaicML Streaming's order in a DataLoader: every batch, every epoch, from every state, on any ranks."""

from __future__ import annotations

import gc
import json
import os
import pickle
import signal
import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stoker
from mds import write_dataset
from stoker.distributed import full_state
from stoker.errors import StateMismatchError
from stoker.packing import FoundryPacker
from stoker.streaming_order import StreamingOrder, World

SIZES = {"b": [[5] * 40, [9] * 30], "a": [[7] * 50]}  # in this order, which is not that of the names
TOTAL = [40 + 30, 50]
PAD = 65_000


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> list[stoker.Stream]:
    root = tmp_path_factory.mktemp("streams")
    return [stoker.Stream(local=write_dataset(root, name, sizes)) for name, sizes in SIZES.items()]


def load(streams: Any, *, ranks: int = 1, rank: int = 0, order: Any = "streaming", **changes: Any) -> stoker.DataLoader:
    arguments = {"seq_len": 9, "batch_size": 4, "layout": "pad", "pad_id": PAD, "rank": rank, "world_size": ranks}
    return stoker.DataLoader(streams, order=order, **{**arguments, **changes})


def tokens_by_sample(streams: Sequence[stoker.Stream]) -> dict[tuple[int, ...], int]:
    """The number of each sample, by its tokens."""
    out = {}
    with load(streams) as loader:
        for stream, name in enumerate(SIZES):
            for shard, samples in enumerate(SIZES[name]):
                for sample in range(len(samples)):
                    first = sum(TOTAL[:stream]) + sum(len(s) for s in SIZES[name][:shard])
                    tokens = loader.dataset.read(name, shard, sample)["tokens"]
                    out[tuple(tokens.tolist())] = first + sample
    return out


@pytest.fixture(scope="module")
def numbers(streams: list[stoker.Stream]) -> dict[tuple[int, ...], int]:
    return tokens_by_sample(streams)


def rows_of(batch: dict[str, Any]) -> list[tuple[int, ...]]:
    rows = (tuple(t for t in row if t != PAD) for row in batch["input_ids"].tolist())
    return [row for row in rows if row]


def samples_of(batches: Iterator[dict[str, Any]], numbers: dict[tuple[int, ...], int]) -> list[list[int]]:
    return [[numbers[row] for row in rows_of(batch)] for batch in batches]


def reference(**settings: Any) -> StreamingOrder:
    shards = [[len(samples) for samples in SIZES[name]] for name in SIZES]
    given = {"shard_sizes": shards, "choose": TOTAL, "shuffle": True, "batch_size": 4}
    return StreamingOrder(**{**given, **settings})


def expected(
    order: StreamingOrder, epoch: int, ranks: int, rank: int, *, sample: int = 0, drop_last: bool = True
) -> list[list[int]]:
    of_rank = order.epoch(epoch, sample, World(ranks, 1)).rank(rank)
    count = len(of_rank) // of_rank.batch_size if drop_last else of_rank.num_batches
    return [of_rank.batch(i).tolist() for i in range(count)]


# ---------------------------------------------------------------- batches
@pytest.mark.filterwarnings("ignore:.*(batching method|block size).*")
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {"shuffle": False},
        {"shuffle_algo": "py1e", "shuffle_block_size": 20},
        {"shuffle_algo": "py1br", "shuffle_block_size": 20, "sampling_granularity": 3},
        {"shuffle_algo": "py1s", "num_canonical_nodes": 6},
        {"shuffle_algo": "py2s", "num_canonical_nodes": 6, "partition_algo": "orig"},
        {"shuffle_algo": "naive", "sampling_method": "fixed"},
        {"batching_method": "per_stream"},
        {"batching_method": "stratified"},
        {"batching_method": "device_per_stream", "num_canonical_nodes": 6},
    ],
)
def test_epochs_are_those_of_the_order(
    settings: dict[str, Any],
    drop_last: bool,
    ranks: int,
    streams: list[stoker.Stream],
    numbers: dict[tuple[int, ...], int],
) -> None:
    order = reference(**settings)
    apart = {name: value for name, value in settings.items() if name != "shuffle"}
    for rank in range(ranks):
        with load(
            streams,
            ranks=ranks,
            rank=rank,
            order=stoker.StreamingSettings(**apart),
            shuffle=settings.get("shuffle", True),
            drop_last=drop_last,
        ) as loader:
            for epoch in range(2):
                want = expected(order, epoch, ranks, rank, drop_last=drop_last)
                assert len(loader) == len(want)
                assert samples_of(loader, numbers) == want


def test_weights_are_mosaicml_streamings(tmp_path: Path, numbers: dict[tuple[int, ...], int]) -> None:
    streams = [
        stoker.Stream(local=write_dataset(tmp_path, "b", SIZES["b"]), proportion=0.75),
        stoker.Stream(local=write_dataset(tmp_path, "a", SIZES["a"]), proportion=0.25),
    ]
    order = reference(choose=[30, 10], proportion=[0.75, 0.25], shuffle_seed=7)
    with load(streams, epoch_size=40, seed=7) as loader:
        assert samples_of(loader, numbers) == expected(order, 0, 1, 0)
        assert [s["asked"] for s in loader.stats()["streams"].values()] == [0.75, 0.25]


def test_ranks_that_are_replicas_get_the_same(
    streams: list[stoker.Stream], numbers: dict[tuple[int, ...], int]
) -> None:
    order = stoker.StreamingSettings(ranks_per_node=4)
    got = []
    for rank in range(4):
        with load(streams, ranks=4, rank=rank, replication=2, order=order) as loader:
            got.append(samples_of(loader, numbers))
    of_order = reference().epoch(0, 0, World.replicated(2, 4, ranks_per_node=4))
    assert got == [[of_order.rank(r).batch(i).tolist() for i in range(120 // 8)] for r in range(4)]


def test_the_defaults_are_the_references(streams: list[stoker.Stream], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with load(streams, ranks=4) as loader:
        state = loader.state_dict()
    assert (state["num_canonical_nodes"], state["shuffle_seed"], state["initial_physical_nodes"]) == (2, 9176, 2)


def test_order_tells_the_rows(streams: list[stoker.Stream]) -> None:
    with load(streams, ranks=2) as loader:
        rows = loader.order(3)
        batch = next(islice(loader, 3, None))
        mine = [loader.dataset.read(*row[0][:3])["tokens"].tolist() for row in rows[::2]]
    assert [list(row) for row in rows_of(batch)] == mine
    assert len(rows) == 8


# ---------------------------------------------------------------- epochs
def test_set_epoch_and_leaving_early(streams: list[stoker.Stream], numbers: dict[tuple[int, ...], int]) -> None:
    order = reference()
    with load(streams) as loader:
        loader.set_epoch(2)
        assert samples_of(islice(loader, 3), numbers) == expected(order, 2, 1, 0)[:3]
        assert samples_of(islice(loader, 3), numbers) == expected(order, 3, 1, 0)[:3]
        loader.set_epoch(1)
        assert samples_of(loader, numbers) == expected(order, 1, 1, 0)
        assert loader.state_dict()["epoch"] == 2


def test_a_loader_that_is_let_go_leaves_no_thread(streams: list[stoker.Stream]) -> None:
    before = set(threading.enumerate())  # of which some may be about to end
    loader = load(streams)
    next(iter(loader))
    assert "stoker-lister" in {thread.name for thread in set(threading.enumerate()) - before}
    del loader
    gc.collect()
    left = set(threading.enumerate()) - before
    assert "stoker-lister" not in {thread.name for thread in left}
    for thread in left:  # that work out the next epoch, which is not waited for
        thread.join(20)
        assert not thread.is_alive()


def test_a_loader_can_be_pickled_before_it_starts(
    streams: list[stoker.Stream], numbers: dict[tuple[int, ...], int]
) -> None:
    with load(streams) as loader:
        loader.set_epoch(1)
        assert len(loader) == 30
        copy = pickle.loads(pickle.dumps(loader))
    with copy:
        assert samples_of(copy, numbers) == expected(reference(), 1, 1, 0)


def test_a_fork_works_out_its_own_order(streams: list[stoker.Stream], numbers: dict[tuple[int, ...], int]) -> None:
    with load(streams) as loader:
        assert len(loader) == 30
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            os.write(write, json.dumps(samples_of(loader, numbers)).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as answer:
            assert json.loads(answer.read()) == expected(reference(), 0, 1, 0)
        assert os.waitpid(child, 0)[1] == 0


def test_a_started_loader_is_told_of_in_a_fork_whatever_its_threads_did(
    streams: list[stoker.Stream],
) -> None:
    with load(streams) as loader:
        batches = iter(loader)
        next(batches)
        with loader._order._mutex:  # type: ignore[attr-defined]  # as the thread that lists samples may have it
            if (child := os.fork()) == 0:
                signal.alarm(20)  # ends the child, should it wait
                with pytest.raises(stoker.LoaderClosedError, match="before a fork"):
                    next(batches)
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0


def test_a_batch_is_waited_for_no_longer_than_the_timeout_while_the_order_is_worked_out(
    streams: list[stoker.Stream], numbers: dict[tuple[int, ...], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on, work_out = threading.Event(), StreamingOrder.epoch

    def slowly(*arguments: Any) -> Any:
        may_go_on.wait()
        return work_out(*arguments)

    monkeypatch.setattr(StreamingOrder, "epoch", slowly)
    with load(streams, timeout=0.01) as loader:
        batches = iter(loader)
        with pytest.raises(TimeoutError):
            next(batches)
        may_go_on.set()
        while True:
            try:
                assert samples_of(iter([next(batches)]), numbers) == expected(reference(), 0, 1, 0)[:1]
                break
            except TimeoutError:
                continue


# ---------------------------------------------------------------- state
REFERENCES = ("epoch", "sample_in_epoch", "num_canonical_nodes", "shuffle_seed", "initial_physical_nodes")


@pytest.mark.parametrize("before", [1, 2])
@pytest.mark.parametrize("after", [1, 2, 4])
@pytest.mark.parametrize("is_references", [False, True])
def test_a_run_goes_on_on_other_ranks(
    before: int, after: int, is_references: bool, streams: list[stoker.Stream], numbers: dict[tuple[int, ...], int]
) -> None:
    order = stoker.StreamingSettings(num_canonical_nodes=4)
    for at in (0, 1, 7, 14):
        with load(streams, ranks=before, batch_size=8 // before, order=order) as loader:
            list(islice(loader, at))
            state = json.loads(json.dumps(loader.state_dict()))
        assert (state["epoch"], state["sample_in_epoch"]) == (0, 8 * at)
        if is_references:
            state = {name: state[name] for name in REFERENCES}
        want = reference(num_canonical_nodes=4, batch_size=8 // after)
        for rank in range(after):
            with load(streams, ranks=after, rank=rank, batch_size=8 // after, order=order) as loader:
                loader.load_state_dict(state)
                assert len(loader) == 15 - at
                of_rank = want.epoch(0, 8 * at, World(after, 1), before).rank(rank)
                assert samples_of(loader, numbers) == [of_rank.batch(i).tolist() for i in range(15 - at)]
                next_epoch = want.epoch(1, 0, World(after, 1), before).rank(rank)
                assert samples_of(islice(loader, 2), numbers) == [next_epoch.batch(i).tolist() for i in range(2)]


@pytest.mark.filterwarnings("ignore:.*batching method.*")
@pytest.mark.parametrize("method", ["random", "per_stream", "stratified"])
def test_after_the_last_batch_comes_the_next_epoch(
    method: str, streams: list[stoker.Stream], numbers: dict[tuple[int, ...], int]
) -> None:
    settings = stoker.StreamingSettings(batching_method=method)
    want = expected(reference(batching_method=method, batch_size=7), 1, 1, 0)
    with load(streams, batch_size=7, order=settings) as loader:
        list(islice(loader, len(loader)))
        state = loader.state_dict()
    with load(streams, batch_size=7, order=settings) as loader:
        loader.load_state_dict(state)
        assert samples_of(loader, numbers) == want


def test_seed_and_canonical_nodes_of_the_state_hold(
    streams: list[stoker.Stream], numbers: dict[tuple[int, ...], int]
) -> None:
    with load(streams, seed=5, order=stoker.StreamingSettings(num_canonical_nodes=2)) as loader:
        list(islice(loader, 4))
        state = {name: loader.state_dict()[name] for name in REFERENCES}
    order = reference(shuffle_seed=5, num_canonical_nodes=2)
    with load(streams) as loader:
        loader.load_state_dict(state)
        assert samples_of(loader, numbers) == expected(order, 0, 1, 0)[4:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"epoch": -1}, "epoch is -1"),
        ({"sample_in_epoch": "x"}, "sample_in_epoch is 'x'"),
        ({"num_canonical_nodes": 0}, "num_canonical_nodes is 0"),
        ({"shuffle_seed": None}, "shuffle_seed is None"),
        ({"order_version": 7}, "order version 7"),
    ],
)
def test_a_damaged_state_is_told(damage: dict[str, Any], message: str, streams: list[stoker.Stream]) -> None:
    with load(streams) as loader:
        state = loader.state_dict()
        with pytest.raises(StateMismatchError, match=message):
            loader.load_state_dict({**state, **damage})


def test_a_state_beyond_the_epoch_is_refused(streams: list[stoker.Stream]) -> None:
    """As one is that MosaicML Streaming has saved of more samples, whose state does not tell of what they are."""
    state = dict(zip(REFERENCES, (0, 5000, 1, 9176, 1), strict=True))
    with (
        load(streams) as loader,
        pytest.raises(StateMismatchError, match=r"5,000 samples of its epoch delivered.* 120"),
    ):
        loader.load_state_dict(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": stoker.StreamingSettings(shuffle_algo="naive")}, "shuffle_algo was 'py1e' and is 'naive'"),
        ({"epoch_size": 60}, "units an epoch were"),
        ({"batch_size": 5}, "its global batch is 4 rows"),
        ({"order": "stoker"}, "in the order of 'streaming', and this loader's is that of 'stoker'"),
    ],
)
def test_a_state_of_another_run_is_refused(changes: dict[str, Any], message: str, streams: list[stoker.Stream]) -> None:
    with load(streams) as loader:
        state = loader.state_dict()
    with load(streams, **changes) as loader, pytest.raises(StateMismatchError, match=message):
        loader.load_state_dict(state)


# ---------------------------------------------------------------- packing
PACKED = {"layout": "pack", "packing": "foundry", "packing_ratio": 2.5, "seq_len": 16}


def packed_by_hand(
    order: StreamingOrder, ranks: int, rank: int, *, packers: int, persist: bool, keep: int | None, epochs: int
) -> list[list[list[int]]]:
    """Rows as lists of samples, by the packer of each worker."""
    lengths = [length for name in SIZES for shard in SIZES[name] for length in shard]
    held: list[FoundryPacker] = []
    seen: list[list[int]] = []
    out = []
    for epoch in range(epochs):
        if not held or not persist:
            held = [FoundryPacker(4, 16, keep) for _ in range(packers)]
            seen = [[] for _ in range(packers)]
        for i, batch in enumerate(expected(order, epoch, ranks, rank)):
            seen[i % packers] += batch
            bins = held[i % packers].pack([lengths[sample] for sample in batch])
            out.append([[seen[i % packers][example] for example in bin_] for bin_ in bins])
    return out


def packed(loader: stoker.DataLoader, numbers: dict[tuple[int, ...], int], epochs: int) -> list[list[list[int]]]:
    out = []
    for _ in range(epochs):
        for batch in loader:
            rows = []
            for ids, documents in zip(batch["input_ids"].tolist(), batch["sequence_id"].tolist(), strict=True):
                parts = [
                    tuple(t for t, d in zip(ids, documents, strict=True) if d == document)
                    for document in range(max(documents) + 1)
                ]
                rows.append([numbers[part] for part in parts])
            out.append([row for row in rows if row])
    return out


@pytest.mark.parametrize("packers", [1, 2, 3])
@pytest.mark.parametrize("persist", [True, False])
@pytest.mark.parametrize("keep", [None, 1])
def test_packed_rows_are_those_of_each_workers_packer(
    packers: int, persist: bool, keep: int | None, streams: list[stoker.Stream], numbers: dict[tuple[int, ...], int]
) -> None:
    settings = stoker.StreamingSettings(num_packers=packers, packers_persist=persist)
    arguments = {**PACKED, "max_leftover_bins_to_keep": keep, "fields": ("input_ids", "sequence_id")}
    for rank in range(2):
        want = packed_by_hand(reference(batch_size=10), 2, rank, packers=packers, persist=persist, keep=keep, epochs=3)
        with load(streams, ranks=2, rank=rank, order=settings, **arguments) as loader:
            assert packed(loader, numbers, 3) == want


@pytest.mark.parametrize("at", range(1, 13, 2))
def test_a_packed_run_goes_on_exactly(
    at: int, streams: list[stoker.Stream], numbers: dict[tuple[int, ...], int]
) -> None:
    settings = stoker.StreamingSettings(num_packers=2)
    arguments = {**PACKED, "fields": ("input_ids", "sequence_id"), "order": settings, "ranks": 2, "rank": 1}
    want = packed_by_hand(reference(batch_size=10), 2, 1, packers=2, persist=True, keep=None, epochs=3)
    with load(streams, **arguments) as loader:
        for _ in range(at // 6):
            list(loader)
        list(islice(loader, at % 6))
        state = json.loads(json.dumps(loader.state_dict()))
    with load(streams, **arguments) as loader:
        loader.load_state_dict(state)
        assert packed(loader, numbers, 3 - at // 6) == want[at:]


def test_what_is_left_over_is_in_the_state_of_its_rank(streams: list[stoker.Stream]) -> None:
    states = []
    for rank in range(2):
        with load(streams, ranks=2, rank=rank, **PACKED) as loader:
            list(islice(loader, 3))
            states.append(loader.state_dict())
    with load(streams, ranks=2, rank=1, **PACKED) as loader:
        with pytest.raises(StateMismatchError, match=r"packers of rank 1 had left over: save what stoker.distributed"):
            loader.load_state_dict(states[0])
        loader.load_state_dict(states[1])
        merged = stoker.state.merge_states(list(enumerate(states)))
        loader.load_state_dict(merged)
        assert loader.state_dict()["leftovers"] == states[1]["leftovers"]
    with load(streams, ranks=1, batch_size=8, **PACKED) as loader:
        with pytest.raises(StateMismatchError, match=r"packers of a rank|ranks was 2 and is 1.*on_change"):
            loader.load_state_dict(merged)
        loader.load_state_dict(merged, on_change="adapt")
        assert loader.state_dict()["sample_in_epoch"] == 60
    with load(streams, **PACKED) as loader:
        assert full_state(loader) == loader.state_dict()


def test_a_packed_run_of_mosaicml_streaming_is_taken_over_between_epochs(
    streams: list[stoker.Stream], numbers: dict[tuple[int, ...], int]
) -> None:
    bare = dict(zip(REFERENCES, (1, 0, 1, 9176, 1), strict=True))
    with load(streams, fields=("input_ids", "sequence_id"), **PACKED) as loader:
        with pytest.raises(StateMismatchError, match="start of an epoch"):
            loader.load_state_dict({**bare, "sample_in_epoch": 20})
        loader.load_state_dict(bare)
        order = reference(batch_size=10)
        batches = [order.epoch(1, 0, World(1, 1)).rank(0).batch(0).tolist()]
        packer = FoundryPacker(4, 16, None)
        lengths = [length for name in SIZES for shard in SIZES[name] for length in shard]
        rows = packer.pack([lengths[s] for s in batches[0]])
        assert packed(islice(loader, 1), numbers, 1) == [[[batches[0][e] for e in row] for row in rows]]  # type: ignore[arg-type]


# ---------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": "random"}, "order is 'random'"),
        ({"layout": "concat"}, "order='streaming' does not go with layout 'concat'"),
        ({"layout": "pack"}, "does not go with packing='best_fit'"),
        ({"shuffle_block": 7}, "shuffle_block_size"),
        ({"lanes": 7}, "num_canonical_nodes"),
        ({"order": stoker.StreamingSettings(shuffle_algo="py3")}, "Invalid shuffle algorithm: py3"),
        ({"order": stoker.StreamingSettings(ranks_per_node=3), "ranks": 2}, "no whole nodes of 3 ranks"),
    ],
)
def test_what_does_not_go_with_the_order_is_refused(
    changes: dict[str, Any], message: str, streams: list[stoker.Stream]
) -> None:
    with pytest.raises(ValueError, match=message):
        load(streams, **changes)


def test_an_order_that_cannot_be_is_an_error_of_the_first_batch(streams: list[stoker.Stream]) -> None:
    settings = stoker.StreamingSettings(num_canonical_nodes=3)
    with load(streams, ranks=2, order=settings) as loader:
        for _ in range(2):
            with pytest.raises(ValueError, match="evenly divisible by the other"):
                next(iter(loader))


def test_an_epoch_without_a_batch_is_an_error(streams: list[stoker.Stream]) -> None:
    with load(streams, batch_size=121) as loader, pytest.raises(ValueError, match="fewer than its batch of 121"):
        list(loader)
    with load(streams, batch_size=121, drop_last=False) as loader:
        assert [len(rows_of(batch)) for batch in loader] == [120]


# ---------------------------------------------------------------- fields as LLM Foundry has them
def test_fields_of_text_as_llm_foundry_has_them(tmp_path: Path) -> None:
    samples = [[5, 6, 2, 7, 8], [2, 9, 2]]
    with stoker.MDSWriter(columns={"tokens": "ndarray:uint16"}, out=tmp_path / "t") as out:
        for sample in samples:
            out.write({"tokens": np.array(sample, np.uint16)})
    with load(
        stoker.Stream(local=tmp_path / "t"),
        batch_size=2,
        seq_len=8,
        pad_id=2,
        shuffle=False,
        documents="eos",
        eos_token_id=2,
        field_rules="foundry",
        fields=("input_ids", "labels", "sequence_id"),
    ) as loader:
        batch = {name: values.tolist() for name, values in next(iter(loader)).items()}
    assert batch == {
        "input_ids": [[5, 6, 2, 7, 8, 2, 2, 2], [2, 9, 2, 2, 2, 2, 2, 2]],
        "labels": [[5, 6, -100, 7, 8, -100, -100, -100], [-100, 9, -100, -100, -100, -100, -100, -100]],
        "sequence_id": [[0, 0, 0, 1, 1, 1, 2, 3], [0, 1, 1, 2, 3, 4, 5, 6]],
    }


def test_a_sample_that_is_cut_to_no_loss_is_an_error_by_these_rules(tmp_path: Path) -> None:
    types = {"input_ids": "ndarray:uint16", "labels": "ndarray:int32"}
    with stoker.MDSWriter(columns=types, out=tmp_path / "t") as out:
        out.write({"input_ids": np.arange(9, dtype=np.uint16), "labels": np.array([-100] * 8 + [8], np.int32)})
    for rules in ("stoker", "foundry"):
        with load(stoker.Stream(local=tmp_path / "t"), batch_size=1, seq_len=8, field_rules=rules) as loader:
            if rules == "stoker":
                next(iter(loader))
            else:
                with pytest.raises(ValueError, match="removed all loss-generating tokens"):
                    next(iter(loader))
