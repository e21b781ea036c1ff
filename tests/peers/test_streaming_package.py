"""The real mosaicml-streaming beside `stoker.streaming`: the same program gives the same samples, states and files.

Runs in a virtual environment of its own: `make peers`.
"""

from __future__ import annotations

import ast
import gc
import importlib.metadata
import io
import itertools
import json
import logging
import tempfile
import typing
import warnings
from collections import Counter
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import streaming as theirs
import torch
from PIL import Image
from streaming.base.batching import generate_work
from streaming.base.util import clean_stale_shared_memory
from streaming.base.util import merge_index as their_merge_index
from streaming.base.world import World as TheirWorld
from torch.utils.data import DataLoader

import stoker.streaming as ours
from stoker.compressions import compressions
from stoker.streaming import progress
from stoker.streaming_order.shuffles import SHUFFLE_ALGOS

BOTH = [ours, theirs]
BATCHING_METHODS = ["random", "stratified", "per_stream", "device_per_stream"]

logging.getLogger("streaming").setLevel(logging.ERROR)


@pytest.fixture(autouse=True)
def _shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference leaves some, and lock files: its next data sets look long for free names, and keep files open."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gc.collect()
    clean_stale_shared_memory()


class Numbers:
    """Samples are their numbers: mixed into a data set of either package."""

    def __getitem__(self, at: Any) -> int:
        return int(at)


class TheirNumbers(Numbers, theirs.StreamingDataset):
    """Never fetches: its shards are not there."""


class OurNumbers(Numbers, ours.StreamingDataset):
    """The same."""


def write(directory: Path, sizes: list[int], *, begin: int = 0) -> str:
    """A data set of so many samples in each shard, by the reference."""
    number = itertools.count(begin)
    for shard, size in enumerate(sizes):
        with theirs.MDSWriter(out=str(directory / f"{shard:03}"), columns={"n": "int", "x": "ndarray:int16:2"}) as out:
            for n in itertools.islice(number, size):
                out.write({"n": n, "x": np.array([n, -n], np.int16)})
    their_merge_index(str(directory))
    return str(directory)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("data") / "web", [30, 1, 45, 20, 37])


def numbers_of(batches: Any) -> list[list[int]]:
    return [batch["n"].tolist() for batch in batches]


