"""MosaicML Streaming's order: recorded results element by element, and what holds for any settings."""

from __future__ import annotations

import json
import tracemalloc
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import stoker
from stoker.mixture import counts_per_epoch, proportions_per_epoch
from stoker.streaming_order import RankOrder, StreamingOrder, World
from stoker.streaming_order.partition import Grid, deal
from stoker.streaming_order.sampling import Draws, Units, quotas
from stoker.streaming_order.shuffles import SHUFFLE_ALGOS, shuffle
from stoker.streaming_order.windows import WindowSort

# Small settings make the reference, and so us, warn of what they bring with them.
pytestmark = pytest.mark.filterwarnings(
    *(
        f"ignore:{message}"
        for message in (
            "Trying to partition",
            "Attempting to partition",
            "`drop_first` was not divisible",
            "Shuffle block size was smaller",
            "Because of the",
            "The `replication` arg",
        )
    )
)


@pytest.fixture(scope="module")
def records() -> Any:
    """tests/golden/golden_order.json."""
    return json.loads((Path(__file__).parent.parent / "golden" / "golden_order.json").read_text())


def plain_units(sizes: list[int]) -> Units:
    """All samples of shards once."""
    array = np.array(sizes, np.int64)
    return Units(array, array.cumsum() - array, np.empty(0, np.uint32))


def batches_of(rank: RankOrder) -> list[list[int]]:
    return [rank.batch(i).tolist() for i in range(rank.num_batches)]


def global_batches(order: StreamingOrder, world: World, epoch: int = 0, sample_in_epoch: int = 0) -> list[list[int]]:
    """The samples of each step, over all ranks."""
    epoch_order = order.epoch(epoch, sample_in_epoch, world)
    of_ranks = [batches_of(epoch_order.rank(rank)) for rank in range(world.num_ranks)]
    steps = max(map(len, of_ranks))
    return [
        [i for batches in of_ranks for i in (batches[step] if step < len(batches) else ())] for step in range(steps)
    ]


# ---------------------------------------------------------------- records


def test_shuffles_are_the_recorded_ones(records: Any) -> None:
    for case in records["shuffle"]:
        got = shuffle(
            case["algo"],
            plain_units(case["shard_sizes"]),
            canonical_nodes=case["num_canonical_nodes"],
            seed=case["seed"],
            epoch=case["epoch"],
            block=case["block_size"],
        )
        assert got.tolist() == case["ids"], case["algo"]
    assert len(records["shuffle"]) == 25


def test_partitions_are_the_recorded_ones(records: Any) -> None:
    for case in records["partition"]:
        grid = Grid(case["num_physical_nodes"], case["ranks_per_node"], case["batch_size"])
        partition, dealt = deal(
            case["algo"],
            case["num_samples"],
            canonical_nodes=case["num_canonical_nodes"],
            grid=grid,
            drop_first=case["drop_first"],
            initial_nodes=case["initial_physical_nodes"],
        )
        want = np.array(case["ids"]).reshape(case["shape"]).transpose(3, 2, 0, 1, 4).reshape(-1, grid.global_batch)
        turns = np.arange(len(want))[:, None] * grid.global_batch + dealt.turns(np.arange(grid.global_batch))
        dealt_at = turns < partition.size
        got = np.full(want.shape, -1)
        got[dealt_at] = partition.draws(turns[dealt_at])
        np.testing.assert_array_equal(got, want)
        assert partition.size <= want.size
    assert len(records["partition"]) == 142


def test_quotas_are_the_recorded_ones(records: Any) -> None:
    for case in records["sampling"]:
        got = quotas(
            np.array(case["samples_per_shard"]),
            case["choose"],
            granularity=case["granularity"],
            seed=case["seed"] + case["epoch"] * case["use_epoch"],
        )
        assert got.tolist() == case["choose_per_shard"]
    assert len(records["sampling"]) == 30


def test_weights_are_the_recorded_ones(records: Any) -> None:
    for case in records["weights"]:
        streams = [
            stoker.Stream(local=f"s{i}", **(dict([weight]) if weight else {}))
            for i, weight in enumerate(case["weights"])
        ]
        sizes, epoch_size = case["samples_per_stream"], case["epoch_size"]
        counts = counts_per_epoch(streams, sizes, epoch_size=epoch_size, seed=case["seed"])
        assert counts == case["choose"]
        assert sum(counts) == case["total"]
        assert proportions_per_epoch(streams, sizes, counts, epoch_size=epoch_size) == case["proportion"]
    assert len(records["weights"]) == 26


