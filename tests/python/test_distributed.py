"""Which rank a loader is, and how many there are: from arguments, a mesh, torch's process group or a launcher. Real
processes are in tests/torchrun."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import stoker
from mds import write_dataset
from stoker.distributed import find_ranks, full_state

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SRUN = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "16", "SLURM_NTASKS": "16"}
BATCH_SCRIPT = {"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}


@pytest.fixture
def stream(tmp_path: Path) -> stoker.Stream:
    return stoker.Stream(local=write_dataset(tmp_path, "web", [[9, 30, 5] * 20]))


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Mesh:
    """The parts of a DeviceMesh that are asked for, of a process somewhere in a large one."""

    def __init__(self, sizes: dict[str, int] | list[int], coordinate: list[int] | None) -> None:
        self.mesh_dim_names = tuple(sizes) if isinstance(sizes, dict) else None
        self._sizes = list(sizes.values()) if isinstance(sizes, dict) else sizes
        self.ndim = len(sizes)
        self._coordinate = coordinate

    def size(self, dim: int) -> int:
        return self._sizes[dim]

    def get_coordinate(self) -> list[int] | None:
        return self._coordinate


@pytest.mark.parametrize(
    ("environment", "want"),
    [
        ({}, (0, 1)),
        (TORCHRUN, (3, 8)),
        (SRUN, (5, 16)),
        ({**SRUN, **TORCHRUN}, (3, 8)),  # torchrun on the nodes of a Slurm job
        (BATCH_SCRIPT, (0, 1)),  # the script of a job is one process
        ({"RANK": "3"}, (0, 1)),
    ],
)
def test_rank_and_world_size_from_the_environment(environment: dict[str, str], want: tuple[int, int]) -> None:
    assert find_ranks(None, None, environment=environment)[:2] == want
    assert find_ranks(1, 2, environment=environment)[:2] == (1, 2)  # arguments come first


@pytest.mark.parametrize(("rank", "want"), [(0, 0), (1, 0), (3, 0), (4, 1), (11, 2)])
def test_replicas_are_one_rank(rank: int, want: int) -> None:
    assert find_ranks(rank, 12, replication=4)[:2] == (want, 3)


@pytest.mark.parametrize(
    ("sizes", "coordinate", "dims", "want"),
    [
        ({"dp": 4}, [2], None, (2, 4)),
        ({"tp": 4}, [2], None, (0, 1)),  # its ranks get the same rows
        ([4], [2], None, (2, 4)),
        ({"dp": 4, "tp": 8}, [2, 5], None, (2, 4)),
        ({"pp": 2, "dp_replicate": 3, "dp_shard": 4, "cp": 2, "tp": 8}, [1, 2, 3, 1, 7], None, (11, 12)),
        ({"dp_replicate": 2, "dp_shard_mod_ep": 2, "dp_shard_in_ep": 4, "tp": 2}, [1, 0, 3, 1], None, (11, 16)),
        ({"replica": 3, "model": 4}, [2, 1], ["replica"], (2, 3)),
        ({"dp": 3, "ep": 4}, [2, 1], "dp", (2, 3)),
        ({"a": 3, "b": 4}, [2, 1], ["b", "a"], (9, 12)),  # in the order of the mesh
    ],
)
def test_rank_and_world_size_from_a_mesh(
    sizes: Any, coordinate: list[int], dims: list[str] | None, want: tuple[int, int]
) -> None:
    mesh = Mesh(sizes, coordinate)
    assert find_ranks(None, None, device_mesh=mesh, mesh_dims=dims, environment=TORCHRUN)[:2] == want


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 1}, "rank is 1 and world_size is None: give both, or neither"),
        ({"world_size": 4}, "rank is None and world_size is 4"),
        ({"rank": 4, "world_size": 4}, "rank is 4: it must be a whole number from 0 to 3"),
        ({"rank": 0, "world_size": 6, "replication": 4}, "replication is 4: it must divide the 6 ranks of the arg"),
        ({"replication": 0}, "replication is 0"),
        ({"mesh_dims": ["dp"]}, "mesh_dims needs device_mesh"),
        ({"device_mesh": Mesh({"dp": 2}, [0]), "rank": 0, "world_size": 2}, "device_mesh goes without rank"),
        ({"device_mesh": Mesh({"dp": 2}, [0]), "replication": 2}, "device_mesh goes without rank"),
        (
            {"device_mesh": Mesh({"dp": 2, "tp": 2}, [0, 0]), "mesh_dims": ["fsdp"]},
            "mesh_dims names 'fsdp', but device_mesh has 'dp', 'tp'. Name those along which rows differ",
        ),
        (
            {"device_mesh": Mesh({"dp": 2, "ep": 2}, [0, 0])},
            "device_mesh has 'dp', 'ep', and 'ep' does not tell whether ranks along it get different rows",
        ),
        ({"device_mesh": Mesh([2, 2], [0, 0])}, "device_mesh has 2 dimensions without names"),
        ({"device_mesh": Mesh([2], [0]), "mesh_dims": ["dp"]}, "dimensions without names"),
        ({"device_mesh": Mesh({"dp": 2}, None)}, "this process is not in device_mesh"),
    ],
)
def test_what_contradicts_itself_is_refused(stream: stoker.Stream, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stoker.DataLoader(stream, seq_len=8, batch_size=2, **arguments)


def test_a_launchers_variable_that_is_no_number_is_refused(
    stream: stoker.Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "first")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="RANK is 'first' in the environment"):
        stoker.DataLoader(stream, seq_len=8, batch_size=2)
    monkeypatch.setenv("RANK", "1")
    with stoker.DataLoader(stream, seq_len=8, batch_size=2) as loader:
        assert (loader.rank, loader.world_size) == (1, 2)


@pytest.mark.usefixtures("process_group")
def test_a_process_group_comes_before_the_environment(
    stream: stoker.Stream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with caplog.at_level(logging.INFO, "stoker"), stoker.DataLoader(stream, seq_len=8, batch_size=2) as loader:
        assert (loader.rank, loader.world_size) == (0, 1)
        assert "rank 0 of 1, from torch.distributed" in caplog.text
        next(iter(loader))
        assert full_state(loader) == loader.state_dict()
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "tp"))
    with stoker.DataLoader(stream, seq_len=8, batch_size=2, device_mesh=mesh) as loader:
        assert (loader.rank, loader.world_size) == (0, 1)
    with stoker.DataLoader(stream, seq_len=8, batch_size=2, rank=1, world_size=2) as loader:
        with pytest.raises(stoker.StateMismatchError, match="of rank 0 of 2 there is no loader"):
            full_state(loader)


def test_full_state_of_several_ranks_needs_a_group(stream: stoker.Stream) -> None:
    with stoker.DataLoader(stream, seq_len=8, batch_size=2) as loader:
        assert full_state(loader) == loader.state_dict()
    with stoker.DataLoader(stream, seq_len=8, batch_size=2, rank=1, world_size=2) as loader:
        with pytest.raises(ValueError, match="full_state needs a process group of the 2 ranks"):
            full_state(loader)


def test_hints_of_all_ranks_together_serve_any(stream: stoker.Stream, caplog: pytest.LogCaptureFixture) -> None:
    """What full_state does, without processes."""
    from stoker.state import merge_states

    arguments: dict[str, Any] = {
        "seq_len": 16,
        "layout": "pack",
        "lanes": 4,
        "epoch_size": 10_000,
        "pack_window": 5,
        "shuffle_block": 8,
    }
    states = {}
    for rank in range(4):
        with stoker.DataLoader(stream, batch_size=3, rank=rank, world_size=4, **arguments) as loader:
            for _ in zip(range(5), loader, strict=False):
                pass
            states[rank] = loader.state_dict()
    merged = json.loads(json.dumps(merge_states(list(states.items()))))
    assert [hint[0] for hint in merged["hints"]] == [0, 1, 2, 3]
    for state, told in ((merged, False), (states[2], True)):
        caplog.clear()
        with stoker.DataLoader(stream, batch_size=6, rank=1, world_size=2, **arguments) as loader:
            loader.load_state_dict(state)
            rows = next(iter(loader))["input_ids"]
        assert ("there are no hints" in caplog.text) == told
        with stoker.DataLoader(stream, batch_size=12, **arguments) as whole:
            whole.load_state_dict(states[0])
            assert torch.equal(next(iter(whole))["input_ids"][1::2], rows)


@pytest.mark.parametrize("layout", ["pad", "concat", "pack"])
def test_saved_on_8_ranks_goes_on_on_2_4_or_16(stream: stoker.Stream, layout: str) -> None:
    from stoker.state import merge_states

    arguments: dict[str, Any] = {
        "seq_len": 16,
        "global_batch_size": 16,
        "layout": layout,
        "epoch_size": 10_000,
        "shuffle_block": 8,
    }

    def run(world_size: int, state: dict[str, Any] | None, steps: int) -> tuple[list[torch.Tensor], dict[str, Any]]:
        """Global batches, and the state of all ranks behind them."""
        rows, states = [], []
        for rank in range(world_size):
            with stoker.DataLoader(stream, rank=rank, world_size=world_size, **arguments) as loader:
                if state is not None:
                    loader.load_state_dict(state)
                rows.append([batch["input_ids"] for _, batch in zip(range(steps), loader)])
                states.append((rank, loader.state_dict()))
        return [torch.stack(parts, 1).flatten(0, 1) for parts in zip(*rows)], merge_states(states)

    whole, _ = run(8, None, 9)
    _, state = run(8, None, 5)
    for world_size in (2, 4, 16):
        went_on, _ = run(world_size, state, 4)
        assert all(torch.equal(a, b) for a, b in zip(went_on, whole[5:], strict=True))


def test_processes_of_one_rank_are_compared_too(stream: stoker.Stream) -> None:
    from stoker.state import merge_states

    states = []
    for seed in (1, 1, 2):
        with stoker.DataLoader(stream, seq_len=8, batch_size=2, seed=seed) as loader:
            states.append((0, loader.state_dict()))
    merge_states(states[:2])
    with pytest.raises(stoker.StateMismatchError, match="rank 0 and rank 0 differ: seed 1 and 2"):
        merge_states(states)


# ---------------------------------------------------------------- global batches
def test_a_global_batch_stays_when_the_world_size_changes(stream: stoker.Stream) -> None:
    with stoker.DataLoader(stream, seq_len=8, global_batch_size=12, rank=0, world_size=4) as loader:
        assert loader.batch_size == 3
        next(iter(loader))
        state = loader.state_dict()
    with stoker.DataLoader(stream, seq_len=8, global_batch_size=12, rank=5, world_size=6) as loader:
        assert loader.batch_size == 2
        loader.load_state_dict(state)
    with pytest.raises(
        ValueError, match="global_batch_size is 12, which 5 ranks do not divide: 1, 2, 3, 4, 6 and 12 do"
    ):
        stoker.DataLoader(stream, seq_len=8, global_batch_size=12, rank=0, world_size=5)
    for sizes in ({}, {"batch_size": 3, "global_batch_size": 12}):
        with pytest.raises(ValueError, match="give batch_size, the rows of a rank, or global_batch_size"):
            stoker.DataLoader(stream, seq_len=8, **sizes)


@pytest.mark.parametrize(
    ("batch_size", "world_size", "message"),
    [(4, 5, "5 ranks do not divide it, 1, 2, 3, 4, 6 and 12 do"), (4, 6, "set batch_size=2")],
)
def test_a_state_tells_which_world_sizes_its_global_batch_allows(
    stream: stoker.Stream, batch_size: int, world_size: int, message: str
) -> None:
    with stoker.DataLoader(stream, seq_len=8, batch_size=12) as loader:
        state = loader.state_dict()
    with stoker.DataLoader(stream, seq_len=8, batch_size=batch_size, rank=0, world_size=world_size) as loader:
        with pytest.raises(stoker.StateMismatchError, match=message):
            loader.load_state_dict(state)