# ---------------------------------------------------------------- order
def write_index(directory: Path, sizes: list[int]) -> str:
    """Of shards that are not there."""
    columns = {"column_names": ["n"], "column_encodings": ["int"], "column_sizes": [8], "hashes": []}
    rest = {"version": 2, "format": "mds", "compression": None, "size_limit": None, "zip_data": None}
    shards = [
        {**columns, **rest, "samples": size, "raw_data": {"basename": f"{i}.mds", "bytes": 1 + size, "hashes": {}}}
        for i, size in enumerate(sizes)
    ]
    directory.mkdir()
    (directory / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    return str(directory)


def outcome(function: Any, *arguments: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(*arguments)
        except (ValueError, ZeroDivisionError) as error:
            return error


@pytest.mark.parametrize("seed", range(4))
def test_every_worker_of_every_rank_iterates_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(np, "argsort", partial(np.argsort, kind="stable"))  # as in test_streaming_order.py
    outcomes: Counter[str] = Counter()
    for case in range(25):
        clean_stale_shared_memory()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / f"locks-{case}"))
        nodes, ranks, workers = (int(rng.integers(1, high)) for high in (4, 4, 4))
        weights: list[dict[str, Any]] = [{"proportion": float(rng.random()) + 0.1} for _ in range(3)]
        if rng.random() < 0.5:
            weights = [{}, {"repeat": 1.5}, {"choose": 50}]
        places = [write_index(tmp_path / f"{case}-{s}", rng.integers(1, 40, 6).tolist()) for s in range(3)]
        arguments: dict[str, Any] = {
            "batch_size": int(rng.integers(1, 6)),
            "shuffle": bool(rng.random() < 0.7),
            "shuffle_algo": str(rng.choice(SHUFFLE_ALGOS)),
            "shuffle_seed": int(rng.choice([0, 9176, 12345678901])),
            "shuffle_block_size": [None, 64][rng.integers(2)],
            "num_canonical_nodes": [None, nodes, 2 * nodes, 3][rng.integers(4)],
            "sampling_method": str(rng.choice(["balanced", "fixed"])),
            "sampling_granularity": int(rng.choice([1, 4])),
            "partition_algo": str(rng.choice(["orig", "relaxed"])),
            "batching_method": str(rng.choice(BATCHING_METHODS, p=[0.55, 0.15, 0.15, 0.15])),
            "epoch_size": 300 if "proportion" in weights[0] else None,
            "predownload": 1000,
        }
        epoch, sample = int(rng.integers(0, 3)), int(rng.choice([0, 0, 24, 48]))
        streams = [[package.Stream(local=p, **w) for p, w in zip(places, weights)] for package in BOTH]
        reference = TheirNumbers(streams=streams[1], **arguments)
        world = TheirWorld(nodes, ranks, workers, 0)
        default = nodes * (64 if arguments["shuffle_algo"] in ("py1s", "py2s") else 1)
        canonical = arguments["num_canonical_nodes"] or default
        reference.num_canonical_nodes = canonical
        reference._set_shuffle_block_size(world)
        reference.initial_physical_nodes = [None, nodes][rng.integers(2)]
        work = outcome(generate_work, arguments["batching_method"], reference, world, epoch, sample)
        for rank in range(nodes * ranks):
            for name, value in (("RANK", rank), ("WORLD_SIZE", nodes * ranks), ("LOCAL_WORLD_SIZE", ranks)):
                monkeypatch.setenv(name, str(value))
            data = OurNumbers(streams=streams[0], **arguments)
            for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
                monkeypatch.delenv(name)
            assert (data.epoch_size, data.num_canonical_nodes) == (reference.epoch_size, canonical)
            assert len(data) == -(-reference.epoch_size // (nodes * ranks))
            state = {"epoch": epoch, "sample_in_epoch": sample, "num_canonical_nodes": canonical}
            rest = {"shuffle_seed": reference.shuffle_seed}
            data.load_state_dict({**state, **rest, "initial_physical_nodes": reference.initial_physical_nodes})
            for worker in range(workers):
                info = SimpleNamespace(id=worker, num_workers=workers, seed=worker)
                monkeypatch.setattr(progress, "get_worker_info", lambda info=info: info)
                got = outcome(list, data)
                if isinstance(work, Exception):
                    assert isinstance(got, ValueError), (work, got)
                    outcomes["raised"] += 1
                    break
                want = work[rank // ranks, rank % ranks, worker].flatten()
                assert got == want[want >= 0].tolist(), (arguments, rank, worker)
                outcomes["equal"] += len(got) > 0
    assert outcomes["equal"] > 150


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("persistent", [False, True])
def test_loaders_yield_the_same_batches_of_epochs_that_are_left_or_resumed(
    place: str, num_workers: int, persistent: bool
) -> None:
    results = []
    for package in BOTH:
        data = package.StreamingDataset(local=place, batch_size=8, shuffle=True, num_canonical_nodes=2)
        workers: dict[str, Any] = {"num_workers": num_workers, "persistent_workers": persistent and num_workers > 0}
        loader = package.StreamingDataLoader(data, batch_size=8, **workers)
        states = [loader.state_dict(), data.state_dict(5, True), data.state_dict(5, False)]
        batches = [numbers_of(loader)]
        states.append(loader.state_dict())
        some = iter(loader)
        batches.append(numbers_of(next(some) for _ in range(num_workers + 2)))  # so that all workers have begun
        states += [loader.state_dict(), data.state_dict(5, True), data.state_dict(5, False)]
        del some
        batches.append(numbers_of(loader))
        loader.load_state_dict({**states[-1], "epoch": 6, "sample_in_epoch": 40, "shuffle_seed": 3})
        states += [loader.state_dict() | {"sample_in_epoch": 0}, data.state_dict(5, True)]
        some = iter(loader)
        batches.append(numbers_of(next(some) for _ in range(2)))
        states += [loader.state_dict(), data.state_dict(5, True), data.state_dict(5, False)]
        batches[-1] += numbers_of(some)
        states.append(loader.state_dict())
        batches.append(numbers_of(loader))
        states.append(loader.state_dict())
        assert (len(data), len(loader), data.size) == (133, 17, 133)
        results.append((batches, states))
        del some, loader, data
    assert results[0] == results[1]


@pytest.mark.parametrize(("first", "second"), [BOTH, BOTH[::-1]], ids=["ours, theirs", "theirs, ours"])
@pytest.mark.parametrize("settings", [{}, {"shuffle_algo": "py1s"}, {"batching_method": "per_stream"}])
def test_a_run_goes_on_in_the_other_package(place: str, first: Any, second: Any, settings: dict[str, Any]) -> None:
    def loader(package: Any) -> Any:
        data = package.StreamingDataset(local=place, batch_size=4, shuffle=True, **settings)
        return package.StreamingDataLoader(data, batch_size=4, num_workers=2)

    before = loader(first)
    list(before)
    batches = iter(before)
    got = numbers_of(next(batches) for _ in range(7))
    state = json.loads(json.dumps(before.state_dict()))
    after = loader(second)
    after.load_state_dict(state)
    got += numbers_of(after)
    got += numbers_of(after)
    del batches, before, after
    whole = loader(first)
    list(whole)
    assert got == numbers_of(whole) + numbers_of(whole)


# ---------------------------------------------------------------- samples
@pytest.mark.parametrize("name", ["StreamingDataset", "LocalDataset"])
def test_samples_are_looked_up_alike(place: str, name: str) -> None:
    mine, reference = (getattr(package, name)(local=place) for package in BOTH)
    size = reference.size
    assert mine.size == size == mine.num_samples
    looked_up: list[Any] = [
        *(0, 5, -1, -size, np.int64(7), size - 1),
        *(slice(3), slice(2, 9, 3), slice(-4, None), slice(9, 2, -2), slice(1000), slice(40, 30), slice(-1000, 2)),
        *([1, -1], [], [[1], [2, 3]], np.array([4, -4]), np.arange(6).reshape(2, 3)),
        *(size, -size - 1, [0, size], "n", 1.5, None),
    ]
    for at in looked_up:
        results = []
        for data in (mine, reference):
            try:
                results.append(plain(data[at]))
            except (IndexError, ValueError) as error:
                results.append((type(error), str(error)))
        assert results[0] == results[1], at


def plain(value: Any) -> Any:
    """With values that == compares."""
    if isinstance(value, dict):
        return {name: plain(of_name) for name, of_name in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.tolist())
    if isinstance(value, Image.Image):
        return (value.mode, value.size, value.tobytes())
    return (type(value).__name__, value)


IMAGE = Image.frombytes("RGB", (4, 3), bytes(range(36)))


def jpeg() -> Image.Image:
    """As read from bytes, so that both encode it anew."""
    out = io.BytesIO()
    IMAGE.save(out, "JPEG")
    return Image.open(io.BytesIO(out.getvalue()))


def values(k: int) -> dict[str, tuple[str, Any]]:
    """Encoding and value of columns that have all of them."""
    scalars = [f"{kind}{8 << i}" for kind in ("uint", "int") for i in range(4)] + ["float16", "float32", "float64"]
    out = io.BytesIO()
    IMAGE.save(out, "JPEG")
    columns: dict[str, tuple[str, Any]] = {
        "bytes": ("bytes", b"\x00\xff" * k),
        "str": ("str", "hé" * k),
        "int": ("int", -k << 40),
        "str_int": ("str_int", 10**30 + k),
        "str_float": ("str_float", k / 3),
        "str_decimal": ("str_decimal", Decimal(f"{k}.10")),
        "json": ("json", {"k": [k, None, float(k)]}),
        "pkl": ("pkl", {k, "x"}),
        "array": ("ndarray", np.full((2, k + 1), k, np.float16)),
        "array_of": ("ndarray:int32", np.arange(k + 1, dtype=np.int32)),
        "array_fixed": ("ndarray:uint8:2,3", np.full((2, 3), k, np.uint8)),
        "pil": ("pil", IMAGE),
        "png": ("png", IMAGE),
        "jpeg": ("jpeg", jpeg()),
        "jpeg_array": ("jpeg_array", [out.getvalue()] * (k + 1)),
        "list_pil": ("list[pil]", [IMAGE] * k),
        "list_png": ("list[png]", [IMAGE] * k),
        "list_jpeg": ("list[jpeg]", [jpeg()] * k),
    }
    return columns | {name: (name, getattr(np, name)(k)) for name in scalars}


@pytest.mark.parametrize("compression", [None, *(code for code in compressions() if ":" not in code), "gz:1", "br:3"])
def test_all_encodings_are_written_and_read_alike(tmp_path: Path, compression: str | None) -> None:
    columns = {name: encoding for name, (encoding, _) in values(0).items()}
    entries = []
    for package in BOTH:
        out = tmp_path / package.__name__
        hashes = ["sha1", "xxh64"]
        with package.MDSWriter(
            out=str(out), columns=columns, compression=compression, hashes=hashes, size_limit=5000
        ) as writer:
            for k in range(9):
                writer.write({name: value for name, (_, value) in values(k).items()})
        entries.append(json.loads((out / "index.json").read_text())["shards"])
    assert [{**entry, "zip_data": 0} for entry in entries[0]] == [{**entry, "zip_data": 0} for entry in entries[1]]
    assert len(entries[0]) > 2 and (compression is not None or entries[0] == entries[1])
    read = []
    for package, written in itertools.product(BOTH, BOTH):  # the reference last of each: it expands in place
        place = str(tmp_path / written.__name__)
        data = package.StreamingDataset(local=place, allow_unsafe_types=True)
        read.append([plain(sample) for sample in data[:]])
        del data
    assert read[0] == read[1] == read[2] == read[3]
    assert len(read[0]) == 9 and set(read[0][0]) == set(columns)


@pytest.mark.parametrize("compression", [None, "zstd", "gz"])
@pytest.mark.parametrize("keep_zip", [False, True])
def test_remotes_are_copied_alike(tmp_path: Path, compression: str | None, keep_zip: bool) -> None:
    with theirs.MDSWriter(
        out=str(tmp_path / "far"), columns={"n": "int"}, compression=compression, size_limit=300
    ) as out:
        for n in range(50):
            out.write({"n": n})
    listings = []
    for package in BOTH:
        local = tmp_path / package.__name__
        data = package.StreamingDataset(
            remote=str(tmp_path / "far"), local=str(local), keep_zip=keep_zip, batch_size=2, num_canonical_nodes=1
        )
        assert [sample["n"] for sample in data] == list(range(50))
        listings.append(sorted(str(path.relative_to(local)) for path in local.glob("*") if path.is_file()))
        del data
    assert listings[0] == listings[1]
    # Each goes on with the other's copy.
    for package, other in (BOTH, BOTH[::-1]):
        data = package.StreamingDataset(remote=str(tmp_path / "far"), local=str(tmp_path / other.__name__))
        assert [sample["n"] for sample in data[:]] == list(range(50))
        del data


# ---------------------------------------------------------------- the rest
@pytest.mark.parametrize(
    "arguments",
    [
        {"local": None},
        {"sampling_method": "x"},
        {"sampling_granularity": 0},
        {"batching_method": "x"},
        {"shuffle_seed": -1},
        {"epoch_size": -5},
        {"replication": 0},
        {"replication": 3},
        {"cache_limit": 10},
        {"cache_limit": "1kb"},
        {"stream_config": {"proportion": 1, "choose": 2}},
        {"download_retry": -1},
        {"download_timeout": -1},
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_alike(place: str, arguments: dict[str, Any]) -> None:
    errors = []
    for package in BOTH:
        with pytest.raises(ValueError) as error:
            package.StreamingDataset(**{"local": place, "batch_size": 4, **arguments})
        errors.append(str(error.value).rstrip("."))
    assert errors[0].startswith(errors[1])


def test_indexes_are_joined_alike(tmp_path: Path) -> None:
    place = tmp_path / "data"
    write(place, [3, 4, 5])
    want = json.loads((place / "index.json").read_text())
    for arguments in ([str(place)], [[str(path) for path in sorted(place.glob("*/index.json"))], str(place)]):
        (place / "index.json").unlink()
        ours.base.util.merge_index(*arguments)
        assert json.loads((place / "index.json").read_text()) == want


def test_a_subclass_written_for_the_reference_runs_on_both(place: str) -> None:
    results = []
    for package in BOTH:

        class Text(package.StreamingDataset):  # type: ignore[name-defined]
            def __init__(self, scale: int, **kwargs: Any) -> None:
                super().__init__(**kwargs)
                self.scale = scale

            def __getitem__(self, idx: Any) -> Any:
                sample = super().__getitem__(idx)
                return {"n": self.scale * sample["n"], "x": torch.from_numpy(sample["x"].copy())}

        data = Text(3, local=place, batch_size=4, shuffle=True)
        results.append(numbers_of(DataLoader(data, batch_size=4, num_workers=2)))
        del data
    assert results[0] == results[1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_data_set_of_llm_foundry_runs_on_both(tmp_path: Path, num_workers: int) -> None:
    """Its class as it stands in its file, with either package under it."""
    path = importlib.metadata.distribution("llm-foundry").locate_file("llmfoundry/data/text_data.py")
    tree = ast.parse(Path(str(path)).read_text())
    names = ("StreamingTextDataset", "build_streams")
    tree.body = [node for node in tree.body if getattr(node, "name", "") in names]
    with theirs.MDSWriter(out=str(tmp_path / "web"), columns={"tokens": "bytes"}, size_limit=1000) as out:
        for n in range(50):
            out.write({"tokens": np.arange(n, n + 7).tobytes()})
    results = []
    for package in BOTH:
        given = {"SUPPORTED_MDS_ENCODING_TYPES": ["int64"], "stream_remote_local_validate": lambda *places: None}
        modules = {"np": np, "torch": torch, "PreTrainedTokenizerBase": Any, **vars(typing), **given}
        of_package = {"Stream": package.Stream, "StreamingDataset": package.StreamingDataset}
        namespace: dict[str, Any] = {**modules, **of_package}
        exec(compile(tree, "text_data.py", "exec"), namespace)
        streams = namespace["build_streams"]({"web": {"local": str(tmp_path / "web"), "repeat": 1.5}})
        data = namespace["StreamingTextDataset"](
            None, 5, streams=streams, batch_size=4, shuffle=True, epoch_size=None, shuffle_block_size=300_000.0
        )
        loader = DataLoader(data, batch_size=4, num_workers=num_workers)
        results.append([batch.tolist() for _ in range(2) for batch in loader])
        states = data.state_dict(8, True)
        assert states["epoch"] == 1
        del data, loader
    assert results[0] == results[1]
    assert len(results[0][0][0]) == 5
