"""stoker's own order: a pure function of streams, weights and seed, worked out by the core row by row."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from math import gcd
from typing import Any

from stoker import _core
from stoker.dataset import TokenDataset
from stoker.epochs import Epochs, Place
from stoker.options import Options
from stoker.run_order import Start
from stoker.state import check_state, make_state, saved_lanes, specification

logger = logging.getLogger("stoker")


class OwnOrder:
    """See `RunOrder`."""

    def __init__(self, dataset: TokenDataset, options: Options, layout: _core.Layout, *, keeps_lanes: bool) -> None:
        """
        Args:
            dataset, options, layout: Of the loader.
            keeps_lanes: The lanes are those of the options, whatever a state says.

        Raises:
            ValueError: An epoch is shorter than a global batch.
        """
        self._dataset = dataset
        self._options = options
        self._layout = layout
        self._keeps_lanes = keeps_lanes
        self._epochs = Epochs(len(dataset), options.global_batch, options.drop_last)
        self.start = self._epochs.start
        self.end = self._epochs.end
        self.num_batches = self._epochs.num_batches
        self.next_epoch = self._epochs.next_epoch

    def first(self) -> Place:
        return Place(self._options.lanes)

    def behind(self, place: Place, info: _core.BatchInfo) -> Place:
        return place._replace(row=info.end_row, goes_on=False, hints=info.hints, hints_row=info.end_row)

    def at(self, place: Place, epoch: int) -> Place:
        row = self._epochs.begin(epoch)
        hints = (place.hints, place.hints_row) if place.hints_row <= row else (None, 0)
        return Place(place.lanes, epoch, row, row, True, *hints)

    def state(self, place: Place) -> dict[str, Any]:
        return make_state(self._specification, place)

    def load(self, state: Mapping[str, Any], place: Place, *, adapt: bool) -> Place:
        lanes = self._options.lanes if self._keeps_lanes else saved_lanes(state) or place.lanes
        ours = {**self._specification, "lanes": lanes}
        return check_state(state, ours, len(self._dataset), world_size=self._options.world_size, adapt=adapt)

    @functools.cached_property
    def _specification(self) -> dict[str, Any]:
        return specification(self._dataset, self._options)

    def open(self, place: Place) -> Start:
        self._warn_of_lanes_without_hints(place)
        return Start(self._dataset.opened(place.lanes), place.hints, place.hints_row)

    def _warn_of_lanes_without_hints(self, place: Place) -> None:
        """They are walked from their first sample, which takes a while on a large run."""
        options = self._options
        if options.finite:
            return
        lanes = place.lanes if options.shuffle else 1
        apart = gcd(lanes, options.world_size)
        walked = set(range(options.rank % apart, min(lanes, place.row), apart))  # that have delivered rows
        if place.hints is not None:
            walked -= {lane for lane, *_ in place.hints.list()}
        if walked:
            logger.warning(
                "there are no hints of %d of the %d lanes that rank %d plans (lane %d, for one): the lengths of all "
                "samples that they have delivered are read again. The `hints` of all ranks' states together have them.",
                *(len(walked), len(range(options.rank % apart, lanes, apart)), options.rank, min(walked)),
            )

    def rows(self, place: Place, batch: int) -> list[list[tuple[int, int, int, int, int]]]:
        opened = self._dataset.opened(place.lanes)
        self._dataset.start(opened)
        first_row = batch * self._options.global_batch
        segments, ends = _core.plan_rows(opened.store, opened.order, self._layout, first_row)
        flat = [tuple(segment) for segment in segments.tolist()]
        return [flat[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