def test_work_is_the_recorded_one(records: Any) -> None:
    for case in records["work"]:
        order = StreamingOrder(
            shard_sizes=case["streams"],
            choose=case["choose"],
            proportion=case["prop"],
            sampling_method=case["sampling_method"],
            sampling_granularity=case["gran"],
            partition_algo=case["partition_algo"],
            num_canonical_nodes=case["C"],
            shuffle=case["shuffle"],
            shuffle_algo=case["algo"],
            shuffle_seed=case["seed"],
            shuffle_block_size=case["block"],
            batching_method=case["batching"],
            batch_size=case["batch_size"],
        )
        assert order.epoch_size == case["epoch_size"]
        world = World(case["physical_nodes"], case["ranks_per_node"], case["workers_per_rank"])
        epoch = order.epoch(case["epoch"], case["sample_in_epoch"], world, case["initP"])
        ranks = [rank for node in case["ids"] for rank in node]
        assert len(ranks) == world.num_ranks
        for rank, workers in enumerate(ranks):
            rows = np.array(workers).transpose(1, 0, 2).reshape(-1, case["batch_size"])
            want = [batch for batch in ([i for i in row if i >= 0] for row in rows.tolist()) if batch]
            assert batches_of(epoch.rank(rank)) == want
    assert len(records["work"]) == 60


# ---------------------------------------------------------------- properties

shards = st.lists(st.integers(1, 60), min_size=1, max_size=12)


@given(shards, st.sampled_from(SHUFFLE_ALGOS), st.integers(1, 5), st.integers(2, 200), st.integers(0, 1 << 40))
def test_a_shuffle_is_a_permutation(sizes: list[int], algo: str, nodes: int, block: int, seed: int) -> None:
    assume(algo != "py1e" or sum(sizes) >= nodes)
    got = shuffle(algo, plain_units(sizes), canonical_nodes=nodes, seed=seed, epoch=1, block=block)
    assert sorted(got.tolist()) == list(range(sum(sizes)))


@given(shards, st.integers(0, 2000), st.integers(1, 9), st.integers(0, 1 << 40))
def test_quotas_sum_up_and_draws_are_of_their_shards(
    sizes: list[int], choose: int, granularity: int, seed: int
) -> None:
    array = np.array(sizes)
    of_shards = quotas(array, choose, granularity=granularity, seed=seed)
    assert of_shards.sum() == choose
    assert (abs(of_shards - array * choose / array.sum()) <= array).all()
    draws = Draws(array, array.cumsum() - array, of_shards, rng=np.random.default_rng(seed), dtype=np.uint32)
    samples = draws.samples(np.arange(choose))
    times = np.bincount(samples, minlength=array.sum())
    for begin, size, quota in zip(array.cumsum() - array, sizes, of_shards):
        of_shard = times[begin : begin + size]
        assert of_shard.sum() == quota
        assert of_shard.max() - of_shard.min() <= 1
    units = draws.units()
    filled = np.empty(choose, np.uint32)
    for unit, (end, size) in enumerate(zip(units.sizes.cumsum(), units.sizes)):
        units.fill(filled[end - size : end], unit, 0)
    np.testing.assert_array_equal(filled, samples)


@st.composite
def orders(draw: st.DrawFn, **fixed: Any) -> StreamingOrder:
    """Small orders for 12 canonical nodes, with enough samples for each of them in every stream."""
    sizes = draw(st.lists(st.lists(st.integers(5, 40), min_size=8, max_size=12), min_size=1, max_size=3))
    settings = {
        "shard_sizes": sizes,
        "choose": [draw(st.integers(60, 2 * sum(of_stream))) for of_stream in sizes],
        "num_canonical_nodes": 12,
        "shuffle": draw(st.booleans()),
        "shuffle_algo": draw(st.sampled_from(SHUFFLE_ALGOS)),
        "shuffle_block_size": draw(st.integers(20, 300)),
        "batching_method": draw(st.sampled_from(["random", "per_stream", "stratified", "device_per_stream"])),
        "batch_size": draw(st.integers(1, 3)),
    }
    return StreamingOrder(**{**settings, **fixed})


WORLDS = [World(1, 1), World(1, 12), World(2, 3, 2), World(3, 2, 3), World(4, 3), World(12, 1, 2), World(2, 1)]


