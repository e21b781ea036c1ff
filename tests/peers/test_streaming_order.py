"""The real mosaicml-streaming beside `stoker.streaming_order`: every batch of every rank is the same.

Runs in a virtual environment of its own: `make peers`. The reference's own functions make the arrays; only its
constructor, which wants files and shared memory, is stood in for.
"""

from __future__ import annotations

import itertools
import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import streaming
from streaming.base.batching import generate_work
from streaming.base.dataset import StreamingDataset
from streaming.base.partition import get_partitions
from streaming.base.sampling import get_sampling
from streaming.base.shuffle import get_shuffle
from streaming.base.stream import Stream as TheirStream
from streaming.base.world import World as TheirWorld

import stoker
from stoker.mixture import counts_per_epoch, proportions_per_epoch
from stoker.streaming_order import StreamingOrder, World
from stoker.streaming_order.partition import Grid, deal
from stoker.streaming_order.sampling import Units, quotas
from stoker.streaming_order.shuffles import SHUFFLE_ALGOS, shuffle

BATCHING_METHODS = ["random", "stratified", "per_stream", "device_per_stream"]

logging.getLogger("streaming").setLevel(logging.ERROR)


class Reference:
    """What the reference's functions read of a `StreamingDataset`."""

    resample_streams = StreamingDataset.resample_streams

    def __init__(self, order: StreamingOrder, initial_physical_nodes: int | None) -> None:
        sizes = [np.array(s, np.int64) for s in order.shard_sizes]
        self.streams = [
            SimpleNamespace(choose=choose, proportion=share) for choose, share in zip(order.choose, order.proportion)
        ]
        self.num_streams = len(sizes)
        self.samples_per_shard = np.concatenate(sizes)
        self.sample_offset_per_shard = self.samples_per_shard.cumsum() - self.samples_per_shard
        self.shards_per_stream = np.array([len(s) for s in sizes])
        self.shard_offset_per_stream = self.shards_per_stream.cumsum() - self.shards_per_stream
        self.epoch_size = sum(order.choose)
        self.epoch_seed_change = order.shuffle and order.sampling_method == "balanced"
        self.initial_physical_nodes = initial_physical_nodes
        for name in (
            "batch_size",
            "num_canonical_nodes",
            "partition_algo",
            "sampling_granularity",
            "sampling_method",
            "shuffle",
            "shuffle_algo",
            "shuffle_block_size",
            "shuffle_seed",
        ):
            setattr(self, name, getattr(order, name))


def their_batches(work: np.ndarray, node: int, rank: int) -> list[list[int]]:
    """A rank's batches as its DataLoader yields them: round robin over workers, padding skipped."""
    rows = work[node, rank].transpose(1, 0, 2).reshape(-1, work.shape[-1])
    batches = [row[row >= 0].tolist() for row in rows]
    while batches and not batches[-1]:
        batches.pop()
    return batches


def outcome(function: Any, *arguments: Any) -> Any:
    """What a function returns, or the exception that it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(*arguments)
        except (ValueError, ZeroDivisionError, KeyError) as error:
            return error


@contextmanager
def stable_argsort() -> Iterator[None]:
    """Lets the reference sort stably. As it is, it depends on the CPU where keys tie, since numpy's default sort does.

    `stratified` needs it, where streams with the same left over are common.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "argsort", partial(np.argsort, kind="stable"))
        yield


def compare(order: StreamingOrder, world: World, epoch: int, sample_in_epoch: int, initial_nodes: int | None) -> str:
    """Compares all ranks; returns what came out."""
    their_world = TheirWorld(world.nodes, world.ranks_per_node, world.workers_per_rank, 0)
    reference = Reference(order, initial_nodes)
    with stable_argsort() if order.batching_method == "stratified" else nullcontext():
        work = outcome(generate_work, order.batching_method, reference, their_world, epoch, sample_in_epoch)
    ours = outcome(order.epoch, epoch, sample_in_epoch, world, initial_nodes)
    if isinstance(work, Exception):
        assert isinstance(ours, ValueError), (work, order, world)
        return "raised"
    assert not isinstance(ours, Exception), (ours, order, world)
    for node in range(world.nodes):
        for rank in range(world.ranks_per_node):
            batches = their_batches(work, node, rank)
            our_rank = ours.rank((node * world.ranks_per_node + rank) * world.replication)
            samples = our_rank.samples(0, len(our_rank))
            assert samples.tolist() == [sample for batch in batches for sample in batch], (order, world)
            assert our_rank.num_batches == len(batches)
            assert all(len(batch) == order.batch_size for batch in batches[:-1])  # so they are cut at the same places
    return "equal" if work.size else "empty"


