"""Counts the tokens of shards whose index does not tell."""

from __future__ import annotations

import os

import msgspec

from stoker import _core
from stoker.dataset import stream_files
from stoker.files import write_atomically
from stoker.index import TOTALS_FILE, Totals, index_path, read_index


def count_tokens(directory: str | os.PathLike[str], *, bytes_dtype: str = "int64") -> Totals:
    """Counts tokens from the heads of a directory's shards, and writes them to stoker.json beside index.json.

    Args:
        directory: Holds index.json and the shards it lists.
        bytes_dtype: Integer type of token columns whose encoding is `bytes`.

    Returns:
        The totals, one entry a shard. All tokens of text shards are loss tokens.

    Raises:
        FileNotFoundError: There is no index.json, or a shard is missing.
        ValueError: The index or a shard breaks its format, or the shards have labels.
        OSError: A shard can't be read, or stoker.json not be written.
    """
    directory = os.fspath(directory)
    index = read_index(directory, bytes_dtype, with_totals=False)
    if any(schema.kind != "text" for schema in index.schemas):
        raise ValueError(f"{index_path(directory)} has labels: only text streams can be counted.")
    store = _core.ShardStore([stream_files(directory, index, follow_links=True)], 0)
    tokens, longest = [], []
    for shard, samples in enumerate(index.samples):
        total, longest_sample = store.totals(0, shard) if samples else (0, 0)
        tokens.append(total)
        longest.append(longest_sample)
    totals = Totals(
        tokens=tokens,
        loss_tokens=tokens,
        longest_sample=longest,
        index_sha256=index.sha256,
        bytes_dtype=bytes_dtype,
    )
    write_atomically(os.path.join(directory, TOTALS_FILE), msgspec.json.encode(totals))
    return totals
