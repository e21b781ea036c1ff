"""What a loader asks of the order of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from stoker import _core
from stoker.dataset import Opened
from stoker.epochs import Place
from stoker.listing import Listing


class Start(NamedTuple):
    """What an engine begins from, besides its first row.

    Attributes:
        opened: The order and the shards.
        hints: Where lanes of `pack` stand before `hints_row`; None: they are walked from their beginning.
        hints_row: A global row.
        listing: Lists the samples, where they are not the order's own.
    """

    opened: Opened
    hints: _core.LaneHints | None
    hints_row: int
    listing: Listing | None = None

    def close(self) -> None:
        """Ends the listing."""
        if self.listing is not None:
            self.listing.close()


class RunOrder(Protocol):
    """The order of a loader's rows: where its epochs begin and end, what its state is, what its engine starts from.
    Places are never changed, so that a loader moves from one to the next at once."""

    def first(self) -> Place:
        """The beginning of epoch 0."""

    def start(self, place: Place) -> Place:
        """Where `iter` begins: there, or with the next epoch."""

    def end(self, place: Place) -> int:
        """The row behind the epoch that a loader stands in."""

    def num_batches(self, place: Place) -> int:
        """Batches of that epoch, since it began in this run."""

    def behind(self, place: Place, info: _core.BatchInfo) -> Place:
        """The place behind a batch that was received there."""

    def next_epoch(self, place: Place) -> Place:
        """The beginning of the epoch after."""

    def at(self, place: Place, epoch: int) -> Place:
        """The beginning of an epoch, for a loader that stands at `place`."""

    def state(self, place: Place) -> dict[str, Any]:
        """JSON-able."""

    def load(self, state: Mapping[str, Any], place: Place, *, adapt: bool) -> Place:
        """The place that a state is of, for a loader that stands at `place`; see `DataLoader.load_state_dict`.

        Raises:
            StateMismatchError: It does not fit.
        """

    def open(self, place: Place) -> Start:
        """What an engine begins from whose first batch is the one at `place`."""

    def rows(self, place: Place, batch: int) -> list[list[tuple[int, int, int, int, int]]]:
        """The rows of a global batch as segments: stream, shard, sample, token_begin, token_end. See
        `DataLoader.order`."""
