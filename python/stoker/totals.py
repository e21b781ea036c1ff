"""Counts the tokens of shards whose index does not tell."""

from __future__ import annotations

import os

import msgspec

from stoker import _core
from stoker.dataset import stream_files
from stoker.files import write_atomically
from stoker.index import TOTALS_FILE, Totals, read_index


def count_tokens(
    directory: str | os.PathLike[str], *, bytes_dtype: str = "int64", labels_dtype: str | None = None
) -> Totals:
    """Counts the tokens of a directory's shards, and writes them to stoker.json beside index.json. Reads the heads of
    shards, and all of them where there are labels.

    Args:
        directory: Holds index.json and the shards it lists.
        bytes_dtype: Integer type of token columns whose encoding is `bytes`.
        labels_dtype: The same of labels. Default: as bytes_dtype.

    Returns:
        The totals, one entry a shard. All tokens of text shards are loss tokens; of the others those whose label is not
        -100.

    Raises:
        FileNotFoundError: There is no index.json, or a shard is missing.
        ValueError: The index or a shard breaks its format.
        OSError: A shard can't be read, or stoker.json not be written.
    """
    directory = os.fspath(directory)
    index = read_index(directory, bytes_dtype, labels_dtype, with_totals=False)
    store = _core.ShardStore([stream_files(directory, index, follow_links=True)], 0)
    counted = [store.totals(0, shard) if samples else (0, 0, 0) for shard, samples in enumerate(index.samples)]
    totals = Totals(
        tokens=[tokens for tokens, _, _ in counted],
        loss_tokens=[loss for _, loss, _ in counted],
        longest_sample=[longest for _, _, longest in counted],
        index_sha256=index.sha256,
        bytes_dtype=bytes_dtype,
    )
    write_atomically(os.path.join(directory, TOTALS_FILE), msgspec.json.encode(totals))
    return totals
