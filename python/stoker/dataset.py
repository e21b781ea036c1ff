"""The streams of a loader, opened: their indexes, sizes, counts and shards."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from math import gcd
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stoker import _core
from stoker.index import StreamIndex, index_path, read_index
from stoker.mixture import counts_per_epoch
from stoker.options import Options, check_index
from stoker.stream import Stream

logger = logging.getLogger("stoker")

_MAX_EPOCH_UNITS = 1 << 40  # positions of the order


class Opened(NamedTuple):
    """What depends on the number of lanes: the order, and the shards as they are kept for it."""

    lanes: int
    order: _core.Order
    store: _core.ShardStore


class TokenDataset:
    """What a loader reads from: `loader.dataset`.

    Streams are in the order of their names; that is the order of `stream_ids`, whatever the order of the list given.

    Attributes:
        streams: The streams.
        names: Their names.
        indexes: Their indexes.
        sizes: Things of each shard of each stream, uint64: samples (`pad`) or tokens (`concat`).
        counts: Units an epoch of each stream: samples (`pad`) or rows (`concat`).
    """

    def __init__(self, streams: Sequence[Stream], options: Options) -> None:
        """Reads the index files; opens no shard.

        Raises:
            FileNotFoundError: A stream has no index.json.
            ValueError: There is no stream, two have one name, an index breaks its format, a stream is empty or of
                another kind than `text`, its token totals are not known and the layout needs them, or the weights break
                their rules or leave nothing to deliver.
            TypeError: `streams` holds something else than Stream.
        """
        if not streams:
            raise ValueError("there is no stream: give at least one Stream.")
        for stream in streams:
            if not isinstance(stream, Stream):
                raise TypeError(f"{stream!r} is not a stream: give stoker.Stream(local=...) for each directory.")
        self._options = options
        self.streams = tuple(sorted(streams, key=lambda s: str(s.name)))
        self.names = [str(s.name) for s in self.streams]
        for one, other in zip(self.streams, self.streams[1:], strict=False):
            if one.name == other.name:
                raise ValueError(
                    f"two streams are named {one.name!r} ({one.directory} and {other.directory}): give one of them "
                    "another `name`; it keys the stream's shuffle."
                )
        self.indexes = [read_index(s.directory, s.bytes_dtype) for s in self.streams]
        self.sizes = [_sizes(name, index, options.layout) for name, index in zip(self.names, self.indexes, strict=True)]
        self.counts = self._count_units()
        self._opened = self._open(options.lanes)

    def __len__(self) -> int:
        """Units an epoch: samples (`pad`) or rows (`concat`)."""
        return sum(self.counts)

    def opened(self, lanes: int) -> Opened:
        """What the core needs for a run over a number of lanes. The same as before as long as that is the same."""
        if self._opened.lanes != lanes:
            self._opened = self._open(lanes)
        return self._opened

    def _open(self, lanes: int) -> Opened:
        options = self._options
        order = _core.Order(
            names=self.names,
            sizes=self.sizes,
            counts=self.counts,
            seed=options.seed,
            lanes=lanes,
            global_batch=options.global_batch,
            unit=options.unit,
            drop_last=options.drop_last,
            shuffle=options.shuffle,
            shuffle_block=options.shuffle_block,
        )
        files = [
            stream_files(
                str(stream.name),
                index,
                follow_links=stream.follow_links,
                expand_directory=_expand_directory(options.cache_dir, str(stream.name), index) if big else "",
            )
            for stream, index, big in zip(self.streams, self.indexes, self._choose_expanded(lanes), strict=True)
        ]
        return Opened(lanes, order, _core.ShardStore(files, options.cache_memory))

    def read(self, stream: str, shard: int, sample: int) -> dict[str, npt.NDArray[np.integer]]:
        """Reads one sample, for looking at it.

        Args:
            stream: Its stream's name.
            shard: Zero-based, in the order of index.json.
            sample: Zero-based, in the shard.

        Returns:
            "tokens", and "labels" where the shard has them: 1-D arrays of the type on disk.

        Raises:
            ValueError: There is no such stream, shard or sample.
            CorruptShardError: The shard breaks its format.
            OSError: The shard is missing or can't be read.
        """
        if stream not in self.names:
            raise ValueError(f"there is no stream {stream!r}; the streams are {', '.join(self.names)}.")
        s = self.names.index(stream)
        shard = check_index(f"shard of stream {stream!r}", shard, 0, len(self.sizes[s]) - 1)
        sample = check_index(f"sample of shard {shard}", sample, 0, int(self.indexes[s].samples[shard]) - 1)
        return self._opened.store.read_sample(s, shard, sample)

    def _count_units(self) -> list[int]:
        """Units an epoch of each stream."""
        options = self._options
        streams = list(self.streams)
        totals = [int(sizes.sum()) for sizes in self.sizes]
        if options.layout == "concat":
            # Weights are about tokens, counts are whole rows.
            natural = all(w is None for s in streams for w in (s.proportion, s.repeat, s.choose))
            for s, (stream, total) in enumerate(zip(self.streams, totals, strict=True)):
                if stream.repeat is not None:
                    streams[s] = replace(stream, repeat=None, choose=int(stream.repeat * total) // options.seq_len)
                elif natural and options.epoch_size is not None:
                    streams[s] = replace(stream, proportion=total)
        units = [total // options.unit for total in totals]
        counts = counts_per_epoch(streams, units, epoch_size=options.epoch_size, seed=options.seed)
        held = [
            f"stream {name!r} holds {total:,} {'tokens' if options.layout == 'concat' else 'samples'} and its weight "
            f"makes that {count:,} rows" + (f" of seq_len {options.seq_len:,}" if options.layout == "concat" else "")
            for name, total, count in zip(self.names, totals, counts, strict=True)
        ]
        if sum(counts) == 0:
            raise ValueError(
                f"an epoch has no rows: {'; '.join(held)}. Lower seq_len, raise the weights or give epoch_size."
            )
        if sum(counts) >= _MAX_EPOCH_UNITS:
            raise ValueError(f"an epoch has {sum(counts):,} rows, 2^40 or more: lower epoch_size or the weights.")
        for count, what in zip(counts, held, strict=True):
            if count == 0:
                logger.warning("%s an epoch: it delivers nothing.", what)
        return counts

    def _choose_expanded(self, lanes: int) -> list[bool]:
        """Which compressed streams are expanded to files: the largest ones, until the working set of the rest fits
        `cache_memory`."""
        needs = [self._working_set_bytes(s, lanes) for s in range(len(self.streams))]
        expanded = [False] * len(needs)
        total = sum(needs)
        for s in sorted(range(len(needs)), key=lambda s: -needs[s]):
            if total <= self._options.cache_memory:
                break
            expanded[s] = needs[s] > 0
            total -= needs[s]
        return expanded

    def _working_set_bytes(self, s: int, lanes: int) -> int:
        """Decompressed bytes that this rank keeps of a stream: what lies under the block at hand and the next one of
        each lane that it plans, rounded up to what is decoded together."""
        index, options = self.indexes[s], self._options
        if not any(index.zip_basenames):
            return 0
        stream_bytes = int(index.raw_bytes.sum())
        units = max(1, int(self.sizes[s].sum()) // options.unit)
        if units <= options.shuffle_block:
            return stream_bytes
        largest = int(index.raw_bytes.max())
        frame_bytes = index.frame_bytes or largest
        piece_bytes = min(largest, -(-_core.LEAST_PIECE_BYTES // frame_bytes) * frame_bytes)  # whole frames
        block_bytes = stream_bytes * options.shuffle_block // units + 2 * piece_bytes
        planned = lanes // gcd(lanes, options.world_size) if options.shuffle else 1
        return min(stream_bytes, 2 * planned * block_bytes)


def stream_files(
    name: str, index: StreamIndex, *, follow_links: bool = False, expand_directory: str = ""
) -> _core.StreamFiles:
    """An index as the core takes it. Compressed shards are expanded into `expand_directory`, if that is not empty, else
    into memory."""
    return _core.StreamFiles(
        name=name,
        directory=index.directory,
        follow_links=follow_links,
        expand_directory=expand_directory,
        schemas=[schema.columns for schema in index.schemas],
        raw_basenames=index.raw_basenames,
        zip_basenames=index.zip_basenames,
        schema_indexes=index.schema_indexes,
        samples=index.samples,
        raw_bytes=index.raw_bytes,
        zip_bytes=index.zip_bytes,
        tokens=index.tokens,
    )


def _expand_directory(cache_dir: str, name: str, index: StreamIndex) -> str:
    """Where a stream's shards are expanded: told apart by the index, legible by the name, inside `cache_dir`."""
    legible = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64]
    return os.path.join(cache_dir, f"{legible}-{index.sha256[:16]}")


def _sizes(name: str, index: StreamIndex, layout: str) -> npt.NDArray[np.uint64]:
    path = index_path(index.directory)
    if any(schema.kind != "text" for schema in index.schemas):
        raise ValueError(f"stream {name!r} has labels ({path}): layout {layout!r} takes text streams.")
    if not index.samples.any():
        raise ValueError(f"stream {name!r} is empty: {path} lists no sample.")
    if layout == "pad":
        return index.samples.astype(np.uint64)
    if index.tokens is None:
        raise ValueError(
            f"stream {name!r} does not tell how many tokens its shards hold, which layout 'concat' needs: run "
            f"`stoker index {index.directory}` once; it counts them and writes them beside index.json."
        )
    if not index.tokens.any():
        raise ValueError(f"stream {name!r} is empty: the samples in {index.directory} hold no token.")
    return index.tokens
