"""Which of the processes that train together this one is, and what their states say together."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from stoker.errors import StateMismatchError
from stoker.options import check_index
from stoker.state import merge_states

if TYPE_CHECKING:
    from stoker.loader import DataLoader

# Dimensions of a mesh by their usual names (PyTorch, torchtitan, Accelerate, Lightning): along the first ranks get
# different rows, along the others the same. What an expert-parallel dimension `ep` means depends on the trainer.
_DATA_PARALLEL = (
    *("dp", "dp_replicate", "dp_shard", "dp_shard_mod_ep", "dp_shard_in_ep", "fsdp", "ddp", "hsdp"),
    *("data", "data_parallel", "replicate", "shard"),
)
_MODEL_PARALLEL = (
    *("tp", "cp", "pp", "sp", "tensor", "context", "pipeline", "sequence", "model"),
    *("tensor_parallel", "context_parallel", "pipeline_parallel", "sequence_parallel"),
)
_MAX_WORLD_SIZE = (1 << 31) - 1  # as the core counts ranks
# Rank and number of processes, by launcher. Slurm's numbers are those of a job step: a batch script, which runs once,
# has SLURM_NTASKS and SLURM_PROCID too.
_ENVIRONMENTS = (
    ("torchrun", "RANK", "WORLD_SIZE"),
    ("Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)


class Ranks(NamedTuple):
    """A process among those that get different rows.

    Attributes:
        rank: Its number.
        world_size: Theirs.
        source: Where the two come from, in words.
    """

    rank: int
    world_size: int
    source: str


def find_ranks(
    rank: int | None,
    world_size: int | None,
    *,
    replication: int = 1,
    device_mesh: Any = None,
    mesh_dims: Sequence[str] | str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Ranks:
    """Looks for rank and world size: in the arguments, else in the mesh, else in torch's default process group if there
    is one, else in the environment that torchrun or Slurm's srun leave, else this process is alone. Talks to nobody.

    Args:
        rank, world_size: As given; both or neither.
        replication: So many ranks, one after the other, get the same rows.
        device_mesh: A torch DeviceMesh that this process is in.
        mesh_dims: Its dimensions along which rows differ. Default: those with a data-parallel name, or the only one
            where it has none.
        environment: Where launchers leave their variables.

    Raises:
        ValueError: The arguments contradict each other, the mesh has no such dimension or the process is not in it, or
            a variable of the environment is not a number.
    """
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank is {rank} and world_size is {world_size}: give both, or neither.")
    if device_mesh is not None:
        if rank is not None or replication != 1:
            raise ValueError("device_mesh goes without rank, world_size and replication, which it tells itself.")
        return _in_mesh(device_mesh, mesh_dims)
    if mesh_dims is not None:
        raise ValueError("mesh_dims needs device_mesh, whose dimensions it names.")
    if rank is not None and world_size is not None:
        found = Ranks(rank, world_size, "the arguments")
    else:
        found = _in_process_group() or _in_environment(environment) or Ranks(0, 1, "no launcher")
    world_size = check_index("world_size", found.world_size, 1, _MAX_WORLD_SIZE)
    rank = check_index("rank", found.rank, 0, world_size - 1)
    replication = check_index("replication", replication, 1, _MAX_WORLD_SIZE)
    if world_size % replication:
        raise ValueError(f"replication is {replication}: it must divide the {world_size} ranks of {found.source}.")
    return Ranks(rank // replication, world_size // replication, found.source)


def _in_mesh(mesh: Any, dims: Sequence[str] | str | None) -> Ranks:
    names = mesh.mesh_dim_names
    if names is None:
        if mesh.ndim > 1 or dims is not None:
            raise ValueError(
                f"device_mesh has {mesh.ndim} dimensions without names: give it mesh_dim_names, so that those along "
                "which rows differ can be told."
            )
        dims, names = ["the only one"], ["the only one"]
    elif dims is None:
        unknown = [name for name in names if name not in (*_DATA_PARALLEL, *_MODEL_PARALLEL)]
        if unknown:
            raise ValueError(
                f"device_mesh has {', '.join(map(repr, names))}, and {unknown[0]!r} does not tell whether ranks along "
                "it get different rows: name the dimensions along which they do in mesh_dims."
            )
        dims = [name for name in names if name in _DATA_PARALLEL]
    dims = [dims] if isinstance(dims, str) else list(dims)
    absent = [dim for dim in dims if dim not in names]
    if absent:
        raise ValueError(
            f"mesh_dims names {', '.join(map(repr, absent))}, but device_mesh has {', '.join(map(repr, names))}. Name "
            "those along which rows differ in mesh_dims."
        )
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        raise ValueError("this process is not in device_mesh: make the loader in its processes alone.")
    rank, world_size = 0, 1
    for i, name in enumerate(names):
        if name in dims:
            rank = rank * mesh.size(i) + coordinate[i]
            world_size *= mesh.size(i)
    return Ranks(rank, world_size, "device_mesh")


def _in_process_group() -> Ranks | None:
    torch_distributed = sys.modules.get("torch.distributed")  # without it there is no group
    if torch_distributed is None or not torch_distributed.is_available() or not torch_distributed.is_initialized():
        return None
    return Ranks(torch_distributed.get_rank(), torch_distributed.get_world_size(), "torch.distributed")


def _in_environment(environment: Mapping[str, str]) -> Ranks | None:
    for launcher, *variables in _ENVIRONMENTS:
        if all(name in environment for name in variables):
            for name in variables:
                if not environment[name].isdecimal():
                    raise ValueError(f"{name} is {environment[name]!r} in the environment: it must be a whole number.")
            rank, world_size = (int(environment[name]) for name in variables)
            return Ranks(rank, world_size, f"{launcher}'s environment ({', '.join(variables)})")
    return None


def full_state(loader: DataLoader, group: Any = None) -> dict[str, Any]:
    """The state of a loader with what all ranks know, so that any rank of any world size goes on from it at once. To be
    called by all ranks of the process group at the same batch; it is one `all_gather_object`.

    `loader.state_dict()` of a single rank is exact, too, and the same as this but for layout `pack`: there a lane whose
    hint it does not have is walked again from its beginning.

    Args:
        loader: This rank's.
        group: A process group with all ranks of the loader; ranks that get the same rows may be in it. Default: torch's
            default group. Gloo needs no device; with NCCL set the device before.

    Returns:
        The same on every rank.

    Raises:
        StateMismatchError: Ranks have other specifications, stand at other rows, or some lane's rank is not in the
            group; on every rank alike.
        ValueError: There is more than one rank, but no process group.
    """
    state = loader.state_dict()
    torch_distributed = sys.modules.get("torch.distributed")
    if torch_distributed is None or not torch_distributed.is_available() or not torch_distributed.is_initialized():
        if loader.world_size == 1:
            return state
        raise ValueError(
            f"full_state needs a process group of the {loader.world_size} ranks: call "
            "torch.distributed.init_process_group() before."
        )
    states: list[Any] = [None] * torch_distributed.get_world_size(group)
    torch_distributed.all_gather_object(states, (loader.rank, loader.world_size, state), group=group)
    sizes = sorted({world_size for _, world_size, _ in states})
    if len(sizes) > 1:
        raise StateMismatchError(
            f"the processes of the group do not make one run: their loaders' world sizes are {sizes}. Give all the "
            "same."
        )
    missing = sorted(set(range(loader.world_size)) - {rank for rank, *_ in states})
    if missing:
        raise StateMismatchError(
            f"the processes of the group do not make one run: of rank {', '.join(map(str, missing))} of "
            f"{loader.world_size} there is no loader. Call full_state on all ranks of the loader."
        )
    return merge_states([(rank, state) for rank, _, state in states])