@given(orders(batching_method="random", batch_size=1), st.sampled_from(WORLDS), st.integers(0, 5))
def test_global_batches_hold_the_same_samples_in_any_world(order: StreamingOrder, world: World, step: int) -> None:
    def sets(some_world: World) -> list[list[int]]:
        of_world = replace(order, batch_size=12 // some_world.num_ranks)
        return [sorted(b) for b in global_batches(of_world, some_world, epoch=1, sample_in_epoch=12 * step)]

    whole = order.epoch_size // 12 - step  # the rest is made even for the ranks at hand
    assert whole >= 0
    assert sets(world)[:whole] == sets(WORLDS[0])[:whole]


@given(orders(), st.sampled_from(WORLDS), st.data())
def test_chunks_are_parts_of_the_whole(order: StreamingOrder, world: World, data: st.DataObject) -> None:
    epoch = epoch_or_none(order, world)
    assume(epoch is not None)
    rank = epoch.rank(data.draw(st.integers(0, world.num_ranks - 1)))
    whole = rank.samples(0, len(rank))
    begin = data.draw(st.integers(0, len(rank)))
    end = data.draw(st.integers(begin, len(rank)))
    assert rank.samples(begin, end).tolist() == whole[begin:end].tolist()
    assert [sample for batch in batches_of(rank) for sample in batch] == whole.tolist()


def epoch_or_none(order: StreamingOrder, world: World, sample_in_epoch: int = 0) -> Any:
    """An epoch; None where a stream has too few samples for the world."""
    try:
        return order.epoch(2, sample_in_epoch, world)
    except ValueError as error:
        assert str(error).startswith(("Stream with index", "Number of samples for stream"))  # noqa: PT017
        return None


@given(orders(), st.sampled_from(WORLDS), st.integers(0, 40))
def test_a_resumed_epoch_is_the_rest_of_it(order: StreamingOrder, world: World, step: int) -> None:
    whole = epoch_or_none(order, world)
    assume(whole is not None)
    delivered = step * world.num_ranks * order.batch_size
    assume(delivered + 3 * world.num_ranks <= order.epoch_size)
    rest = order.epoch(2, delivered, world)
    for rank in range(world.num_ranks):
        assert batches_of(rest.rank(rank)) == batches_of(whole.rank(rank))[step:]


@given(st.lists(st.sampled_from([0.0, 0.25, 1.5, 65535.5, 65536.0, 70000.0, 131071.0]), min_size=1, max_size=50))
def test_equal_positions_stay_in_order(places: list[float]) -> None:
    out = np.arange(1 << 18, dtype=np.uint32)
    sort = WindowSort(out)
    for begin in range(0, len(places), 7):
        sort.add(np.array(places[begin : begin + 7]), np.arange(begin, min(begin + 7, len(places)), dtype=np.uint32))
    sort.finish()
    assert out[: len(places)].tolist() == np.argsort(places, kind="stable").tolist()


def test_left_over_places_of_equal_streams_go_to_the_last() -> None:
    order = StreamingOrder(
        shard_sizes=[[30], [30], [30]],
        choose=[30] * 3,
        batch_size=4,
        batching_method="stratified",
        num_canonical_nodes=1,
    )
    rank = order.epoch(0, 0, World(1, 1)).rank(0)
    assert (rank.batch(0) // 30).tolist() == [0, 1, 2, 2]


# ---------------------------------------------------------------- sizes


def test_an_order_that_is_not_shuffled_takes_no_memory_for_samples() -> None:
    order = StreamingOrder(shard_sizes=[[10**9] * 500, [10**8] * 200], choose=[10**12, 2 * 10**10], batch_size=32)
    tracemalloc.start()
    epoch = order.epoch(3, 32 * 64 * 10**6, World(8, 8, 8))
    rank = epoch.rank(13)
    samples = rank.samples(10**9, 10**9 + 100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rank) == (10**12 + 2 * 10**10) // 64 - 32 * 10**6
    assert len(np.unique(samples)) == 100
    assert peak < 8 << 20


@pytest.mark.parametrize("algo", SHUFFLE_ALGOS)
@pytest.mark.parametrize("nodes", [1, 8])
def test_shuffling_takes_at_most_24_bytes_a_sample(algo: str, nodes: int) -> None:
    order = StreamingOrder(
        shard_sizes=[[4000] * 250],
        choose=[10**6],
        shuffle=True,
        shuffle_algo=algo,
        num_canonical_nodes=nodes,
        batch_size=32,
    )
    tracemalloc.start()
    rank = order.epoch(0, 0, World(1, 1)).rank(0)
    samples = rank.samples(0, len(rank))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(samples) == 10**6
    assert peak < 24 * 10**6


# ---------------------------------------------------------------- the rest of the interface


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=4))
def test_samples_are_found_where_they_lie(sizes: list[list[int]]) -> None:
    assume(all(map(sum, sizes)))
    order = StreamingOrder(shard_sizes=sizes, choose=[1] * len(sizes), batch_size=1)
    want = [
        (stream, shard, sample)
        for stream, of_stream in enumerate(sizes)
        for shard, size in enumerate(of_stream)
        for sample in range(size)
    ]
    assert list(zip(*(array.tolist() for array in order.locate(np.arange(len(want)))))) == want


