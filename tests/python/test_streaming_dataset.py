"""`stoker.streaming`: MosaicML Streaming's names and behaviour, over worlds, workers, states and stores."""

from __future__ import annotations

import gc
import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402  # which need it

import stoker  # noqa: E402
import stoker.streaming as streaming  # noqa: E402
from servers import file_server  # noqa: E402
from stoker.encodings import Encoding  # noqa: E402
from stoker.streaming import dataset as dataset_module  # noqa: E402
from stoker.streaming import progress  # noqa: E402
from stoker.streaming.base.format.mds.encodings import _encodings  # noqa: E402
from stoker.streaming.base.util import clean_stale_shared_memory  # noqa: E402
from stoker.streaming.progress import Place, Progress, Seat  # noqa: E402
from stoker.streaming_order import StreamingOrder, World  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than there are CPUs


def write(directory: Path, shards: list[int], *, begin: int = 0, **arguments: Any) -> str:
    """A data set of so many samples in each shard, whose column `n` tells their numbers from `begin` on."""
    for number, size in enumerate(shards):
        with stoker.MDSWriter(columns={"n": "int", "text": "str"}, out=directory / f"{number}", **arguments) as out:
            for n in range(begin, begin + size):
                out.write({"n": n, "text": f"text {n}"})
        begin += size
    streaming.merge_index(str(directory))
    return str(directory)


@pytest.fixture
def web(tmp_path: Path) -> str:
    return write(tmp_path / "web", [7, 13, 1, 9, 11, 12])


NUM_SAMPLES = 53


def numbers(samples: Any) -> list[int]:
    return [sample["n"] for sample in samples]


def flat(batches: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(batches))


def numbers_of(batches: Any) -> list[list[int]]:
    return [batch["n"].tolist() for batch in batches]


def batches_of(
    sizes: list[list[int]], epoch: int, *, sample: int = 0, world: World | None = None, rank: int = 0, **settings: Any
) -> list[list[int]]:
    """What the order says."""
    settings = {"choose": [sum(of_stream) for of_stream in sizes], "batch_size": 4, "shuffle": True, **settings}
    order = StreamingOrder(shard_sizes=sizes, **settings)
    of_rank = order.epoch(epoch, sample, world or World(1, 1)).rank(rank)
    return [of_rank.batch(i).tolist() for i in range(of_rank.num_batches)]


SIZES = [[7, 13, 1, 9, 11, 12]]