def random_streams(rng: np.random.Generator) -> tuple[list[list[int]], list[dict[str, float]], int | None]:
    """Shard sizes and weights of a few small streams, and an epoch size."""
    scale = rng.choice([3, 12, 60])
    sizes = [rng.integers(1, scale + 1, rng.integers(1, 9)).tolist() for _ in range(rng.integers(1, 5))]
    if rng.random() < 0.1:
        sizes[0].insert(int(rng.integers(0, len(sizes[0]) + 1)), 0)
    total = sum(map(sum, sizes))
    if rng.random() < 0.3:
        epoch_size = int(rng.integers(1, 2 * total + 1)) if rng.random() < 0.5 else None
        return sizes, [{"proportion": float(rng.random()) + 0.05} for _ in sizes], epoch_size
    if rng.random() < 0.2:
        return sizes, [{} for _ in sizes], int(rng.integers(1, 2 * total + 1))
    weights: list[dict[str, float]] = []
    for of_stream in sizes:
        repeat, choose = float(rng.choice([0.5, 1.7, 3])), int(rng.integers(1, 2 * sum(of_stream) + 1))
        weights.append([{}, {}, {"repeat": repeat}, {"choose": choose}][rng.integers(4)])
    return sizes, weights, None


def random_case(rng: np.random.Generator) -> tuple[StreamingOrder, World, int, int, int | None]:
    """Small settings in which every edge comes up: few samples, many nodes, odd sizes, resumption."""
    sizes, weights, epoch_size = random_streams(rng)
    streams = [stoker.Stream(local=f"{i}", **weight) for i, weight in enumerate(weights)]
    totals = [sum(of_stream) for of_stream in sizes]
    seed = int(rng.choice([0, 9176, 12345678901]))
    choose = counts_per_epoch(streams, totals, epoch_size=epoch_size, seed=seed)
    if not any(choose):
        choose[0] = 1
    world = World(
        nodes=int(rng.choice([1, 2, 3, 4, 6])),
        ranks_per_node=int(rng.integers(1, 5)),
        workers_per_rank=int(rng.integers(1, 4)),
        replication=int(rng.choice([1, 2])),
    )
    order = StreamingOrder(
        shard_sizes=sizes,
        choose=choose,
        proportion=proportions_per_epoch(streams, totals, choose, epoch_size=epoch_size) if any(choose) else None,
        sampling_method=str(rng.choice(["balanced", "fixed"])),
        sampling_granularity=int(rng.choice([1, 2, 7])),
        partition_algo=str(rng.choice(["orig", "relaxed"])),
        num_canonical_nodes=int(rng.choice([1, 2, 4, 5]) if rng.random() < 0.4 else world.nodes * rng.integers(1, 4)),
        shuffle=bool(rng.random() < 0.7),
        shuffle_algo=str(rng.choice(SHUFFLE_ALGOS)),
        shuffle_seed=seed,
        shuffle_block_size=int(rng.choice([1, 4, 30, 200, 1 << 18])),
        batching_method=str(rng.choice(BATCHING_METHODS, p=[0.4, 0.2, 0.2, 0.2])),
        batch_size=int(rng.integers(1, 6)),
    )
    resumed = int(rng.integers(0, sum(choose) + 4)) if rng.random() < 0.5 else 0
    return order, world, int(rng.integers(0, 4)), resumed, [None, 1, 2, 3][rng.integers(4)]


@pytest.mark.parametrize("seed", range(6))
def test_small_work_is_the_same_or_raises_in_both(seed: int) -> None:
    rng = np.random.default_rng(seed)
    outcomes = Counter(compare(*random_case(rng)) for _ in range(500))
    assert outcomes["equal"] > 200
    assert outcomes["raised"] > 50