def test_defaults_are_those_of_the_replicated_world() -> None:
    world = World.replicated(2, 32, ranks_per_node=8)
    assert (world.nodes, world.ranks_per_node, world.num_ranks) == (2, 8, 16)
    for algo, nodes, block in [("py1e", 2, 2_000_000), ("py1s", 128, 1 << 18)]:
        order = StreamingOrder(shard_sizes=[[1000]], choose=[1000], shuffle_algo=algo, batch_size=2)
        epoch = order.epoch(0, 0, world)
        assert (epoch.num_canonical_nodes, epoch.shuffle_block_size) == (nodes, block)
        assert batches_of(epoch.rank(6)) == batches_of(epoch.rank(7)) != batches_of(epoch.rank(8))


def test_a_world_that_replication_does_not_cut_at_nodes_is_one_node() -> None:
    assert World.replicated(4, 12, ranks_per_node=4, workers_per_rank=3) == World(1, 3, 3, replication=4)


def settings(**changes: Any) -> dict[str, Any]:
    return {"shard_sizes": [[6, 4], [5]], "choose": [10, 5], "batch_size": 2, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling_method": "x"}, "Invalid sampling method: x. Must be one of `balanced` or `fixed`."),
        (
            {"batching_method": "x"},
            "Invalid batching method: x. Must be one of `random`, `stratified`, `per_stream`, or `device_per_stream`.",
        ),
        ({"partition_algo": "x"}, "Invalid partition algorithm: x. Must be one of `orig` or `relaxed`."),
        ({"shuffle_algo": "py1b"}, "Invalid shuffle algorithm: py1b. Must be one of `py1e`, `py1br`,"),
        ({"sampling_granularity": 0}, "`sampling_granularity` must be a positive integer, but got: 0."),
        ({"shuffle_seed": -1}, "`shuffle_seed` must be a non-negative integer, but got: -1."),
        ({"num_canonical_nodes": 1.5}, "`num_canonical_nodes` must be a positive integer, but got: 1.5."),
        ({"shuffle_block_size": 1e6}, "Dataset `shuffle_block_size` must be an integer. Got float instead."),
        ({"shuffle_block_size": -1}, "`shuffle_block_size` must be a non-negative integer, but got: -1."),
        ({"batch_size": None}, "Please pass `batch_size` to StreamingDataset. It should be set the same as"),
        ({"batch_size": True}, "`batch_size` must be a positive integer, but got: True."),
        ({"choose": [10, -5]}, "`choose` must be a non-negative integer, but got: -5."),
        ({"choose": [0, 0]}, "choose is [0, 0]: an epoch must have at least one sample."),
        ({"choose": [15]}, "there are shard_sizes of 2 streams, choose of 1 and proportion of 1"),
        ({"proportion": [1.0]}, "there are shard_sizes of 2 streams, choose of 2 and proportion of 1"),
        ({"proportion": [1.0, float("nan")]}, "proportion is [1.0, nan]: shares are numbers of at least 0."),
        ({"shard_sizes": [[6, 4], [0]]}, "Stream contains no samples: stream 1."),
        ({"shard_sizes": [[6, 4], []]}, "Stream contains no samples: stream 1."),
        ({"shard_sizes": [[6, 4.5], [1]]}, "shard_sizes of stream 0 are not whole numbers of at least 0."),
        ({"shard_sizes": [[6, -4], [1]]}, "shard_sizes of stream 0 are not whole numbers of at least 0."),
    ],
)
def test_wrong_settings_are_refused_in_the_references_words(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        StreamingOrder(**settings(**changes))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, (-1, 0, World(1, 1)), "`epoch` must be a non-negative integer, but got: -1."),
        ({}, (0, -1, World(1, 1)), "`sample_in_epoch` must be a non-negative integer, but got: -1."),
        ({}, (0, 0, World(1, 1), 0), "`initial_physical_nodes` must be a positive integer, but got: 0."),
        ({}, (0, 17, World(1, 1)), "Resuming further into the dataset (17) than it has samples (15)"),
        ({"num_canonical_nodes": 3}, (0, 0, World(2, 1)), "Either canonical or physical nodes must be evenly"),
        ({"num_canonical_nodes": 2}, (0, 0, World(3, 1), 4), "A global batch size of 6 is not evenly divisible"),
        (
            {"num_canonical_nodes": 5, "choose": [6, 0]},
            (0, 0, World(20, 1)),
            "6 samples are too few to deal from 5 canonical nodes to 20 nodes",
        ),
        (
            {"num_canonical_nodes": 16, "shuffle": True},
            (0, 0, World(1, 1)),
            "The number of samples assigned to a canonical node is 0. This very likely indicates",
        ),
        (
            {"shuffle": True, "shuffle_block_size": 1, "shuffle_algo": "py1br"},
            (0, 0, World(1, 1)),
            "a shuffle block of 1 samples is too small for 'py1br', which needs 2.",
        ),
        (
            {"batching_method": "stratified", "batch_size": 1},
            (0, 0, World(1, 1)),
            "Number of samples for stream 1 is 0 because the portion of this stream in the global batch, which is of",
        ),
        (
            {"batching_method": "per_stream", "batch_size": 6},
            (0, 0, World(1, 1)),
            "Stream with index 1 does not have an adequate number of samples to construct a complete global batch.",
        ),
        ({"batching_method": "per_stream", "choose": [15, 0]}, (0, 0, World(1, 1)), "there are no samples to deal"),
        (
            {"batching_method": "device_per_stream", "num_canonical_nodes": 1},
            (0, 0, World(2, 1)),
            "For `device_per_stream` batching, num_canonical_nodes must be divisible by physical nodes. Got 1",
        ),
        (
            {"batching_method": "device_per_stream", "shuffle": True, "shuffle_block_size": 2},
            (0, 0, World(1, 1)),
            "Samples from stream 1 are not being used. Please either increase the `shuffle_block_size` from 2, or",
        ),
        (
            {"batching_method": "device_per_stream", "batch_size": 6},
            (0, 0, World(1, 1)),
            "Stream with index 1 does not have an adequate number of samples to construct even a single device batch",
        ),
    ],
)
def test_epochs_that_cannot_be_are_refused_in_the_references_words(
    changes: dict[str, Any], arguments: tuple[Any, ...], message: str
) -> None:
    order = StreamingOrder(**settings(**changes))
    with pytest.raises(ValueError) as caught:
        order.epoch(*arguments)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"num_canonical_nodes": 20}, (0, 0, World(1, 1)), "Trying to partition 15 samples over 20 canonical nodes."),
        ({}, (0, 13, World(1, 4)), "Attempting to partition 2 samples per physical node over 4 gpus."),
        ({}, (0, 3, World(2, 1)), "`drop_first` was not divisible by `num_physical_nodes`. Rounding it down"),
        (
            {},
            (0, 2, World(1, 1, replication=2)),
            "The `replication` arg has been set to 2 and training is resuming from",
        ),
        ({"shuffle": True, "shuffle_block_size": 4}, (0, 0, World(1, 1)), "Shuffle block size was smaller than shard"),
        *(
            ({"batching_method": method, "batch_size": 3}, (0, 4, World(1, 1)), message)
            for method in ("stratified", "per_stream", "device_per_stream")
            for message in (
                f"Because of the `{method}` batching method, resumption may only occur on a sample that is",
            )
        ),
        *(
            ({"batching_method": method, "batch_size": 3}, (0, 0, World(1, 1)), message)
            for method in ("per_stream", "device_per_stream")
            for message in (f"Because of the `{method}` batching method, some batches with an inadequate number of",)
        ),
    ],
)
def test_the_references_warnings_are_given(changes: dict[str, Any], arguments: tuple[Any, ...], message: str) -> None:
    order = StreamingOrder(**settings(**changes))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        order.epoch(*arguments)
    assert any(str(warning.message).startswith(message) for warning in caught)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4), "Replication factor must be positive."),
        ((3, 4), "World size must be divisible by your replication factor."),
        ((1, 6), "6 ranks are no whole nodes of 4 ranks"),
    ],
)
def test_a_world_that_does_not_come_out_even_is_refused(arguments: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        World.replicated(*arguments, ranks_per_node=4)


def test_ranks_batches_and_samples_that_are_not_there_are_refused() -> None:
    epoch = StreamingOrder(**settings()).epoch(0, 0, World(1, 2))
    rank = epoch.rank(1)
    assert (len(rank), rank.num_batches) == (8, 4)
    with pytest.raises(ValueError, match="samples are not all within the 15 samples of the streams"):
        StreamingOrder(**settings()).locate(np.array([3, 15]))
    for call in (lambda: epoch.rank(2), lambda: rank.batch(4), lambda: rank.batch(-1), lambda: rank.samples(3, 9)):
        with pytest.raises(ValueError):
            call()
