"""A directory of shards as a data set with random access alone."""

from __future__ import annotations

import os
from typing import Any

from torch.utils.data import Dataset

import stoker
from stoker.streaming.array import Array
from stoker.streaming.shards import Shards, read_indexes


class LocalDataset(Array, Dataset):  # type: ignore[misc]
    """The samples of a local directory of MDS shards by number, in the order of its index; for torch's DataLoader with
    a sampler of one's own. Columns of pickles are read, so use it for data that you trust."""

    def __init__(self, local: str | os.PathLike[str], split: str | None = None) -> None:
        """Reads the index; opens no shard.

        Args:
            local: The directory.
            split: A sub-directory to read instead, such as "train".

        Raises:
            FileNotFoundError: There is no index.
            ValueError: It breaks the format.
        """
        self.local = local
        self.split = split or ""
        self._shards = Shards(read_indexes([stoker.Stream(local=local, split=split, validate_hash=None)]))
        self.num_samples = self._shards.num_samples

    @property
    def size(self) -> int:
        """The number of samples."""
        return self.num_samples

    def __len__(self) -> int:
        """The number of samples."""
        return self.num_samples

    def get_item(self, sample_id: int) -> dict[str, Any]:
        """Reads a sample: its columns by name.

        Raises:
            IndexError: There is no such sample.
            CorruptShardError: The shard or the sample is not what the index says.
            FileNotFoundError: The shard is not there.
        """
        return self._shards.sample(sample_id)