@pytest.mark.parametrize("method", BATCHING_METHODS)
@pytest.mark.parametrize("algo", [*SHUFFLE_ALGOS, None])
@pytest.mark.parametrize(("nodes", "epoch", "delivered"), [(1, 0, 0), (8, 1, 12 * 4096)])
def test_large_work_is_the_same(method: str, algo: str | None, nodes: int, epoch: int, delivered: int) -> None:
    rng = np.random.default_rng(nodes)
    order = StreamingOrder(
        shard_sizes=[rng.integers(1, 8000, 20).tolist(), [1000] * 30],
        choose=[120_000, 30_000],
        shuffle=algo is not None,
        shuffle_algo=algo or "py1e",
        num_canonical_nodes=nodes,
        shuffle_block_size=1 << 15,
        batching_method=method,
        batch_size=16,
    )
    compare_arrays(order, World(nodes, 3 if nodes == 1 else 2, 4), epoch, delivered)


@pytest.mark.parametrize("algo", SHUFFLE_ALGOS)
@pytest.mark.parametrize("nodes", [1, 4])
def test_a_million_samples_are_in_the_same_order(algo: str, nodes: int) -> None:
    order = StreamingOrder(
        shard_sizes=[[4000] * 250],
        choose=[1_000_000],
        shuffle=True,
        shuffle_algo=algo,
        num_canonical_nodes=nodes,
        shuffle_block_size=4_000_000 // nodes,
        batch_size=32,
    )
    compare_arrays(order, World(1, 8, 8), 0, 0)


def compare_arrays(order: StreamingOrder, world: World, epoch: int, sample_in_epoch: int) -> None:
    """`compare` for many samples."""
    their_world = TheirWorld(world.nodes, world.ranks_per_node, world.workers_per_rank, 0)
    work = generate_work(order.batching_method, Reference(order, None), their_world, epoch, sample_in_epoch)
    ours = order.epoch(epoch, sample_in_epoch, world)
    for rank in range(world.num_ranks):
        samples = work[divmod(rank, world.ranks_per_node)].transpose(1, 0, 2).ravel()
        our_rank = ours.rank(rank)
        np.testing.assert_array_equal(our_rank.samples(0, len(our_rank)), samples[samples >= 0])


def test_shuffles_alone_are_the_same() -> None:
    rng = np.random.default_rng(1)
    for _ in range(500):
        sizes = rng.integers(1, 200, rng.integers(1, 40))
        algo, nodes = str(rng.choice(SHUFFLE_ALGOS)), int(rng.integers(1, 9))
        seed, epoch, block = int(rng.integers(1 << 40)), int(rng.integers(5)), int(rng.integers(1, 1000))
        units = Units(sizes, sizes.cumsum() - sizes, np.empty(0, np.uint32))
        want = outcome(get_shuffle, algo, sizes, nodes, seed, epoch, block)
        got = outcome(partial(shuffle, algo, units, canonical_nodes=nodes, seed=seed, epoch=epoch, block=block))
        assert isinstance(got, ValueError) == isinstance(want, Exception)
        if not isinstance(want, Exception):
            np.testing.assert_array_equal(got, want)


def test_partitions_alone_are_the_same() -> None:
    rng = np.random.default_rng(2)
    outcomes: Counter[bool] = Counter()
    for _ in range(3000):
        algo, count, canonical = (
            str(rng.choice(["orig", "relaxed"])),
            int(rng.integers(0, 150)),
            int(rng.integers(1, 9)),
        )
        nodes, ranks, workers, batch = (int(n) for n in rng.integers(1, [13, 5, 4, 7]))
        drop, initial = int(rng.integers(0, count + 5)) * int(rng.integers(2)), [None, 1, 2, 3, 4][rng.integers(5)]
        want = outcome(get_partitions, algo, count, canonical, nodes, ranks, workers, batch, drop, initial)
        grid = Grid(nodes, ranks, batch)
        got = outcome(
            partial(deal, algo, count, canonical_nodes=canonical, grid=grid, drop_first=drop, initial_nodes=initial)
        )
        outcomes[isinstance(got, ValueError)] += 1
        assert isinstance(got, ValueError) == isinstance(want, Exception), (got, want)
        if isinstance(want, Exception):
            continue
        partition, dealt = got
        rows = want.transpose(3, 2, 0, 1, 4).reshape(-1, grid.global_batch)
        turns = np.arange(len(rows))[:, None] * grid.global_batch + dealt.turns(np.arange(grid.global_batch))
        np.testing.assert_array_equal(rows >= 0, turns < partition.size)
        np.testing.assert_array_equal(partition.draws(turns[rows >= 0]), rows[rows >= 0])
    assert min(outcomes.values()) > 500


