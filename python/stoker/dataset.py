"""The streams of a loader, opened: their indexes, sizes, counts and shards."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import os
import weakref
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import gcd
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stoker import _core
from stoker.cache_limit import CacheLimit
from stoker.downloads import Requests
from stoker.errors import LoaderClosedError
from stoker.files import legible_name
from stoker.index import StreamIndex, index_path, read_index
from stoker.materialize import Materializer
from stoker.mixture import counts_per_epoch, rates
from stoker.options import Options, check_index
from stoker.remote import fetch_indexes, open_cache, open_expansion, ranks_of_a_node
from stoker.stream import Stream
from stoker.tokenization import RawStream, Tokenization

logger = logging.getLogger("stoker")

_MAX_EPOCH_UNITS = 1 << 40  # positions of the order
_MOST_BLOCKS_AHEAD = 1 << 16  # of which the order tells
_STREAMING_BLOCK = 4_000_000  # samples that MosaicML Streaming shuffles together at most, if not told otherwise
_CHUNK_SAMPLES = 1 << 14  # of a list: enough that nothing is done often, few enough to be listed at once
_MOST_CHUNKS_AHEAD = 64  # of a list, 128 KiB each


class Opened(NamedTuple):
    """What depends on the number of lanes: the order, and the shards as they are kept for it."""

    lanes: int
    order: _core.Order
    store: _core.ShardStore


class TokenDataset:
    """What a loader reads from: `loader.dataset`.

    Streams are in the order of their names; that is the order of `stream_ids`, whatever the order of the list given. In
    MosaicML Streaming's order of samples they are in the order given, on which it depends.

    Attributes:
        streams: The streams.
        names: Their names.
        indexes: Their indexes.
        kinds: "text" or "finetuning", of each.
        sizes: Things of each shard of each stream, uint64: samples (`pad`, `pack`) or tokens (`concat`).
        counts: Units an epoch of each stream: samples (`pad`, and `pack`, where it is the long run's mean) or rows
            (`concat`).
        rates: What the order goes by: the counts, or for `pack` the weights in fixed point.
    """

    def __init__(self, streams: Sequence[Stream], options: Options, tokenization: Tokenization | None = None) -> None:
        """Reads the index files; opens no shard, but for the length of raw samples where weights or the length of an
        epoch need it.

        Args:
            streams: In any order.
            options: Of the loader.
            tokenization: What makes token shards of raw ones; None: all streams are of token shards.

        Raises:
            FileNotFoundError: A stream has no index.json.
            ValueError: There is no stream, two have one name or are of different tokenizers, an index breaks its
                format, a stream is empty, has no loss token or is of another kind than it is said to be, its token
                totals are not known and the layout or the weights need them, or the weights break their rules or leave
                nothing to deliver.
            TypeError: `streams` holds something else than Stream.
        """
        if not streams:
            raise ValueError("there is no stream: give at least one Stream.")
        for stream in streams:
            if not isinstance(stream, Stream):
                raise TypeError(f"{stream!r} is not a stream: give stoker.Stream(local=...) for each directory.")
        self._options = options
        by_name = sorted(streams, key=lambda s: str(s.name))
        self.streams = tuple(by_name if options.streaming is None else streams)
        self.names = [str(s.name) for s in self.streams]
        for one, other in itertools.pairwise(by_name):
            if one.name == other.name:
                raise ValueError(
                    f"two streams are named {one.name!r} ({one.directory} and {other.directory}): give one of them "
                    "another `name`; it keys the stream's shuffle."
                )
        self._requests = Requests(options.num_downloads)
        self._tokenization = tokenization
        weakref.finalize(self, self._requests.close)  # also where what follows fails
        self._process = os.getpid()
        self._caches = [open_cache(s, self._requests) if s.remote is not None else None for s in self.streams]
        fetch_indexes([cache for cache in self._caches if cache is not None], self._requests)
        found = [self._read_index(s) for s in range(len(self.streams))]
        self.indexes = [index for index, _ in found]
        self._raw = [raw for _, raw in found]
        self._materializer: Materializer | None = None
        sources = [raw or cache for raw, cache in zip(self._raw, self._caches, strict=True)]
        if any(source is not None for source in sources):
            self._materializer = Materializer(
                sources,
                num_threads=max(options.num_downloads, 1 if tokenization is None else tokenization.processes),
                skips_missing=[stream.on_missing == "skip" for stream in self.streams],
            )
            weakref.finalize(self, _close, self._process, self._materializer, self._requests, tokenization)
        _check_tokenizers(self.names, self.indexes, options)
        self.kinds = [_kind(stream, index) for stream, index in zip(self.streams, self.indexes, strict=True)]
        self.overflows = [self._overflow(stream, kind) for stream, kind in zip(self.streams, self.kinds, strict=True)]
        self.sizes = [_sizes(stream, index, options) for stream, index in zip(self.streams, self.indexes, strict=True)]
        self.counts = self._count_units()
        self.rates = self.counts if options.finite else self._rates()
        self._limit = self._limit_caches()
        self._opened = self._open(options.lanes)

    def _read_index(self, s: int) -> tuple[StreamIndex, RawStream | None]:
        stream = self.streams[s]
        if self._tokenization is not None:
            index, raw = self._tokenization.read_index(stream, self._caches[s])
        else:
            index, raw = read_index(stream.directory, stream.bytes_dtype, stream.labels_dtype), None
        if index.is_expanded and self._caches[s] is None:
            directory = _expand_directory(self._options.cache_dir, str(stream.name), index)
            cache = open_expansion(str(stream.name), stream.directory, directory, self._requests)
            cache.fetch_index()
            self._caches[s], index = cache, replace(index, directory=directory)
        return index, raw

    def start(self, opened: Opened) -> None:
        """Begins to supply the shards that are not there, if there are such streams.

        Raises:
            LoaderClosedError: This is a fork of the process that has made the loader.
        """
        if self._materializer is None:
            return
        if os.getpid() != self._process:
            raise LoaderClosedError(
                "a loader that tokenizes or fetches works in the process that made it, and this is a fork: make the "
                "loader here."
            )
        self._materializer.serve(opened.store)

    @property
    def is_raw(self) -> list[bool]:
        """Of each stream, whether its shards are tokenized while the run goes on."""
        return [raw is not None for raw in self._raw]

    def close(self) -> None:
        """Ends that. Idempotent; in a fork it does nothing."""
        if self._materializer is not None:
            _close(self._process, self._materializer, self._requests, self._tokenization)

    def supply_stats(self) -> dict[str, dict[str, Any]]:
        """What became of the shards of streams that are tokenized or fetched; see `DataLoader.stats`."""
        if self._materializer is None:
            return {}
        out: dict[str, dict[str, Any]] = {}
        for s, name in enumerate(self.names):
            cache, raw = self._caches[s], self._raw[s]
            if cache is None and raw is None:
                continue
            of_stream = out[name] = {"supply_s": self._opened.store.waited_s(s)}
            if raw is not None:
                of_stream["left_out"] = raw.left_out()
            if cache is not None:
                missing = self._materializer.missing(s)
                traffic = cache.counts.traffic
                of_stream |= {
                    "cache_hits": cache.counts.hits,
                    "fetched_shards": cache.counts.fetched,
                    "downloaded_bytes": traffic.bytes,
                    "download_s": traffic.seconds,
                    "retries": traffic.retries,
                    "evicted_shards": 0 if self._limit is None else self._limit.evicted[name],
                    "missing_shards": {one.shard: one.reason for one in missing},
                    "missing_samples": sum(int(self.indexes[s].samples[one.shard]) for one in missing),
                }
        return out

    def forget(self, path: str) -> None:
        """Removes a file that turned out to be broken, if it is the copy of a remote one: the next run fetches it."""
        for cache in self._caches:
            if cache is not None and os.path.commonpath([cache.directory, path]) == cache.directory:
                cache.remove(path)

    def __len__(self) -> int:
        """Rows an epoch: its units, or for `pack` what its tokens fill without padding, a global batch at least."""
        if self._options.finite:
            return sum(self.counts)
        samples, tokens = self._sample_and_token_totals()
        an_epoch = sum(Fraction(c * t, s) for c, s, t in zip(self.counts, samples, tokens, strict=True))
        return max(int(an_epoch) // self._options.seq_len, self._options.global_batch)

    @property
    def asked(self) -> list[float]:
        """The share that each stream is asked to have of what weights count: units or tokens."""
        counts = self.counts
        if self._options.weights_in == "tokens" and self._options.layout != "concat":
            samples, tokens = self._sample_and_token_totals()
            counts = [rate * t // s for rate, s, t in zip(self.rates, samples, tokens, strict=True)]
        elif not self._options.finite:
            counts = self.rates
        return [count / sum(counts) for count in counts]

    def layout(self) -> _core.Layout:
        """What the core needs to know of the layout."""
        options = self._options
        groups: dict[str, int] = {}
        sharing: dict[str, list[str]] = {
            "streams": [""] * len(self.names),
            "kind": self.kinds,
            "stream": self.names,
        }
        window, window_rows = options.window
        return _core.Layout(
            kind=options.layout,
            seq_len=options.seq_len,
            overflow=self.overflows,
            packing=options.packing,
            pack_window=window,
            window_rows=window_rows,
            groups=[groups.setdefault(key, len(groups)) for key in sharing[options.mix_in_rows]],
            pad_to_multiple=options.pad_to_multiple,
            max_samples_per_row=options.max_samples_per_row or 0,
            max_leftover_bins=options.max_leftover_bins_to_keep,
            num_packers=1 if options.streaming is None else options.streaming.num_packers,
        )

    def document_tokens(self) -> list[int]:
        """The token at which documents are cut, of each stream; -1 where they are its samples."""
        options = self._options
        if options.documents == "samples":
            return []
        tokens = []
        for stream, kind in zip(self.streams, self.kinds, strict=True):
            token = {"eos": stream.eos_token_id, "bos": None}[options.documents]
            if token is None and kind == "text":
                token = {"eos": options.eos_token_id, "bos": options.bos_token_id}[options.documents]
                if token is None:
                    raise ValueError(
                        f"documents={options.documents!r} needs {options.documents}_token_id, for stream "
                        f"{stream.name!r} at least."
                    )
            tokens.append(-1 if token is None else token)
        return tokens

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
            counts=self.rates,
            seed=options.seed,
            lanes=lanes,
            global_batch=options.global_batch,
            finite=options.finite,
            unit=options.unit,
            drop_last=options.drop_last,
            shuffle=options.shuffle,
            shuffle_block=options.shuffle_block,
            blocks_ahead=self._blocks_ahead(lanes),
        )
        files = [
            stream_files(
                str(stream.name),
                index,
                supply="made" if raw else "fetched" if cache else "there",
                closes_unheld=cache is not None and options.cache_limit is not None,
                follow_links=stream.follow_links,
                expand_directory=_expand_directory(options.cache_dir, str(stream.name), index) if big else "",
            )
            for stream, index, big, raw, cache in zip(
                self.streams, self.indexes, self._choose_expanded(lanes), self._raw, self._caches, strict=True
            )
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
        self.start(self._opened)
        return self._opened.store.read_sample(s, shard, sample)

    def _overflow(self, stream: Stream, kind: str) -> str:
        """What a sample longer than seq_len does."""
        options = self._options
        by_kind = (
            "split" if kind == "text" and options.layout == "pack" and options.packing == "best_fit" else "truncate"
        )
        overflow = stream.overflow or options.overflow or by_kind
        if options.layout == "pad" and overflow not in ("truncate", "error"):
            raise ValueError(
                f"overflow of stream {stream.name!r} is {overflow!r}: layout 'pad' has 'truncate' and 'error'."
            )
        if options.packing == "foundry" and overflow == "split":
            raise ValueError(f"overflow of stream {stream.name!r} is 'split', which packing='foundry' does not have.")
        return overflow

    def _sample_and_token_totals(self) -> tuple[list[int], list[int]]:
        """Samples and tokens of each stream; of one whose shards are made as many as its first samples let expect."""
        samples = [int(index.samples.sum(dtype=np.uint64)) for index in self.indexes]
        tokens = [
            int(index.tokens.sum()) if index.tokens is not None else round(mean * number)
            for index, mean, number in zip(self.indexes, self._means, samples, strict=True)
        ]
        return samples, tokens

    @functools.cached_property
    def _means(self) -> list[float]:
        """Mean tokens of a sample, of streams whose shards are made; of the others 0."""
        return [0.0 if raw is None else raw.mean_tokens() for raw in self._raw]

    def _rates(self) -> list[int]:
        """The weights as they were given, never rounded to counts first."""
        samples, tokens = self._sample_and_token_totals()
        weights = []
        for s, stream in enumerate(self.streams):
            if stream.proportion is not None:
                weight = Fraction(float(stream.proportion))
            elif stream.choose is not None:
                weight = Fraction(int(stream.choose))
            else:
                weight = Fraction(1.0 if stream.repeat is None else float(stream.repeat)) * samples[s]
            if self._options.weights_in == "tokens" and (stream.proportion is not None or stream.choose is not None):
                weight = weight * samples[s] / tokens[s]
            weights.append(weight)
        return rates(weights)

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
        if options.weights_in == "tokens" and options.layout != "concat":
            samples, tokens = self._sample_and_token_totals()
            of_tokens = counts_per_epoch(streams, tokens, epoch_size=options.epoch_size, seed=options.seed)
            counts = [count * s // t for count, s, t in zip(of_tokens, samples, tokens, strict=True)]
        else:
            units = [total // options.unit for total in totals]
            counts = counts_per_epoch(streams, units, epoch_size=options.epoch_size, seed=options.seed)
        if not options.finite:
            return counts  # of the long run
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
        """Decompressed bytes that this rank keeps of a stream: what lies under the blocks in use of each lane that it
        plans, rounded up to what is decoded together."""
        index = self.indexes[s]
        if index.is_made or not any(index.zip_basenames):
            return 0
        largest = int(index.raw_bytes.max())
        frame_bytes = index.frame_bytes or largest
        piece_bytes = min(largest, -(-_core.LEAST_PIECE_BYTES // frame_bytes) * frame_bytes)  # whole frames
        return self._bytes_in_use(s, lanes, int(index.raw_bytes.sum()), piece_bytes)

    def _bytes_in_use(self, s: int, lanes: int, stream_bytes: int, piece_bytes: int, ahead: int = 0) -> int:
        """Of so many bytes of a stream, those under the blocks in use of each lane that this rank plans, and under
        `ahead` more. Pieces of a size are kept whole."""
        options = self._options
        units, block = self._units(s), self._block_units(s)
        if units <= block:
            return stream_bytes
        block_bytes = stream_bytes * block // units + 2 * piece_bytes
        planned = lanes // gcd(lanes, options.world_size) if options.shuffle else 1
        # The block at hand and the next one; and the one before, of which the rows of a window are emitted late.
        blocks = ahead + (2 if options.finite else 3)
        return min(stream_bytes, blocks * planned * block_bytes)

    def _block_units(self, s: int) -> int:
        """Units of a stream that are read from together, in a lane."""
        if self._options.streaming is None:
            return self._options.shuffle_block
        # A chunk may be from anywhere in what was shuffled together, in MosaicML Streaming's order of all streams.
        block = self._options.streaming.shuffle_block_size or _STREAMING_BLOCK
        return block if self._options.shuffle else self.chunk_samples * self._options.world_size

    def _units(self, s: int) -> int:
        """Units of a pass of a stream."""
        return max(1, int(self.sizes[s].sum()) // self._options.unit)

    # ------------------------------------------------------------ listed samples
    @property
    def chunk_samples(self) -> int:
        """Samples of a rank that are listed together: their shards are supplied together. Fewer where space is
        limited."""
        return _CHUNK_SAMPLES if self._options.cache_limit is None else _CHUNK_SAMPLES // 16

    @property
    def chunks_ahead(self) -> int:
        """Chunks behind the next one whose shards are supplied already."""
        return max(self._blocks_ahead(1))

    # ------------------------------------------------------------ copies of remote streams
    def _limit_caches(self) -> CacheLimit | None:
        """
        Raises:
            ValueError: The limit is below what is in use at once.
        """
        limit, caches = self._options.cache_limit, [cache for cache in self._caches if cache is not None]
        if limit is None or not caches:
            return None
        needs, lanes = 0, self._options.lanes
        ahead = self._blocks_ahead(lanes)
        for s, cache in enumerate(self._caches):
            if cache is not None:
                sizes = cache.shard_bytes()
                in_use = self._bytes_in_use(s, lanes, sum(sizes), max(sizes), ahead[s])
                needs += min(sum(sizes), in_use * ranks_of_a_node()) + max(sizes)
        if limit < needs:
            raise ValueError(
                f"cache_limit is {limit:,} bytes, but the shards that are in use at once, with one that is coming, "
                f"take {needs:,}: give at least that, or lower shuffle_block{' or predownload' if any(ahead) else ''}."
            )
        materializer = self._materializer
        assert materializer is not None
        made = CacheLimit(limit, caches)
        made.held = lambda: [
            (cache, shard) for s, shard in materializer.held() if (cache := self._caches[s]) is not None
        ]
        return made

    def _blocks_ahead(self, lanes: int) -> list[int]:
        """Of each stream, blocks behind the next one whose shards are supplied already."""
        options = self._options
        ahead = [0] * len(self.streams)
        supplied = [s for s in range(len(self.streams)) if self._caches[s] or self._raw[s]]
        for s in supplied:
            sizes = self.indexes[s].raw_bytes
            shards = options.predownload_shards
            if options.predownload_bytes:
                planned = lanes // gcd(lanes, options.world_size) if options.shuffle else 1
                shards = options.predownload_bytes // max(1, int(sizes.mean()) * planned * len(supplied))
            block = options.shuffle_block if options.streaming is None else self.chunk_samples * options.world_size
            most = _MOST_BLOCKS_AHEAD if options.streaming is None else _MOST_CHUNKS_AHEAD
            ahead[s] = min(math.ceil(shards / (len(sizes) * block / self._units(s))), most)
        return ahead


def _close(process: int, materializer: Materializer, requests: Requests, tokenization: Tokenization | None) -> None:
    """Ends everything that the threads of a materializer wait for, and then them; nothing in a fork of the process."""
    if os.getpid() != process:
        return
    materializer.stop()
    requests.close()
    if tokenization is not None:
        tokenization.close()
    materializer.close()


def stream_files(
    name: str,
    index: StreamIndex,
    *,
    supply: str = "there",
    closes_unheld: bool = False,
    follow_links: bool = False,
    expand_directory: str = "",
) -> _core.StreamFiles:
    """An index as the core takes it.

    Args:
        name, index: Of the stream.
        supply: Its files are "there", "fetched", or others are "made" of them.
        closes_unheld: Files are closed when nothing will be read from them soon, since they may be removed.
        follow_links: See `Stream`.
        expand_directory: Where compressed shards are expanded; empty: into memory.
    """
    return _core.StreamFiles(
        name=name,
        directory=index.directory,
        follow_links=follow_links,
        expand_directory=expand_directory,
        supply=supply,
        closes_unheld=closes_unheld,
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
    """Where a stream's shards are expanded: told apart by the index, inside `cache_dir`."""
    return os.path.join(cache_dir, f"{legible_name(name)}-{index.sha256[:16]}")


def _check_tokenizers(names: Sequence[str], indexes: Sequence[StreamIndex], options: Options) -> None:
    """Streams that tell their tokenizer must be of one, and the options must fit it.

    Raises:
        ValueError: They are not, or do not.
    """
    known = [(name, index.tokenizer) for name, index in zip(names, indexes, strict=True) if index.tokenizer is not None]
    for name, tokenizer in known:
        first, of_first = known[0]
        if tokenizer.sha256 != of_first.sha256:
            raise ValueError(
                f"streams {first!r} and {name!r} were tokenized by different tokenizers (vocabularies of "
                f"{of_first.vocab_size:,} and {tokenizer.vocab_size:,}): prepare them with the same one."
            )
        if options.vocab_size is not None and options.vocab_size < tokenizer.vocab_size:
            raise ValueError(
                f"vocab_size is {options.vocab_size}, but stream {name!r} was tokenized with a vocabulary of "
                f"{tokenizer.vocab_size}: give that, or the model's, if it is larger."
            )
        for token in ("eos_token_id", "bos_token_id"):
            given, its = getattr(options, token), getattr(tokenizer, token)
            if given is not None and its is not None and given != its:
                raise ValueError(f"{token} is {given}, but {its} in stream {name!r}, by its tokenizer: give that.")


def _kind(stream: Stream, index: StreamIndex) -> str:
    path = index_path(index.directory)
    kinds = {schema.kind for schema in index.schemas} or {"text"}
    if len(kinds) > 1:
        raise ValueError(f"stream {stream.name!r} has labels in some shards only ({path}): make two streams of it.")
    kind = kinds.pop()
    if stream.kind not in (None, kind):
        raise ValueError(
            f"stream {stream.name!r} is said to be of kind {stream.kind!r}, but its columns are those of {kind!r}: a "
            f"finetuning stream has `input_ids` and `labels` ({path})."
        )
    if kind == "finetuning" and index.loss_tokens is not None and not index.loss_tokens.any():
        raise ValueError(f"stream {stream.name!r} has no loss token: all labels in {index.directory} are -100.")
    return kind


def _sizes(stream: Stream, index: StreamIndex, options: Options) -> npt.NDArray[np.uint64]:
    name, path = stream.name, index_path(index.directory)
    if not index.samples.any():
        raise ValueError(f"stream {name!r} is empty: {path} lists no sample.")
    if index.is_made and options.layout == "concat":
        raise ValueError(
            f"stream {name!r} is tokenized while the run goes on, and layout 'concat' must know the tokens of every "
            "shard before: prepare it with `stoker prepare`, or choose layout 'pack'."
        )
    is_counted = options.layout == "pad" or (options.layout == "pack" and options.finite)
    needs_tokens = not index.is_made and (not is_counted or options.weights_in == "tokens")
    if needs_tokens and index.tokens is None:
        raise ValueError(
            f"stream {name!r} does not tell how many tokens its shards hold, which layout {options.layout!r} "
            "or weights_in='tokens' needs: run "
            f"`stoker index {stream.remote_directory or index.directory}` once; it counts them and writes them beside "
            "index.json."
        )
    if needs_tokens and index.tokens is not None and not index.tokens.any():
        raise ValueError(f"stream {name!r} is empty: the samples in {index.directory} hold no token.")
    if options.layout == "concat" and index.tokens is not None:
        return index.tokens
    return index.samples.astype(np.uint64)