@pytest.fixture
def be(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this process a rank, or a worker of one."""

    def be_rank(rank: int, world_size: int, ranks_per_node: int) -> None:
        for name, value in (("RANK", rank), ("WORLD_SIZE", world_size), ("LOCAL_WORLD_SIZE", ranks_per_node)):
            monkeypatch.setenv(name, str(value))

    return be_rank


@pytest.fixture
def be_worker(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def be_worker(worker: int, num_workers: int, seed: int = 1) -> None:
        info = SimpleNamespace(id=worker, num_workers=num_workers, seed=seed + worker)
        monkeypatch.setattr(progress, "get_worker_info", lambda: info)

    return be_worker


# ---------------------------------------------------------------- random access
def test_samples_are_had_by_number_slice_list_and_array(web: str) -> None:
    for data in (streaming.StreamingDataset(local=web), streaming.LocalDataset(web)):
        assert data.size == data.num_samples == NUM_SAMPLES
        assert data[20] == {"n": 20, "text": "text 20"}
        assert data[-1]["n"] == data[np.int64(NUM_SAMPLES - 1)]["n"] == data.get_item(NUM_SAMPLES - 1)["n"] == 52
        assert numbers(data[5:9]) == [5, 6, 7, 8]
        assert numbers(data[-3:]) == [50, 51, 52] and numbers(data[50:5:-20]) == [50, 30, 10]
        assert numbers(data[[3, -1]]) == numbers(data[np.array([3, -1])]) == [3, 52]
        assert [numbers(row) for row in data[np.array([[0, 1], [2, 3]])]] == [[0, 1], [2, 3]]
        for number in (NUM_SAMPLES, -NUM_SAMPLES - 1):
            with pytest.raises(IndexError, match=f"Invalid sample index `{number}`"):
                data[number]
        with pytest.raises(ValueError, match="Unsupported argument type passed to __getitem__"):
            data["n"]


def test_samples_of_streams_are_numbered_one_stream_after_the_other(tmp_path: Path) -> None:
    places = [write(tmp_path / "a", [3, 2]), write(tmp_path / "b", [4, 1, 1], begin=5)]
    data = streaming.StreamingDataset(streams=[streaming.Stream(local=place) for place in places])
    assert numbers(data[:]) == list(range(11))
    assert (data.num_streams, data.num_shards, data.epoch_size, len(data)) == (2, 5, 11, 11)
    assert data.samples_per_shard.tolist() == [3, 2, 4, 1, 1]
    assert data.sample_offset_per_shard.tolist() == [0, 3, 5, 9, 10]
    assert data.stream_per_shard.tolist() == [0, 0, 1, 1, 1]
    assert data.samples_per_stream.tolist() == [5, 6] and data.sample_offset_per_stream.tolist() == [0, 5]
    assert data.shards_per_stream.tolist() == [2, 3] and data.shard_offset_per_stream.tolist() == [0, 2]


@pytest.mark.parametrize("folder", ["plain", "zstd"])
def test_recorded_data_sets_are_read(golden: Path, tmp_path: Path, folder: str) -> None:
    from test_encodings import assert_same, golden_sample  # needs Pillow

    shutil.copytree(golden / "golden_mds" / folder, tmp_path / "set")
    data = streaming.StreamingDataset(local=str(tmp_path / "set"), batch_size=1)
    assert data.size == 6
    for number, sample in enumerate(data):
        assert list(sample) == sorted(sample)
        for name, value in golden_sample(number).items():
            assert_same(sample[name], value)


@pytest.mark.parametrize("compression", ["zstd", "gz:1", "bz2", "br:2", "snappy"])
def test_compressed_shards_are_expanded_where_their_directory_need_not_be_written(
    tmp_path: Path, compression: str
) -> None:
    place = write(tmp_path / "data", [4, 5], compression=compression, hashes=["sha1"])
    before = sorted(path.name for path in Path(place).rglob("*"))
    for _ in range(2):  # the second time they are there
        assert numbers(streaming.LocalDataset(place)[:]) == list(range(9))
    assert sorted(path.name for path in Path(place).rglob("*")) == before


def test_pickles_are_read_where_that_is_allowed(tmp_path: Path) -> None:
    with stoker.MDSWriter(columns={"p": "pkl"}, out=tmp_path / "p") as out:
        out.write({"p": {1, 2}})
    place = str(tmp_path / "p")
    with pytest.raises(ValueError, match=r"Column p contains an unsafe type: pkl\. To proceed anyway, set"):
        streaming.StreamingDataset(local=place)
    assert streaming.StreamingDataset(local=place, allow_unsafe_types=True)[0] == {"p": {1, 2}}
    assert streaming.LocalDataset(place)[0] == {"p": {1, 2}}


def test_an_encoding_of_ones_own_is_added_as_the_reference_documents(tmp_path: Path) -> None:
    class Backwards(Encoding):
        def encode(self, obj: Any) -> bytes:
            return str(obj)[::-1].encode()

        def decode(self, data: bytes) -> str:
            return data.decode()[::-1]

    _encodings["backwards"] = Backwards
    try:
        with streaming.MDSWriter(columns={"x": "backwards"}, out=str(tmp_path / "x")) as out:
            out.write({"x": "abc"})
        assert (tmp_path / "x" / "shard.00000.mds").read_bytes().endswith(b"cba")
        assert streaming.LocalDataset(str(tmp_path / "x"))[0] == {"x": "abc"}
    finally:
        del _encodings["backwards"]


# ---------------------------------------------------------------- order
@pytest.mark.filterwarnings("ignore::UserWarning")  # of few samples, and of what a method drops
def test_the_recorded_orders_of_the_reference_are_iterated(
    golden: Path, tmp_path: Path, be: Callable[..., None], be_worker: Callable[..., None]
) -> None:
    cases = json.loads((golden / "golden_order.json").read_text())["work"]
    compared = 0
    for number, case in enumerate(cases[::4]):
        begin, streams = 0, []
        for s, (sizes, weight) in enumerate(zip(case["streams"], case["weights"])):
            place = write_index(tmp_path / f"{number}-{s}", sizes)
            streams.append(streaming.Stream(local=place, **(dict([weight]) if weight else {})))
            begin += sum(sizes)
        nodes, ranks, workers = case["physical_nodes"], case["ranks_per_node"], case["workers_per_rank"]
        for rank in range(nodes * ranks):
            be(rank, nodes * ranks, ranks)
            data = Numbers(
                streams=streams,
                epoch_size=case["epoch_size_arg"],
                shuffle_seed=case["seed"],
                sampling_method=case["sampling_method"],
                sampling_granularity=case["gran"],
                shuffle=case["shuffle"],
                shuffle_algo=case["algo"],
                shuffle_block_size=case["block"],
                num_canonical_nodes=case["C"],
                batch_size=case["batch_size"],
                batching_method=case["batching"],
                partition_algo=case["partition_algo"],
                predownload=1000,
            )
            state = {"epoch": case["epoch"], "sample_in_epoch": case["sample_in_epoch"]}
            settings = {"num_canonical_nodes": case["C"], "shuffle_seed": case["seed"]}
            data.load_state_dict({**state, **settings, "initial_physical_nodes": case["initP"]})
            for worker in range(workers):
                be_worker(worker, workers)
                want = np.array(case["ids"][rank // ranks][rank % ranks][worker], np.int64).reshape(-1)
                assert list(data) == want[want >= 0].tolist(), (number, rank, worker)
                compared += len(want)
    assert compared > 300


def write_index(directory: Path, sizes: list[int]) -> str:
    """Of shards that are not there."""
    columns = {"column_names": ["n"], "column_encodings": ["int"], "column_sizes": [8]}
    rest = {"version": 2, "format": "mds", "compression": None, "hashes": [], "size_limit": None, "zip_data": None}
    shards = [
        {**columns, **rest, "samples": size, "raw_data": {"basename": f"{i}.mds", "bytes": 1 + size, "hashes": {}}}
        for i, size in enumerate(sizes)
    ]
    directory.mkdir()
    (directory / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    return str(directory)


class Numbers(streaming.StreamingDataset):
    """Whose samples are their numbers."""

    def __getitem__(self, at: Any) -> int:
        return int(at)


def test_each_iterator_gives_the_next_epoch(web: str) -> None:
    data = streaming.StreamingDataset(local=web, batch_size=4, shuffle=True)
    assert data.next_epoch == 0
    for epoch in range(3):
        assert numbers(data) == flat(batches_of(SIZES, epoch))
        assert data.next_epoch == epoch + 1
    next(iter(data))  # is enough to begin one
    assert numbers(data) == flat(batches_of(SIZES, 4))
    data.next_epoch = 1
    assert numbers(data) == flat(batches_of(SIZES, 1))


@pytest.mark.parametrize("replication", [None, 2])
def test_ranks_get_what_the_order_says(web: str, be: Callable[..., None], replication: int | None) -> None:
    ranks = 4 // (replication or 1)
    world = World(2 if replication is None else 1, 2)
    for rank in range(4):
        be(rank, 4, 2)
        data = streaming.StreamingDataset(
            local=web, batch_size=4, shuffle=True, num_canonical_nodes=2, replication=replication
        )
        want = batches_of(SIZES, 0, world=world, rank=rank // (replication or 1), num_canonical_nodes=2)
        assert numbers(data) == flat(want)
        assert len(data) == -(-NUM_SAMPLES // ranks)


def test_a_subclass_changes_what_is_iterated(web: str) -> None:
    class Doubled(streaming.StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            sample = super().__getitem__(at)
            return {"n": 2 * sample["n"]}

    data = Doubled(local=web, batch_size=4)
    assert numbers(data) == list(range(0, 2 * NUM_SAMPLES, 2))
    assert numbers_of(DataLoader(data, batch_size=4, num_workers=1))[1] == [8, 10, 12, 14]


def test_a_subclass_with_arguments_of_its_own_is_pickled(web: str) -> None:
    data = pickle.loads(pickle.dumps(Numbers(local=web, batch_size=4, shuffle=True)))
    assert list(data) == flat(batches_of(SIZES, 0))


# ---------------------------------------------------------------- workers
@pytest.mark.parametrize("persistent", [False, True])
def test_a_loader_of_workers_yields_the_batches_of_each_epoch(web: str, persistent: bool) -> None:
    data = streaming.StreamingDataset(local=web, batch_size=4, shuffle=True)
    assert data[0]["n"] == 0  # what is open here must not disturb the workers
    loader = DataLoader(data, batch_size=4, num_workers=3, persistent_workers=persistent)
    for epoch in range(3):
        assert numbers_of(loader) == batches_of(SIZES, epoch)
        assert data.state_dict(0, True)["epoch"] == epoch


def test_spawned_workers_know_the_epoch_and_the_state(web: str) -> None:
    data = streaming.StreamingDataset(local=web, batch_size=4, shuffle=True)
    loader = streaming.StreamingDataLoader(
        data, batch_size=4, num_workers=1, persistent_workers=True, multiprocessing_context="spawn"
    )
    assert numbers_of(loader) == batches_of(SIZES, 0)
    loader.load_state_dict({**loader.state_dict(), "epoch": 2, "sample_in_epoch": 8})  # the worker is running
    assert numbers_of(loader) == batches_of(SIZES, 2, sample=8)
    assert loader.state_dict()["epoch"] == 2
    assert numbers_of(loader) == batches_of(SIZES, 3)


@pytest.mark.parametrize("persistent", [False, True])
def test_epochs_that_were_left_early_are_over_for_all_workers(web: str, persistent: bool) -> None:
    data = streaming.StreamingDataset(local=web, batch_size=4, shuffle=True)
    loader = DataLoader(data, batch_size=4, num_workers=2, persistent_workers=persistent)
    for epoch in range(3):
        torch.manual_seed(0)  # so that all iterators have one seed
        assert numbers_of([next(iter(loader))]) == batches_of(SIZES, epoch)[:1]
    assert numbers_of(loader) == batches_of(SIZES, 3)


def test_workers_of_one_team_join_its_epoch_and_others_begin_the_next() -> None:
    at = Progress()
    seats = [[Seat(w, 3, seed, process) for w in range(3)] for seed, process in ((7, 10), (7, 13), (8, 11))]
    assert [at.begin(seat).epoch for seat in seats[0]] == [0, 0, 0]
    assert [at.begin(seats[0][w]).epoch for w in (2, 0, 1)] == [1, 1, 1]  # persistent workers
    assert at.begin(seats[0][1]).epoch == 2
    assert [at.begin(seats[1][w]).epoch for w in (2, 0)] == [3, 3]  # the others of its team were ended
    assert [at.begin(seats[2][w]).epoch for w in (1, 0, 2)] == [4, 4, 4]
    assert [at.begin(Seat(0, 1, 0, 0)).epoch for _ in range(2)] == [5, 6]


def test_a_worker_that_dies_is_an_error_and_the_next_iterator_goes_on(web: str) -> None:
    class Deadly(streaming.StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            if at == 6 and self.next_epoch == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(at)

    data = Deadly(local=web, batch_size=4, num_canonical_nodes=1)
    loader = DataLoader(data, batch_size=4, num_workers=2)
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        list(loader)
    assert flat(numbers_of(loader)) == list(range(NUM_SAMPLES))


@pytest.mark.filterwarnings("ignore:Because of the `per_stream` batching method")
@pytest.mark.parametrize("batching_method", ["random", "per_stream"])
def test_workers_share_an_order_that_one_of_them_makes(
    web: str, monkeypatch: pytest.MonkeyPatch, batching_method: str
) -> None:
    monkeypatch.setattr(dataset_module, "_SHARED_SAMPLES", 1)
    made = multiprocessing.Value("i", 0)

    class Counting(streaming.StreamingDataset):
        def _order(self, batch_size: int | None) -> StreamingOrder:
            with made.get_lock():
                made.value += 1
            return super()._order(batch_size)

    data = Counting(local=web, batch_size=4, shuffle=True, batching_method=batching_method)
    loader = DataLoader(data, batch_size=4, num_workers=3, persistent_workers=True)
    want = {"batching_method": batching_method}
    assert [numbers_of(loader) for _ in range(2)] == [batches_of(SIZES, epoch, **want) for epoch in range(2)]
    assert made.value == 1 + 2  # the constructor's, and one an epoch


def test_an_order_whose_maker_is_gone_is_made_again(web: str, be_worker: Callable[..., None]) -> None:
    data = streaming.StreamingDataset(local=web, batch_size=4, shuffle=True)
    seat, place = Seat(0, 2, 1, 1), Place(0, 0, None)

    def make() -> Any:
        return data._order(4).epoch(0, 0, World(1, 1))

    key = repr((seat, place))
    child = multiprocessing.get_context("fork").Process(target=lambda: data._sharing.find(key, make) and None)
    child.start()
    child.join()
    assert child.exitcode == 0
    calls: list[int] = []
    order = data._sharing.find(key, lambda: calls.append(1) or make())  # type: ignore[func-returns-value]
    assert calls == [1] and order.rank(0).samples(0, 4).tolist() == batches_of(SIZES, 0)[0]
    data._sharing.find(key, lambda: calls.append(1) or make())  # type: ignore[func-returns-value]
    assert calls == [1]


def test_nothing_is_left_behind(web: str) -> None:
    def files_in_memory() -> int:
        return sum("memfd:stoker" in os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())

    before = set(Path(web).rglob("*"))
    data = streaming.StreamingDataset(local=web, batch_size=4, shuffle=True)
    assert files_in_memory() == 2  # without names, so that they go with us
    list(DataLoader(data, batch_size=4, num_workers=2))
    assert set(Path(web).rglob("*")) == before
    del data
    gc.collect()
    assert files_in_memory() == 0
    clean_stale_shared_memory()


def test_a_pickle_that_is_no_workers_has_epochs_of_its_own(web: str) -> None:
    data = streaming.StreamingDataset(local=web, batch_size=4, shuffle=True)
    list(data)
    copy = pickle.loads(pickle.dumps(data))
    assert numbers(copy) == flat(batches_of(SIZES, 1))
    assert (data.next_epoch, copy.next_epoch) == (1, 2)


# ---------------------------------------------------------------- states
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_state_goes_on_behind_the_batch_received_last(web: str, num_workers: int) -> None:
    def loader() -> streaming.StreamingDataLoader:
        data = streaming.StreamingDataset(local=web, batch_size=4, shuffle=True)
        return streaming.StreamingDataLoader(data, batch_size=4, num_workers=num_workers)

    first = loader()
    assert first.state_dict() == {
        "epoch": -1,
        "sample_in_epoch": 0,
        "num_canonical_nodes": 1,
        "shuffle_seed": 9176,
        "initial_physical_nodes": 1,
    }
    list(first)
    batches = iter(first)
    got = [next(batches) for _ in range(5)]
    state = json.loads(json.dumps(first.state_dict()))
    assert (state["epoch"], state["sample_in_epoch"]) == (1, 20)
    second = loader()
    second.load_state_dict(state)
    assert second.state_dict() == state
    rest = iter(second)
    got += [next(rest) for _ in range(3)]
    assert second.state_dict() == {**state, "sample_in_epoch": 32}  # counted on from where it was resumed
    got += list(rest)
    assert numbers_of(got) == batches_of(SIZES, 1)
    assert numbers_of(second) == batches_of(SIZES, 2)


def test_a_state_goes_on_with_other_nodes(web: str, be: Callable[..., None]) -> None:
    arguments: dict[str, Any] = {"local": web, "shuffle": True, "num_canonical_nodes": 4}

    def begin(nodes: int, batch_size: int) -> list[Any]:
        made = []
        for rank in range(nodes):
            be(rank, nodes, 1)
            made.append(streaming.StreamingDataset(batch_size=batch_size, **arguments))
        return made

    ranks = begin(4, 1)
    its = [iter(data) for data in ranks]
    got = [sorted(next(it)["n"] for it in its) for _ in range(5)]  # global batches of 4
    state = ranks[0].state_dict(5, False) | {"sample_in_epoch": 20}
    ranks = begin(2, 2)
    for data in ranks:
        data.load_state_dict(state)
    its = [iter(data) for data in ranks]
    got += [sorted(next(it)["n"] for it in its for _ in range(2)) for _ in range(5)]
    whole = begin(1, 4)[0]
    want = numbers(whole)
    assert got == [sorted(want[4 * i : 4 * i + 4]) for i in range(10)]


def test_a_loaded_state_is_taken_though_its_epoch_is_over(web: str) -> None:
    data = streaming.StreamingDataset(local=web, batch_size=4, shuffle=True)
    state = data.state_dict(0, True) | {"epoch": 0, "sample_in_epoch": 48}
    list(data)
    data.load_state_dict(state)
    assert numbers(data) == flat(batches_of(SIZES, 0)[12:])
    assert numbers(data) == flat(batches_of(SIZES, 1))


def test_settings_of_a_loaded_state_stay(web: str) -> None:
    data = streaming.StreamingDataset(local=web, batch_size=4, shuffle=True)
    settings = {"num_canonical_nodes": 4, "shuffle_seed": 5}
    data.load_state_dict({"epoch": 3, "sample_in_epoch": 0, **settings})  # of an old version
    for epoch in (3, 4):
        assert numbers(data) == flat(batches_of(SIZES, epoch, **settings))
        assert data.state_dict(8, True) == {
            "epoch": epoch,
            "sample_in_epoch": 8,
            **settings,
            "initial_physical_nodes": 1,
        }


def test_the_end_of_an_epoch_is_a_state(web: str) -> None:
    data = streaming.StreamingDataset(local=web, batch_size=4, shuffle=True)
    data.load_state_dict(data.state_dict(0, True) | {"epoch": 0, "sample_in_epoch": NUM_SAMPLES})
    assert [numbers(data), numbers(data)] == [[], flat(batches_of(SIZES, 1))]


@pytest.mark.parametrize(
    "wrong",
    [{}, {"epoch": 0}, [1], {"epoch": "x", "sample_in_epoch": 0, "num_canonical_nodes": 1, "shuffle_seed": 1},
     {"epoch": 0, "sample_in_epoch": -1, "num_canonical_nodes": 1, "shuffle_seed": 1}],
)  # fmt: skip
def test_what_is_no_state_is_refused(web: str, wrong: Any) -> None:
    data = streaming.StreamingDataset(local=web, batch_size=4)
    with pytest.raises(ValueError, match="state"):
        data.load_state_dict(wrong)
    assert numbers(data) == list(range(NUM_SAMPLES))


@pytest.mark.parametrize(
    ("batch", "size"),
    [({"x": [1, 2, 3]}, 3), (torch.zeros(5, 2), 5), ((torch.zeros(4), 1), 4), ([[1, 2]], 2)],
)
def test_samples_of_a_batch_are_counted_as_the_reference_does(web: str, batch: Any, size: int) -> None:
    data = streaming.StreamingDataset(local=web, batch_size=4)
    assert streaming.StreamingDataLoader(data, batch_size=4)._get_batch_size(batch) == size


def test_a_loader_of_another_data_set_has_no_state() -> None:
    loader = streaming.StreamingDataLoader([{"x": 1}, {"x": 2}], batch_size=2)
    loader.load_state_dict({})
    assert len(list(loader)) == 1 and loader.num_samples_yielded == 2 and loader.state_dict() is None


# ---------------------------------------------------------------- remotes
@pytest.fixture
def remote(web: str, tmp_path: Path) -> dict[str, str]:
    return {"remote": web, "local": str(tmp_path / "copy")}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_shards_of_a_remote_are_fetched(remote: dict[str, str], num_workers: int) -> None:
    data = streaming.StreamingDataset(**remote, batch_size=4, shuffle=True)
    assert not list(Path(remote["local"]).rglob("*.mds"))
    assert numbers_of(DataLoader(data, batch_size=4, num_workers=num_workers)) == batches_of(SIZES, 0)
    assert len(list(Path(remote["local"]).rglob("*.mds"))) == 6


def test_threads_read_beside_each_other(remote: dict[str, str]) -> None:
    data = streaming.StreamingDataset(**remote)
    with ThreadPoolExecutor(8) as threads:
        assert numbers(threads.map(data.__getitem__, range(NUM_SAMPLES))) == list(range(NUM_SAMPLES))


def test_workers_fetch_though_the_trainer_has_done_so_before(web: str, tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    with file_server(Path(web)) as url:
        data = streaming.StreamingDataset(remote=url, local=str(tmp_path / "copy"), batch_size=4, shuffle=True)
        assert data[0]["n"] == 0
        assert numbers_of(DataLoader(data, batch_size=4, num_workers=1)) == batches_of(SIZES, 0)


def test_shards_are_fetched_ahead_of_the_sample_that_is_read(remote: dict[str, str]) -> None:
    data = streaming.StreamingDataset(**remote)
    data.prepare_shard(5)
    assert len(list(Path(remote["local"]).rglob("*.mds"))) == 1
    data.prepare_shard(4, blocking=False)
    assert data[40]["n"] == 40  # waits for it
    assert len(list(Path(remote["local"]).rglob("*.mds"))) == 2


@pytest.mark.parametrize("keep_zip", [False, True])
@pytest.mark.parametrize("compression", ["zstd", "gz"])
def test_compressed_shards_of_a_remote_are_expanded(tmp_path: Path, compression: str, keep_zip: bool) -> None:
    place = write(tmp_path / "far", [5, 6], compression=compression)
    copy = tmp_path / "copy"
    for _ in range(2):
        data = streaming.StreamingDataset(remote=place, local=str(copy), keep_zip=keep_zip)
        assert numbers(data[:]) == list(range(11))
        names = sorted(path.suffix for path in copy.rglob("shard*"))
        assert names == sorted([f".{compression}"] * 2 * keep_zip + [".mds"] * 2)
    for path in copy.rglob("*.mds"):
        path.unlink()
    if keep_zip:
        shutil.rmtree(tmp_path / "far")  # what is compressed is there
        (tmp_path / "far").mkdir()
        shutil.copy(copy / "index.json", tmp_path / "far")
    assert numbers(streaming.StreamingDataset(remote=place, local=str(copy), keep_zip=keep_zip)[:]) == list(range(11))


def test_a_split_is_a_directory_of_both(tmp_path: Path) -> None:
    write(tmp_path / "far" / "train", [3])
    data = streaming.StreamingDataset(remote=str(tmp_path / "far"), local=str(tmp_path / "near"), split="train")
    assert numbers(data[:]) == [0, 1, 2]
    assert (tmp_path / "near" / "train" / "index.json").exists()
    streams = [streaming.Stream(local=str(tmp_path / "far"))]
    assert streaming.StreamingDataset(streams=streams, split="train").size == 3
    assert streaming.LocalDataset(str(tmp_path / "far"), split="train").size == 3


def test_a_remote_without_local_has_a_copy_in_the_users_cache(web: str, tmp_path: Path) -> None:
    for _ in range(2):
        data = streaming.StreamingDataset(remote=web)
        assert data[52]["n"] == 52
    assert str(data.streams[0].local).startswith(str(tmp_path / "cache"))


def test_a_cache_limit_is_kept(tmp_path: Path) -> None:
    sizes = [40] * 6
    shards = write(tmp_path / "large", sizes)
    limit = 4 * max(path.stat().st_size for path in Path(shards).rglob("*.mds"))
    data = streaming.StreamingDataset(
        remote=shards, local=str(tmp_path / "copy"), batch_size=4, shuffle=True, cache_limit=limit, predownload=4
    )
    with pytest.raises(ValueError, match=r"is too low\. Increase the `cache_limit` to at-least four times"):
        streaming.StreamingDataset(local=shards, cache_limit=limit - 1)
    for epoch in range(2):
        loader = DataLoader(data, batch_size=4, num_workers=2 * epoch)
        assert numbers_of(loader) == batches_of([sizes], epoch)
        assert sum(path.stat().st_size for path in (tmp_path / "copy").rglob("*.mds")) <= limit


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_shard_that_can_not_be_had_is_an_error_in_its_place(remote: dict[str, str], num_workers: int) -> None:
    shutil.rmtree(Path(remote["remote"], "3"))
    data = streaming.StreamingDataset(**remote, batch_size=1, num_canonical_nodes=1)
    got = []
    with pytest.raises(
        stoker.MissingShardError, match=r"stream 'copy': shard 3 can't be had from .*/3/shard.00000.mds"
    ):
        for batch in DataLoader(data, batch_size=1, num_workers=num_workers):
            got += batch["n"].tolist()
    assert got == list(range(21))


def test_damage_names_stream_shard_and_sample(web: str) -> None:
    path = Path(web, "1", "shard.00000.mds")
    content = bytearray(path.read_bytes())
    at = content.index(b"text 9")
    content[at] = 0xFF
    path.write_bytes(content)
    data = streaming.StreamingDataset(local=web)
    with pytest.raises(stoker.CorruptShardError, match=r"stream 'web', shard 1 \(.*\), sample 2: column text") as error:
        data[9]
    assert (error.value.path, error.value.sample) == (str(path), 2)
    path.write_bytes(content[:-1])
    with pytest.raises(stoker.CorruptShardError, match=r"is not shard 1 of stream 'web' as its index describes it"):
        streaming.StreamingDataset(local=web)[9]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"shard 1 of stream 'web' is not there, and it has no remote"):
        streaming.StreamingDataset(local=web)[9]


def test_a_damaged_copy_is_fetched_again(remote: dict[str, str]) -> None:
    streaming.StreamingDataset(**remote)[:]
    path = Path(remote["local"], "1", "shard.00000.mds")
    path.write_bytes(path.read_bytes()[:-1])
    assert numbers(streaming.StreamingDataset(**remote)[:]) == list(range(NUM_SAMPLES))


# ---------------------------------------------------------------- arguments
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"local": None}, "You must provide either `streams` or `remote`/`local`, but not both"),
        ({"streams": [streaming.Stream(local="x")]}, "You must provide either"),
        ({"sampling_method": "x"}, "Invalid sampling method: x. Must be one of `balanced` or `fixed`"),
        ({"sampling_granularity": 0}, "`sampling_granularity` must be a positive integer, but got: 0"),
        ({"batching_method": "x"}, "Invalid batching method: x. Must be one of `random`, `stratified`, `per_stream`"),
        ({"shuffle_seed": -1}, "`shuffle_seed` must be a non-negative integer, but got: -1"),
        ({"shuffle_algo": "py1b"}, "Invalid shuffle algorithm: py1b"),
        ({"partition_algo": "x"}, "Invalid partition algorithm: x"),
        ({"shuffle_block_size": 1.5}, "Dataset `shuffle_block_size` must be an integer"),
        ({"epoch_size": -5}, "Epoch size cannot be negative. Received -5"),
        ({"epoch_size": "-5k"}, "Epoch size cannot be negative. Received -5k"),
        ({"epoch_size": "5x"}, "'5x' is not a count"),
        ({"replication": 0}, "Replication factor must be positive"),
        ({"replication": 3}, "World size must be divisible by your replication factor"),
        ({"cache_limit": 10}, r"Minimum cache usage \(\d+ bytes\) is larger than the cache limit \(10 bytes\)"),
        ({"validate_hash": "sha1"}, "Hash algorithm `sha1` chosen for data validation does not match"),
        ({"stream_name": "mine"}, "there is no registry of streams here"),
        ({"stream_config": {"proportion": 1, "choose": 2}}, "At most one of `proportion`, `repeat`, and `choose`"),
        ({"download_retry": -1}, "`download_retry` must be non-negative"),
        ({"download_timeout": 0}, "`download_timeout` must be positive"),
    ],
)
def test_wrong_arguments_are_refused(web: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        streaming.StreamingDataset(**{"local": web, "batch_size": 4, **arguments})


def test_iterating_needs_a_batch_size(web: str) -> None:
    data = streaming.StreamingDataset(local=web)
    with pytest.raises(ValueError, match="Please pass `batch_size` to StreamingDataset"):
        next(iter(data))


def test_few_samples_ahead_are_warned_of(web: str) -> None:
    with pytest.warns(UserWarning, match=r"predownload < batch_size \(3 < 4\).This may result in slower batch time"):
        assert streaming.StreamingDataset(local=web, batch_size=4, predownload=3).predownload == 3
    assert streaming.StreamingDataset(local=web, batch_size=4).predownload == 32
    assert streaming.StreamingDataset(local=web).predownload == 64


def test_a_directory_without_index_or_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No `remote` provided, but local file .*index\.json does not exist"):
        streaming.StreamingDataset(local=str(tmp_path))
    place = write_index(tmp_path / "empty", [0])
    with pytest.raises(RuntimeError, match=f"Stream contains no samples: {place}/index.json"):
        streaming.StreamingDataset(local=place)
    with pytest.raises(ValueError, match="`remote` and/or `local` path must be provided"):
        streaming.StreamingDataset(streams=[streaming.Stream()])
    with pytest.raises(TypeError, match=r"give stoker.streaming.Stream"):
        streaming.StreamingDataset(streams=[stoker.Stream(local=place)])  # type: ignore[list-item]


def test_weights_are_told_and_streams_may_be_used_again(tmp_path: Path) -> None:
    streams = [
        streaming.Stream(local=write(tmp_path / "a", [10]), proportion=3),
        streaming.Stream(local=write(tmp_path / "b", [20], begin=10), proportion=1),
    ]
    for _ in range(2):
        data = streaming.StreamingDataset(streams=streams, epoch_size="0.04k", batch_size=4)
        assert [(s.proportion, s.repeat, s.choose) for s in streams] == [(0.75, 3.0, 30), (0.25, 0.5, 10)]
        got = np.array(numbers(data))
        assert data.epoch_size == 40 and ((got < 10).sum(), (got >= 10).sum()) == (30, 10)
    with pytest.raises(ValueError, match="proportion"):
        streaming.StreamingDataset(streams=[streams[0], streaming.Stream(local=str(tmp_path / "b"), repeat=1)])


def test_names_that_are_not_there_say_so() -> None:
    with pytest.raises(ImportError, match="write MDS shards, by MDSWriter"):
        from stoker.streaming import JSONWriter  # noqa: F401
    with pytest.raises(ImportError, match="can be copied from MosaicML Streaming"):
        streaming.text  # noqa: B018
    with pytest.raises(AttributeError):
        streaming.nothing  # noqa: B018
    for name in streaming.__all__:
        assert hasattr(streaming, name)


# ---------------------------------------------------------------- joining
def test_indexes_are_joined_from_a_root_or_a_list(tmp_path: Path) -> None:
    place = Path(write(tmp_path / "data", [3, 4]))
    joined = json.loads((place / "index.json").read_text())
    assert [shard["raw_data"]["basename"] for shard in joined["shards"]] == ["0/shard.00000.mds", "1/shard.00000.mds"]
    (place / "index.json").unlink()
    parts: list[Any] = [str(place / part / "index.json") for part in ("1", "0")]
    streaming.base.util.merge_index(parts, str(place))
    assert numbers(streaming.LocalDataset(place)[:]) == [3, 4, 5, 6, 0, 1, 2]
    absent = [(str(tmp_path / "no" / part / "index.json"), path) for part, path in zip("10", parts)]
    streaming.merge_index(absent, (str(tmp_path / "out"), str(place)), keep_local=False, download_timeout=30)
    assert not (tmp_path / "out").exists()
    assert numbers(streaming.LocalDataset(place)[:]) == [3, 4, 5, 6, 0, 1, 2]


def test_what_can_not_be_joined_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="Check data availability"):
        streaming.merge_index(str(tmp_path))
    with pytest.raises(ValueError, match="Invalid arguments to merge_index"):
        streaming.merge_index("s3://bucket/data")
    with pytest.raises(ValueError, match="Invalid arguments to merge_index"):
        streaming.merge_index([str(tmp_path / "index.json")])
    (tmp_path / "index.json").write_text('{"version": 1, "shards": []}')
    with pytest.raises(ValueError, match="is no index of version 2"):
        streaming.merge_index([str(tmp_path / "index.json")], str(tmp_path))
