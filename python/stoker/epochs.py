"""Where epochs begin and end among the global rows."""

from __future__ import annotations

from dataclasses import dataclass


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

    def begin(self, epoch: int) -> int:
        """The first row of the first batch of an epoch, batches counted from row 0."""
        if self.drop_last:
            return epoch * self.units // self.global_batch * self.global_batch
        return epoch * -(-self.units // self.global_batch) * self.global_batch

    def end(self, epoch: int, row: int) -> int:
        """The row behind the last batch of an epoch, batches counted from `row`, which lies in it."""
        if self.drop_last:
            return row + ((epoch + 1) * self.units - row) // self.global_batch * self.global_batch
        return self.begin(epoch + 1)

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        return (self.begin(epoch + 1) - self.begin(epoch)) // self.global_batch