def test_quotas_alone_are_the_same() -> None:
    rng = np.random.default_rng(3)
    for _ in range(500):
        sizes = rng.integers(rng.integers(2), 50, rng.integers(1, 20))
        sizes[0] += not sizes.any()
        choose, granularity, seed = (int(n) for n in rng.integers([0, 1, 0], [1500, 60, 1 << 40]))
        want = get_sampling(sizes, choose, granularity, seed, 3, True)
        np.testing.assert_array_equal(quotas(sizes, choose, granularity=granularity, seed=seed + 3), want)


def test_weights_are_the_same() -> None:
    rng = np.random.default_rng(4)
    for _ in range(500):
        sizes, weights, epoch_size = random_streams(rng)
        totals, seed = [sum(of_stream) for of_stream in sizes], int(rng.integers(1000))
        theirs = [TheirStream(local=f"{i}", **weight) for i, weight in enumerate(weights)]
        total = TheirStream.apply_weights(theirs, np.array(totals), epoch_size, seed)
        ours = [stoker.Stream(local=f"{i}", **weight) for i, weight in enumerate(weights)]
        counts = counts_per_epoch(ours, totals, epoch_size=epoch_size, seed=seed)
        shares = proportions_per_epoch(ours, totals, counts, epoch_size=epoch_size)
        assert (sum(counts), counts) == (total, [stream.choose for stream in theirs])
        assert shares == [stream.proportion for stream in theirs]
        assert [count / size for count, size in zip(counts, totals)] == [stream.repeat for stream in theirs]


def test_replicated_worlds_are_the_same() -> None:
    for nodes, ranks, replication in itertools.product(range(1, 5), range(1, 5), range(5)):
        whole = TheirWorld(nodes, ranks, 2, 0)
        theirs = outcome(whole.replicate, replication)
        ours = outcome(partial(World.replicated, replication, nodes * ranks, ranks_per_node=ranks, workers_per_rank=2))
        if isinstance(theirs, ValueError):
            assert str(ours).startswith(str(theirs))
            continue
        assert (ours.nodes, ours.ranks_per_node) == (theirs.num_nodes, theirs.ranks_per_node)
        assert ours.workers_per_rank == theirs.workers_per_rank


@pytest.mark.parametrize(
    "settings", [{}, {"shuffle_algo": "py1s", "batching_method": "per_stream"}, {"batching_method": "stratified"}]
)
def test_a_loader_of_two_workers_yields_the_same_batches(tmp_path: Path, settings: dict[str, Any]) -> None:
    number, sizes, streams = itertools.count(), [], []
    for repeat, count in ((1.5, 93), (1, 42)):
        local = str(tmp_path / f"{count}")
        with streaming.MDSWriter(out=local, columns={"n": "int"}, size_limit=500) as writer:
            for _ in range(count):
                writer.write({"n": next(number)})
        index = json.loads(Path(local, "index.json").read_text())
        sizes.append([shard["samples"] for shard in index["shards"]])
        streams.append(streaming.Stream(local=local, repeat=repeat))
    dataset = streaming.StreamingDataset(streams=streams, batch_size=4, shuffle=True, shuffle_seed=7, **settings)
    loader = streaming.StreamingDataLoader(dataset, batch_size=4, num_workers=2)
    order = StreamingOrder(shard_sizes=sizes, choose=[139, 42], shuffle=True, shuffle_seed=7, batch_size=4, **settings)
    assert min(map(len, sizes)) > 1
    for epoch in range(2):
        rank = order.epoch(epoch, 0, World(1, 1, 2)).rank(0)
        assert [b["n"].tolist() for b in loader] == [rank.batch(i).tolist() for i in range(rank.num_batches)]
