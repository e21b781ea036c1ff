"""Documents one behind the other, cut into rows of one length, as LLM Foundry's ConcatTokensDataset cuts them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from stoker import _core
from stoker.dataset import stream_files
from stoker.index import read_index


def concatenate(documents: Iterable[np.ndarray], length: int, *, wrap: bool) -> Iterator[np.ndarray]:
    """Rows of `length` tokens. What is left at the end is dropped.

    Args:
        documents: 1-D arrays of tokens.
        length: Tokens a row.
        wrap: Whether a document goes on in the next row; else what does not fit into a row is dropped.
    """
    rest = np.empty(0, np.int64)
    for document in documents:
        line = np.concatenate([rest.astype(document.dtype), document])
        num_rows = len(line) // length
        if wrap:
            yield from line[: num_rows * length].reshape(-1, length)
            rest = line[num_rows * length :]
        else:
            if num_rows > 0:
                yield line[:length]
            rest = line[:0] if num_rows > 0 else line


def documents_of(directories: Iterable[Path]) -> Iterator[np.ndarray]:
    """The tokens of all samples of some data sets, in order."""
    for directory in directories:
        index = read_index(str(directory), "int64")
        store = _core.ShardStore([stream_files(directory.name, index)], 0)
        for shard, num_samples in enumerate(index.samples.tolist()):
            for sample in range(num_samples):
                yield store.read_sample(0, shard, sample)["tokens"]
