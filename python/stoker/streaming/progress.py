"""Where a data set stands, as all processes of a rank know it: the trainer, and the workers of its DataLoaders.

A worker is told nothing when an epoch begins: torch forks it, or wakes it up, and it asks for samples. So the processes
of a rank share a note of a few hundred bytes. The first worker that begins an epoch writes it down, with the team that
it belongs to: the workers of one iterator. The others of its team, when they begin, find it there and join. Nobody
waits for anybody. A worker that has begun the epoch already, or is of another team, begins the next one.

The note is in a file in memory without a name, see shared_file.py.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec
from torch.utils.data import get_worker_info

from stoker.streaming.shared_file import SharedFile

_NOTE_LOCK = 0


class Seat(NamedTuple):
    """A worker's place among those that read for one rank.

    Attributes:
        worker: Its number, from 0.
        num_workers: Theirs.
        seed: The base seed of their iterator; 0 in a process that reads for itself.
        process: Processes that their parent had started before their first one, about.
    """

    worker: int
    num_workers: int
    seed: int
    process: int

    @classmethod
    def find(cls) -> Seat:
        """This process's."""
        info = get_worker_info()
        if info is None:
            return cls(0, 1, 0, 0)
        identity = getattr(multiprocessing.current_process(), "_identity", ()) or (0,)
        return cls(info.id, info.num_workers, info.seed - info.id, identity[-1] - info.id)

    def is_of(self, team: Seat) -> bool:
        """Whether two workers have one iterator. Iterators of a trainer that seeds torch again have the same seed, and
        another thread may start processes between those of one."""
        is_alike = (self.seed, self.num_workers) == (team.seed, team.num_workers)
        return is_alike and abs(self.process - team.process) < self.num_workers


class Settings(NamedTuple):
    """What a state says of the order beside the place in it; as in `StreamingDataset`."""

    num_canonical_nodes: int
    shuffle_seed: int
    initial_physical_nodes: int | None


class Place(NamedTuple):
    """Where an epoch begins.

    Attributes:
        epoch: Its number; -1: none has begun.
        sample_in_epoch: Samples of it that were delivered before, over all ranks.
        settings: Of the state that was loaded last, if any.
    """

    epoch: int
    sample_in_epoch: int
    settings: Settings | None


class _Note(msgspec.Struct):
    epoch: int = -1
    sample_in_epoch: int = 0
    settings: Settings | None = None
    loaded: Place | None = None  # where the next epoch begins
    team: Seat | None = None  # of the one at hand
    begun: list[int] = []  # workers of it


class Progress:
    """The note. Safe for all threads and processes that have it."""

    def __init__(self) -> None:
        self._file = SharedFile(msgspec.json.encode(_Note()))

    def begin(self, seat: Seat) -> Place:
        """The epoch that a worker is to begin: where the state that was loaded says, else the next one."""
        with self._changed() as note:
            if note.team is None or not seat.is_of(note.team) or seat.worker in note.begun:
                place = note.loaded or Place(note.epoch + 1, 0, note.settings)
                note.epoch, note.sample_in_epoch, note.settings = place
                note.loaded, note.team, note.begun = None, seat, []
            note.begun.append(seat.worker)
            return Place(note.epoch, note.sample_in_epoch, note.settings)

    def load(self, place: Place) -> None:
        """Says where the next epoch begins."""
        with self._changed() as note:
            note.loaded = place

    def next_epoch(self) -> int:
        """The epoch that `begin` will begin."""
        with self._changed() as note:
            return note.loaded.epoch if note.loaded else note.epoch + 1

    def set_next_epoch(self, epoch: int) -> None:
        """Says which that is, from its beginning."""
        with self._changed() as note:
            note.epoch, note.sample_in_epoch, note.loaded, note.team = epoch - 1, 0, None, None

    def place(self) -> Place:
        """Where the epoch at hand began; or the next one begins, by the state that was loaded."""
        with self._changed() as note:
            return note.loaded or Place(note.epoch, note.sample_in_epoch, note.settings)

    @contextlib.contextmanager
    def _changed(self) -> Iterator[_Note]:
        with self._file.locked(_NOTE_LOCK):
            note = msgspec.json.decode(self._file.read(), type=_Note)
            yield note
            self._file.write(msgspec.json.encode(note))


def parse_state(obj: Mapping[str, Any]) -> Place:
    """Where a state of `StreamingDataset` stands.

    Args:
        obj: With what `StreamingDataset.state_dict` returns, from here or from MosaicML Streaming. Old versions of that
            have no initial_physical_nodes.

    Raises:
        ValueError: It lacks something, or something in it is no number.
    """
    try:
        initial = obj.get("initial_physical_nodes")
        settings = Settings(
            int(obj["num_canonical_nodes"]), int(obj["shuffle_seed"]), None if initial is None else int(initial)
        )
        place = Place(int(obj["epoch"]), int(obj["sample_in_epoch"]), settings)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{json.dumps(obj, default=repr)} is no state of a StreamingDataset: {error!r}.") from None
    if place.sample_in_epoch < 0:
        raise ValueError(f"the state has sample_in_epoch={place.sample_in_epoch}: it is at least 0.")
    return place
