"""MosaicML Streaming's order of samples, worked out here epoch by epoch, ahead of need, and listed to the core."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from stoker import _core
from stoker.dataset import TokenDataset
from stoker.epochs import EpochBegin, Place
from stoker.errors import StateMismatchError
from stoker.listing import Listing, Work
from stoker.mixture import proportions_per_epoch
from stoker.options import Options, check_index
from stoker.remote import ranks_of_a_node
from stoker.run_order import Start
from stoker.state import (
    MAX_POSITION,
    bins_from_json,
    check_specification,
    make_listed_state,
    pack_specification,
    stream_totals,
)
from stoker.streaming_order import EpochOrder, StreamingOrder, StreamingSettings, World

logger = logging.getLogger("stoker")

_LEAST_AHEAD = 2  # chunks whose shards the core holds


class ListedOrder:
    """See `RunOrder`. Rows are numbered from where the run at hand began, batches of all ranks one after the other."""

    def __init__(
        self, dataset: TokenDataset, options: Options, settings: StreamingSettings, *, replication: int
    ) -> None:
        """
        Args:
            dataset, options: Of the loader.
            settings: What the order depends on besides.
            replication: Ranks of the trainer that are one rank here.

        Raises:
            ValueError: A setting breaks its rule, or does not go with the ranks.
        """
        self._dataset = dataset
        self._options = options
        self._settings = settings
        self._world = _world(settings, options.world_size, replication)
        self._batch = options.window[0] if options.layout == "pack" else options.batch_size  # samples of a rank
        sizes = [int(of_stream.sum()) for of_stream in dataset.sizes]
        self._order = StreamingOrder(
            shard_sizes=[of_stream.tolist() for of_stream in dataset.sizes],
            choose=dataset.counts,
            proportion=None
            if options.weights_in == "tokens"
            else proportions_per_epoch(dataset.streams, sizes, dataset.counts, epoch_size=options.epoch_size),
            shuffle=options.shuffle,
            shuffle_seed=options.seed,
            batch_size=self._batch,
            **settings.of_order,
        )
        self._made: dict[_Epoch, Work[EpochOrder]] = {}  # guarded by _mutex
        self._mutex = threading.Lock()
        self._process = os.getpid()
        self._lengths: dict[_Epoch, int] = {}  # samples of this rank, the same whoever finds it

    # ------------------------------------------------------------ places
    def first(self) -> Place:
        return Place(1, begin=EpochBegin(0, self._order.canonical_nodes(self._world), self._options.seed, None, 0))

    def start(self, place: Place) -> Place:
        return place if place.goes_on and not self._is_over(place) else self.next_epoch(place)

    def end(self, place: Place) -> int:
        return place.first_row + self.num_batches(place) * self._options.global_batch

    def num_batches(self, place: Place) -> int:
        return 0 if self._is_over(place) else self._num_batches(_Epoch.of(place))

    def behind(self, place: Place, info: _core.BatchInfo) -> Place:
        return place._replace(row=info.end_row, goes_on=False, hints=info.hints, hints_row=info.end_row)

    def next_epoch(self, place: Place) -> Place:
        row = self.end(place)
        begin = _begin_of(place)._replace(sample_in_epoch=0, first_packer=0)
        return place._replace(epoch=place.epoch + 1, first_row=row, row=row, goes_on=True, begin=begin)

    def at(self, place: Place, epoch: int) -> Place:
        begin = _begin_of(place)._replace(sample_in_epoch=0, first_packer=0)
        return Place(1, epoch, place.row, place.row, begin=begin)

    def _is_over(self, place: Place) -> bool:
        """Whether nothing of the epoch was left when this run began with it."""
        delivered, order = _begin_of(place).sample_in_epoch, self._order
        if delivered == 0 or delivered >= order.epoch_size:
            return delivered > 0
        # What fills no batch may be left, of each stream where batches are of one.
        least = self._batch * self._options.world_size * len(order.choose)
        return order.epoch_size - delivered < least and self._num_batches(_Epoch.of(place)) == 0

    # ------------------------------------------------------------ epochs
    def _locked(self) -> threading.Lock:
        """The mutex; in a fork a new one, since a thread that is not here may have held it then."""
        if os.getpid() != self._process:
            self._process, self._mutex = os.getpid(), threading.Lock()
        return self._mutex

    def _num_batches(self, epoch: _Epoch) -> int:
        """
        Raises:
            ValueError: There is no batch in a whole epoch.
        """
        length = self._length(epoch)
        count = length // self._batch if self._options.drop_last else -(-length // self._batch)
        if count == 0 and epoch.sample_in_epoch == 0:
            raise ValueError(
                f"an epoch has {length} samples of rank {self._options.rank}, fewer than its batch of {self._batch}: "
                "raise epoch_size or the weights, lower batch_size, or set drop_last=False."
            )
        return count

    def _length(self, epoch: _Epoch) -> int:
        """Samples of this rank."""
        known = self._lengths.get(epoch)
        if known is None:
            known = self._lengths[epoch] = len(self._begin(epoch).result().rank(self._options.rank))
        return known

    def _begin(self, epoch: _Epoch) -> Work[EpochOrder]:
        """Lets the order of an epoch be worked out, unless it is already."""
        with self._locked():
            work = self._made.get(epoch)
            if work is None or work.is_lost():
                work = self._made[epoch] = Work(lambda: self._work_out(epoch))
            return work

    def _work_out(self, epoch: _Epoch) -> EpochOrder:
        order = replace(self._order, num_canonical_nodes=epoch.num_canonical_nodes, shuffle_seed=epoch.shuffle_seed)
        return order.epoch(epoch.epoch, epoch.sample_in_epoch, self._world, epoch.initial_physical_nodes)

    def _forget(self, epoch: _Epoch) -> None:
        with self._locked():
            self._made.pop(epoch, None)

    # ------------------------------------------------------------ listing
    def open(self, place: Place) -> Start:
        opened = self._dataset.opened(place.lanes)
        most_ahead = _LEAST_AHEAD + self._dataset.chunks_ahead
        samples = _core.SampleList(list(enumerate(self._dataset.sizes)), most_ahead)
        return Start(opened, place.hints, place.hints_row, Listing(samples, functools.partial(self._list, place)))

    def _list(self, place: Place, listing: Listing) -> None:
        """Lists all samples of this rank from a place on, until the listing is closed."""
        epoch, first_packer = _Epoch.of(place), _begin_of(place).first_packer
        first = (place.row - place.first_row) // self._options.global_batch
        while listing.is_open():
            if epoch.sample_in_epoch < self._order.epoch_size:
                self._list_epoch(listing, epoch, first, first_packer)
            self._forget(epoch)
            epoch, first, first_packer = epoch.next(), 0, 0

    def _list_epoch(self, listing: Listing, epoch: _Epoch, first: int, first_packer: int) -> None:
        """Lists an epoch's batches from `first` on."""
        of_rank = self._begin(epoch).result(listing.is_open).rank(self._options.rank)
        batch, length, end = self._batch, self._length(epoch), self._num_batches(epoch)
        a_chunk = max(1, self._dataset.chunk_samples // batch)
        forgets = not self._settings.packers_persist and epoch.sample_in_epoch == 0 and first == 0
        for begin in range(first, end, a_chunk):
            stop = min(begin + a_chunk, end)
            if 2 * stop >= end:  # so that the next epoch does not have to be waited for
                self._begin(epoch.next())
            samples = of_rank.samples(begin * batch, min(stop * batch, length))
            ends = np.minimum(np.arange(begin + 1, stop + 1) * batch, length) - begin * batch
            packer = (first_packer + begin) % self._settings.num_packers
            begins_anew = forgets and begin == first
            if not listing.samples.push(samples.astype(np.uint64), ends.astype(np.uint32), packer, begins_anew):
                return

    # ------------------------------------------------------------ state
    def state(self, place: Place) -> dict[str, Any]:
        begin = _begin_of(place)
        batches = (place.row - place.first_row) // self._options.global_batch
        samples = min(batches * self._batch, self._length(_Epoch.of(place))) if batches else 0  # of a rank
        state: dict[str, Any] = {
            "epoch": place.epoch,
            "sample_in_epoch": begin.sample_in_epoch + samples * self._options.world_size,
            "num_canonical_nodes": begin.num_canonical_nodes,
            "shuffle_seed": begin.shuffle_seed,
            "initial_physical_nodes": begin.initial_physical_nodes or self._world.nodes,
        }
        if self._options.layout == "pack":
            packers = self._settings.num_packers
            hints = [] if place.hints is None else place.hints.list()
            state["leftovers"] = [[self._options.rank * packers + packer, *bins] for packer, _, _, bins in hints]
            state["next_packer"] = (begin.first_packer + batches) % packers
        return make_listed_state(self._specification, state)

    @functools.cached_property
    def _specification(self) -> dict[str, Any]:
        """All that the order depends on but what is in the state itself, and who packs."""
        options = self._options
        settings = {name: value for name, value in self._settings.of_order.items() if name != "num_canonical_nodes"}
        pack = {}
        if options.layout == "pack":
            of_pack = pack_specification(self._dataset, options)
            samples, rows = of_pack.pop("window")
            ranks, of_a_rank = options.world_size, self._settings.num_packers
            packers = {"ranks": ranks, "packers of a rank": of_a_rank, "samples a batch": samples, "rows a batch": rows}
            pack = {"pack": of_pack, "packers": packers}
        return {
            "order": "streaming",
            "layout": options.layout,
            "seq_len": options.seq_len,
            "shuffle": options.shuffle,
            "drop_last": options.drop_last,
            "global_batch": options.global_batch,
            "settings": settings,
            "streams": stream_totals(self._dataset),
            "weights": [[0, dict(zip(self._dataset.names, self._dataset.counts, strict=True))]],
            **pack,
        }

    def load(self, state: Mapping[str, Any], place: Place, *, adapt: bool) -> Place:
        theirs = None
        if not isinstance(state, Mapping) or "specification" in state:  # else it is MosaicML Streaming's own
            theirs = check_specification(state, self._specification, world_size=self._options.world_size, adapt=adapt)
        try:
            epoch, sample_in_epoch = (
                check_index(n, state.get(n), 0, MAX_POSITION) for n in ("epoch", "sample_in_epoch")
            )
            seed = check_index("shuffle_seed", state.get("shuffle_seed"), 0, (1 << 64) - 1)
            nodes = check_index("num_canonical_nodes", state.get("num_canonical_nodes"), 1, MAX_POSITION)
            initial = state.get("initial_physical_nodes")  # which older ones lack
            initial = None if initial is None else check_index("initial_physical_nodes", initial, 1, MAX_POSITION)
            next_packer = check_index("next_packer", state.get("next_packer", 0), 0, MAX_POSITION)
            leftovers = [
                (check_index("lane", lane, 0, MAX_POSITION), bins_from_json(bins))
                for lane, *bins in state.get("leftovers", [])
            ]
        except (AttributeError, TypeError, ValueError) as error:
            raise StateMismatchError(f"the state is damaged: {error} Load another checkpoint.") from None
        self._check_is_within(sample_in_epoch, nodes)
        hints = None
        if self._options.layout == "pack":
            is_begun = (epoch, sample_in_epoch) != (0, 0)
            if theirs is None:
                self._check_has_no_leftovers(sample_in_epoch)
            elif theirs["packers"] != self._specification["packers"]:
                logger.warning("the packers are others than those of the state: what they had left over is left out.")
            elif is_begun:
                hints = self._hints(leftovers, adapt=adapt)
        begin = EpochBegin(sample_in_epoch, nodes, seed, initial, next_packer if hints else 0)
        return Place(1, epoch, hints=hints, begin=begin)

    def _check_is_within(self, sample_in_epoch: int, canonical_nodes: int) -> None:
        """An epoch may have a few samples more than are chosen, so that all ranks get as many."""
        size, of_all = self._order.epoch_size, self._batch * self._options.world_size
        if sample_in_epoch > size + canonical_nodes + of_all:
            raise StateMismatchError(
                f"the state has {sample_in_epoch:,} samples of its epoch delivered, and an epoch of this loader has "
                f"{size:,}: it is a state of other streams or weights. Give this loader what that one had."
            )

    def _check_has_no_leftovers(self, sample_in_epoch: int) -> None:
        if sample_in_epoch:
            raise StateMismatchError(
                "the state is one of MosaicML Streaming, in the middle of an epoch, and rows are packed: what its "
                "packers had left over then is in no state, and those samples would be lost. Go on from a state at the "
                "start of an epoch."
            )

    def _hints(self, leftovers: list[tuple[int, list[list[int]]]], *, adapt: bool) -> _core.LaneHints | None:
        """What this rank's packers had left over."""
        packers, rank = self._settings.num_packers, self._options.rank
        mine = [(lane % packers, 0, 0, bins) for lane, bins in leftovers if lane // packers == rank]
        if len(mine) == packers:
            return _core.LaneHints(mine)
        told = f"the state does not tell what the {packers} packers of rank {rank} had left over"
        if not adapt:
            raise StateMismatchError(
                f"{told}: save what stoker.distributed.full_state(loader) gives, which has it of all ranks, or each "
                "rank's own state."
            )
        logger.warning("%s: it is left out.", told)
        return None

    def rows(self, place: Place, batch: int) -> list[list[tuple[int, int, int, int, int]]]:
        if self._options.layout == "pack":
            raise ValueError(
                "rows that are packed in MosaicML Streaming's order depend on all batches before, and can't be looked "
                "at alone: iterate over the loader."
            )
        epoch = _Epoch.of(place)
        if batch >= (count := self.num_batches(place)):
            raise ValueError(f"batch is {batch}: epoch {place.epoch} has {count} batches from here on.")
        store = self._dataset.opened(place.lanes).store
        self._dataset.start(self._dataset.opened(place.lanes))
        rows: list[list[tuple[int, int, int, int, int]]] = [[] for _ in range(self._options.global_batch)]
        order, world_size = self._begin(epoch).result(), self._options.world_size
        for rank in range(world_size):
            places = self._order.locate(order.rank(rank).batch(batch))
            for i, (stream, shard, sample) in enumerate(zip(*(p.tolist() for p in places), strict=True)):
                length = int(store.lengths(stream, shard)[sample])
                rows[i * world_size + rank].append((stream, shard, sample, 0, min(length, self._options.seq_len)))
        return rows


class _Epoch(NamedTuple):
    """All that the samples of an epoch depend on, of one loader."""

    epoch: int
    sample_in_epoch: int
    num_canonical_nodes: int
    shuffle_seed: int
    initial_physical_nodes: int | None

    @classmethod
    def of(cls, place: Place) -> _Epoch:
        return cls(place.epoch, *_begin_of(place)[:4])

    def next(self) -> _Epoch:
        return self._replace(epoch=self.epoch + 1, sample_in_epoch=0)


def _begin_of(place: Place) -> EpochBegin:
    assert place.begin is not None
    return place.begin


def _world(settings: StreamingSettings, world_size: int, replication: int) -> World:
    """Ranks that get different samples, and their nodes."""
    of_node = settings.ranks_per_node or ranks_of_a_node()
    world = World.replicated(replication, world_size * replication, ranks_per_node=of_node)
    return replace(world, replication=1)
