"""A DataLoader of torch that knows how much of the epoch has been delivered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader

from stoker.streaming.dataset import StreamingDataset


class StreamingDataLoader(DataLoader):  # type: ignore[misc]
    """Counts the samples that it yields, so that its state is that of the batch received last: what workers have read
    ahead comes again after `load_state_dict`. Takes the arguments of torch's DataLoader.

    A batch is counted by its first dimension: of its first value where it is a dict, of itself where it is a tensor,
    else of its first part.

    Attributes:
        num_samples_yielded: Of this rank, since the last `iter`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """
        Args:
            *args, **kwargs: Of torch's DataLoader. `batch_size` is to be the data set's.
        """
        super().__init__(*args, **kwargs)
        self.num_samples_yielded = 0

    def __iter__(self) -> Iterator[Any]:
        """The batches of the next epoch, or from where a loaded state stands."""
        self.num_samples_yielded = 0
        for batch in super().__iter__():
            self.num_samples_yielded += self._get_batch_size(batch)
            yield batch

    def _get_batch_size(self, batch: Any) -> int:
        """Samples of a batch.

        Raises:
            ValueError: It is an empty dict.
        """
        if isinstance(batch, Mapping):
            for value in batch.values():
                return len(value)
            raise ValueError("Batch is empty")
        return len(batch) if hasattr(batch, "shape") else len(batch[0])

    def state_dict(self) -> dict[str, Any] | None:
        """The state of the data set at the batch received last, taken on any rank; all ranks must stand at the same
        batch. None where the data set is no StreamingDataset."""
        if not isinstance(self.dataset, StreamingDataset):
            return None
        return self.dataset.state_dict(self.num_samples_yielded * self.dataset.num_ranks, from_beginning=False)

    def load_state_dict(self, obj: Mapping[str, Any]) -> None:
        """Lets the next `iter` go on where a state stands; see `StreamingDataset.load_state_dict`.

        Raises:
            ValueError: It is no such state.
        """
        if isinstance(self.dataset, StreamingDataset):
            self.dataset.load_state_dict(obj)
