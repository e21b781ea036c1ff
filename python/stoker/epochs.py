"""Where a loader stands among epochs and global rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Epochs:
    """Global row numbers of epochs of `units` rows, delivered in global batches.

    Attributes:
        units: Rows an epoch, N.
        global_batch: Rows a step over all ranks, G.
        drop_last: Epochs follow each other without a gap, and what does not fill a global batch comes first in the next
            epoch; False: each epoch takes whole global batches of its own.
        phase: Batches begin at rows = phase (mod G): 0, unless G has changed in the middle of the run.
    """

    units: int
    global_batch: int
    drop_last: bool
    phase: int = 0

    def __post_init__(self) -> None:
        if self.drop_last and self.units < self.global_batch:
            raise ValueError(
                f"an epoch has {self.units} rows, fewer than the {self.global_batch} of one global batch: raise "
                "epoch_size or the weights, lower batch_size, or set drop_last=False."
            )

    def begin(self, epoch: int) -> int:
        """The first row of the first batch of an epoch; it may be of the epoch before. `end` of the epoch before."""
        if not self.drop_last:
            return epoch * -(-self.units // self.global_batch) * self.global_batch
        return max(0, epoch * self.units - self.phase) // self.global_batch * self.global_batch + self.phase

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        return (self.begin(epoch + 1) - self.begin(epoch)) // self.global_batch

    def contains(self, epoch: int, row: int) -> bool:
        """Whether a loader can stand before `row`, or at its end, in an epoch."""
        begin, end = self.begin(epoch), self.begin(epoch + 1)
        return begin <= row <= end and (row - begin) % self.global_batch == 0

    def place(self, epoch: int, row: int) -> Place:
        """Before a row of an epoch; at the end of one: at the beginning of the next."""
        return Place(epoch + 1 if row == self.begin(epoch + 1) else epoch, row)

    def next_start(self, place: Place) -> Place:
        """Where `iter` begins."""
        return place if place.goes_on else self.place(place.epoch + 1, self.begin(place.epoch + 1))


class Place(NamedTuple):
    """Where a loader stands: behind the last batch received.

    Attributes:
        epoch, row: The epoch, and the global row that comes next.
        goes_on: Whether `iter` goes on from here. It does where nothing of the epoch has been received yet and where a
            state was loaded; an epoch that was left in the middle is over.
    """

    epoch: int = 0
    row: int = 0
    goes_on: bool = True
