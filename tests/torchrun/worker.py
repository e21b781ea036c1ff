"""One rank of a run under torchrun. Arguments: a scenario, and a JSON object of its parameters.

Each rank appends what it receives to `OUT/rank<r>.jsonl`, a line a batch.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh

import stoker
import stoker.distributed


def make(streams: list[str], **arguments: Any) -> stoker.DataLoader:
    return stoker.DataLoader([stoker.Stream(local=local) for local in streams], num_workers=1, **arguments)


def record(out: str, loader: stoker.DataLoader, batch: dict[str, Any]) -> None:
    """Row i of this rank's batch is row rank + i * world_size of the global batch that begins at `row`."""
    line = {
        "row": loader.batch_info["rows"][0],
        "rank": loader.rank,
        "world_size": loader.world_size,
        "epoch": loader.batch_info["epoch"],
        "fields": {name: values.tolist() for name, values in batch.items() if isinstance(values, torch.Tensor)},
    }
    with Path(out, f"rank{dist.get_rank()}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def endless(loader: stoker.DataLoader) -> Iterator[dict[str, Any]]:
    """Batches over as many epochs as they take."""
    while True:
        yield from loader


def train(out: str, *, loader: dict[str, Any], steps: int, save_at: int, state: str, resume: bool, kill: bool) -> None:
    """`steps` batches; the state is saved after `save_at` of them. With `kill` the ranks are then killed one by one, in
    the middle of whatever they do."""
    with make(**loader) as batches:
        if resume:
            batches.load_state_dict(json.loads(Path(state).read_text()))
        for taken, batch in enumerate(itertools.islice(endless(batches), steps), 1):
            record(out, batches, batch)
            if taken == save_at:
                saved = stoker.distributed.full_state(batches)
                if dist.get_rank() == 0:
                    Path(state).write_text(json.dumps(saved))
        if kill:
            dist.barrier()
            if dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            for _ in endless(batches):  # until torchrun stops them
                pass


def train_from_one_state(out: str, *, loader: dict[str, Any], steps: int, state: str, resume: bool) -> None:
    """The same with the state of rank 0 alone."""
    with make(**loader) as batches:
        if resume:
            batches.load_state_dict(json.loads(Path(state).read_text()))
        for batch in itertools.islice(endless(batches), steps):
            record(out, batches, batch)
        if dist.get_rank() == 0 and not resume:
            Path(state).write_text(json.dumps(batches.state_dict()))


def train_with_checkpoint(out: str, *, loader: dict[str, Any], steps: int, state: str, resume: bool) -> None:
    """The same with torch.distributed.checkpoint, to which the loader is a Stateful object."""
    with make(**loader) as batches:
        everything = {"loader": batches, "step": torch.tensor(0)}
        if resume:
            dcp.load(everything, checkpoint_id=state)
            assert int(everything["step"]) == steps
        for batch in itertools.islice(endless(batches), steps):
            record(out, batches, batch)
        if not resume:
            dcp.save(
                {"loader": stoker.distributed.full_state(batches), "step": torch.tensor(steps)}, checkpoint_id=state
            )


def whole_epochs(out: str, *, loader: dict[str, Any], num_epochs: int) -> None:
    """All ranks meet at the end of each epoch, as they do in a validation: one that has a batch more hangs."""
    with make(**loader) as batches:
        for _ in range(num_epochs):
            for batch in batches:
                record(out, batches, batch)
                dist.all_reduce(torch.ones(1))
            dist.barrier()


def in_a_mesh(out: str, *, loader: dict[str, Any], steps: int) -> None:
    """Two data-parallel ranks of two tensor-parallel ones each."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    with make(**loader, device_mesh=mesh) as batches:
        for batch in itertools.islice(endless(batches), steps):
            record(out, batches, batch)
        state = stoker.distributed.full_state(batches)
    assert [hint[0] for hint in state["hints"]] == list(range(loader["lanes"]))
    with pytest.raises(ValueError, match="device_mesh has 'dp', 'tp'"):
        make(**loader, device_mesh=mesh, mesh_dims=["fsdp"])


def apart(out: str, *, loader: dict[str, Any], changes: dict[str, Any], message: str, ahead: int = 0) -> None:
    """Rank 2 has other arguments, or is ahead: every rank is told."""
    is_other = dist.get_rank() == 2
    with make(**{**loader, **(changes if is_other else {})}) as batches:
        for _ in itertools.islice(endless(batches), 2 + ahead * is_other):
            pass
        with pytest.raises(stoker.StateMismatchError, match=message):
            stoker.distributed.full_state(batches)
    Path(out, f"rank{dist.get_rank()}.jsonl").touch()


SCENARIOS: dict[str, Callable[..., None]] = {
    f.__name__: f for f in (train, train_from_one_state, train_with_checkpoint, whole_epochs, in_a_mesh, apart)
}

if __name__ == "__main__":
    dist.init_process_group("gloo")
    SCENARIOS[sys.argv[1]](**json.loads(sys.argv[2]))
    dist.barrier()  # a scenario may need no other rank, and be done before all are connected
    dist.destroy_process_group()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads may hold the last tensors, and an exit before they let go aborts (pytorch#179291)
