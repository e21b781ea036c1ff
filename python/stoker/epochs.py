"""Where a loader stands among epochs and global rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from stoker import _core


class EpochBegin(NamedTuple):
    """Where a run in MosaicML Streaming's order has begun with an epoch.

    Attributes:
        sample_in_epoch: Samples of the epoch that were delivered before, over all ranks.
        num_canonical_nodes: Parts that the order is made of.
        shuffle_seed: Of all that is drawn.
        initial_physical_nodes: Nodes that the run began with at first; None: those at hand.
        first_packer: Packs the first batch; the next one packs the next.
    """

    sample_in_epoch: int
    num_canonical_nodes: int
    shuffle_seed: int
    initial_physical_nodes: int | None
    first_packer: int


class Place(NamedTuple):
    """Where a loader stands: behind the last batch received.

    Attributes:
        lanes: Parts that the order is made of.
        epoch: The epoch at hand.
        first_row: The global row at which it began, in this run: a run whose global batch has changed begins at other
            rows than one that has not.
        row: The global row that comes next.
        goes_on: Whether `iter` goes on from here. It does where nothing of the epoch has been received yet and where a
            state was loaded; an epoch that was left in the middle is over.
        hints: Where the lanes of `pack` stand before `hints_row`; None: they are walked from their beginning.
        hints_row: A global row, `row` or before it.
        begin: What MosaicML Streaming's order needs to know besides.
    """

    lanes: int
    epoch: int = 0
    first_row: int = 0
    row: int = 0
    goes_on: bool = True
    hints: _core.LaneHints | None = None
    hints_row: int = 0
    begin: EpochBegin | None = None


@dataclass(frozen=True)
class Epochs:
    """Global row numbers of epochs of `units` rows, delivered in global batches.

    Attributes:
        units: Rows an epoch, N.
        global_batch: Rows a step over all ranks, G.
        drop_last: Epochs follow each other without a gap, and what does not fill a global batch comes first in the next
            epoch; False: each epoch takes whole global batches of its own.
    """

    units: int
    global_batch: int
    drop_last: bool

    def __post_init__(self) -> None:
        if self.drop_last and self.units < self.global_batch:
            raise ValueError(
                f"an epoch has {self.units} rows, fewer than the {self.global_batch} of one global batch: raise "
                "epoch_size or the weights, lower batch_size, or set drop_last=False."
            )

    def begin(self, epoch: int, phase: int = 0) -> int:
        """The first row of the first batch of an epoch; it may be of the epoch before.

        Args:
            epoch: From 0 on.
            phase: Batches begin at rows = phase (mod G).
        """
        if not self.drop_last:
            return epoch * -(-self.units // self.global_batch) * self.global_batch
        return max(0, epoch * self.units - phase) // self.global_batch * self.global_batch + phase

    def end(self, place: Place) -> int:
        """The row behind the epoch that a loader stands in."""
        return self.begin(place.epoch + 1, place.row % self.global_batch)

    def num_batches(self, place: Place) -> int:
        """Batches of the epoch that a loader stands in."""
        return (self.end(place) - place.first_row) // self.global_batch

    def contains(self, place: Place) -> bool:
        """Whether a loader can stand there."""
        if self.drop_last:
            begins_right = (place.epoch - 1) * self.units < place.first_row < (place.epoch + 1) * self.units
        else:
            begins_right = place.first_row == self.begin(place.epoch)
        in_batches = (place.row - place.first_row) % self.global_batch == 0
        return begins_right and in_batches and 0 <= place.first_row <= place.row <= self.end(place)

    def start(self, place: Place) -> Place:
        """Where `iter` begins: there, or with the next epoch."""
        return place if place.goes_on and place.row < self.end(place) else self.next_epoch(place)

    def next_epoch(self, place: Place) -> Place:
        """The beginning of the epoch after."""
        row = self.end(place)
        return Place(place.lanes, place.epoch + 1, row, row, hints=place.hints, hints_row=place.hints_row)
