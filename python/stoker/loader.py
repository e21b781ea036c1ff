"""The DataLoader: batches of mixed token streams, filled by the core's threads."""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from stoker import _core
from stoker.accelerator import check_device, open_accelerator
from stoker.batches import BatchMemory, make_memory
from stoker.dataset import TokenDataset
from stoker.distributed import find_ranks
from stoker.errors import CorruptShardError, LoaderClosedError
from stoker.feed import DeviceFeed, Feed, HostFeed, make_form
from stoker.handoff import Handoff
from stoker.listed_order import ListedOrder
from stoker.options import Options, check_index, default_cache_dir, name_fields, rows_of_a_rank
from stoker.own_order import OwnOrder
from stoker.run_order import RunOrder, Start
from stoker.stats import Meter
from stoker.stream import Stream
from stoker.streaming_order import StreamingSettings
from stoker.tokenization import Tokenization
from stoker.units import parse_bytes, parse_count

logger = logging.getLogger("stoker")


_STREAMING_SEED = 9176  # the default there


class Segment(NamedTuple):
    """Tokens [token_begin, token_end) of one sample, as a row holds them."""

    stream: str
    shard: int
    sample: int
    token_begin: int
    token_end: int


class RowInfo(NamedTuple):
    """The rows of a batch.

    Attributes:
        num_rows: Up to the last that is not all padding.
        tokens: Of each row that are no padding.
        loss_tokens: Of each row: labels that a model which shifts predicts; not that of its first token.
    """

    num_rows: int
    tokens: list[int]
    loss_tokens: list[int]


class DataLoader:
    """Mixes streams of MDS token shards into batches, in an order that is a pure function of its arguments.

    Iterating gives the batches of one epoch, each a dict of the `fields` asked for, (batch_size, seq_len) integers:

    ==================  ====================================================================  =======
    field               meaning                                                               padding
    ==================  ====================================================================  =======
    `input_ids`         token ids                                                             pad_id
    `labels`            aligned with input_ids (the model shifts), -100 where there is no     -100
                        loss: the shard's own in finetuning streams, input_ids in text
                        streams; in `pack` not the first token of a sample, but the row's
    `attention_mask`    1                                                                     0
    `position_ids`      place of the token in its document, as far as that lies in the row    0
    `sequence_id`       number of the document in its row, from 0                             -1
    `stream_ids`        number of the stream, in the order of the streams' names              -1
    ==================  ====================================================================  =======

    The field `cu_seqlens` is (n,) int32, for attention over sequences of varying length: where documents end among all
    tokens of the batch, row after row, from 0 to batch_size * seq_len. Padding counts as a sequence of its own. n is
    the same for every batch (see `cu_seqlens_capacity`): the end is repeated. `max_seqlen`, an int, comes with it:
    tokens of the longest document.

    They are torch tensors on the CPU or on `device`, or numpy arrays where torch is not installed. Their memory is the
    caller's as long as any of them lives. Threads start at the first batch; until then a loader can be pickled. After a
    fork a loader that has started, or has a device, works in the parent only. A loader belongs to one thread at a time.

    The order of rows and its algorithms (stride scheduling, keyed block shuffles) are described in docs/design.md; the
    same arguments give the same rows for any number of workers, ranks and interruptions.
    """

    sampler = None  # torch's name; the order is the loader's own

    def __init__(
        self,
        streams: Sequence[Stream] | Stream,
        *,
        seq_len: int,
        batch_size: int | None = None,
        global_batch_size: int | None = None,
        layout: str = "concat",
        fields: Sequence[str] | Mapping[str, str] | str = ("input_ids", "labels"),
        field_rules: str = "stoker",
        epoch_size: int | str | None = None,
        shuffle: bool = True,
        seed: int | None = None,
        order: str | StreamingSettings = "stoker",
        shuffle_block: int = 16384,
        lanes: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        replication: int = 1,
        device_mesh: Any = None,
        mesh_dims: Sequence[str] | str | None = None,
        num_workers: int = 2,
        prefetch_factor: int | None = None,
        drop_last: bool = True,
        dtype: Any = "int64",
        pad_id: int = 0,
        padding_side: str = "right",
        overflow: str | None = None,
        weights_in: str | None = None,
        packing: str = "best_fit",
        pack_window: int = 4096,
        packing_ratio: float | None = None,
        max_leftover_bins_to_keep: int | None = None,
        mix_in_rows: str = "streams",
        max_samples_per_row: int | None = None,
        pad_to_multiple: int = 1,
        cu_seqlens_capacity: int | None = None,
        documents: str = "samples",
        eos_token_id: int | None = None,
        bos_token_id: int | None = None,
        vocab_size: int | None = None,
        pin_memory: bool = False,
        device: Any = None,
        static_buffers: bool = False,
        timeout: float = 0,
        cache_memory: int | str = "2gb",
        cache_dir: str | os.PathLike[str] | None = None,
        cache_limit: int | str | None = None,
        predownload: int | str = 0,
        num_downloads: int = 16,
        tokenizer: str | os.PathLike[str] | Callable[[], str] | None = None,
        tokenizer_processes: int = 2,
    ) -> None:
        """Reads the streams' index files; opens no shard.

        Args:
            streams: What to mix.
            seq_len: Tokens a row.
            batch_size: Rows a batch, of this rank. batch_size * world_size rows make a global batch.
            global_batch_size: Rows a step over all ranks, instead of batch_size: it stays when the world size changes.
            layout: "concat": rows are cut from each stream's endless line of tokens, none is lost; documents go on from
                row to row. "pack": whole samples of any streams together in rows, with as little padding as can be.
                "pad": one sample a row.
            fields: What a batch holds, in this order; "input_ids" must be among them. A mapping gives them other names:
                {"tokens": "input_ids", "cu_seqlens_q": "cu_seqlens", "max_seqlen_q": "max_seqlen", ...}. Or the name of
                such a mapping: "huggingface" (input_ids, labels, position_ids, cu_seq_lens_q and _k, max_length_q and
                _k), "flash" (the same with flash_attn_varlen_func's cu_seqlens_q and _k, max_seqlen_q and _k) or
                "composer" (input_ids, labels, attention_mask, sequence_id).
            field_rules: "foundry": as LLM Foundry has them in rows of text: labels are -100, too, where the token is
                pad_id, and `sequence_id` counts the ends (or beginnings) of documents before a token, over padding, too
                (see `documents`). And a sample with labels of which overflow leaves no loss token is an error.
            epoch_size: Units an epoch (rows for `concat`, samples for `pad` and `pack`, or tokens: see `weights_in`),
                such as 100_000 or "100k". Default: what the streams hold, as their weights say. An epoch of `pack` is
                as many rows as its tokens fill without padding.
            shuffle: False: every stream in file order, the streams still mixed by weight.
            seed: Of all that is drawn. 0 to 2^64 - 1. Default: 0; in MosaicML Streaming's order 9176, as there.
            order: Of the samples: "stoker", or "streaming": MosaicML Streaming's, bit for bit, from all of its settings
                that are given as StreamingSettings. It has layouts "pad" and, with packing="foundry", "pack", needs
                4 bytes a sample and some seconds for 10^8 samples, ahead of the epoch, and goes by the order of the
                streams given. With drop_last=True the samples that do not fill a batch of a rank are left out.
            shuffle_block: Units that are shuffled together. Larger mixes documents that lie farther apart, and makes
                more shards the working set: a block of concat rows is shuffle_block * seq_len tokens.
            lanes: Parts that the order is made of; each rank reads the shards of its own lanes. Default: the world size
                at the first start, kept in the state. Leave it alone unless you know the largest world size to come.
            rank: This process's number among those that train together.
            world_size: Their number. Default: rank and world size are those of `device_mesh`, else of torch's default
                process group if there is one, else of the environment that torchrun or Slurm's srun make, else 0 and 1.
            replication: So many ranks, one after the other, get the same rows, as tensor parallel peers need; the rest
                of this text calls them one rank.
            device_mesh: A torch DeviceMesh. Its data-parallel dimensions tell rank and world size; peers along others
                (tensor, context, pipeline parallel) get the same rows.
            mesh_dims: The names of these dimensions. Default: those with a usual one, such as "dp", "dp_replicate",
                "dp_shard" or "fsdp"; a name that is not usual for anything is an error.
            num_workers: Threads that fill batches; `next()` helps them while it has to wait. 0: filled in `next()`
                alone. 2 keep up with most trainers; more help where shards are compressed.
            prefetch_factor: Batches that are filled ahead. Default: 8; without workers there are none.
            drop_last: True: rows that don't fill the last global batch of an epoch come first in the next. False: the
                last batch is filled up with rows of padding.
            dtype: "int64" or "int32", or torch's or numpy's type of that name.
            pad_id: Token id on padding.
            padding_side: "right" or "left".
            overflow: What `pad` and `pack` do with a sample longer than seq_len: "truncate" counts what it cuts in
                `stats()`; "error" raises. `pack` also has "split" (pieces of seq_len, and what remains) and "drop"
                (left out and counted). Default: "truncate"; for text streams in `pack` "split". A stream may have its
                own.
            weights_in: What `proportion`, `choose` and `epoch_size` count: "samples" (default for `pad` and `pack`) or
                "tokens", by the streams' mean lengths from their indexes, before anything is cut or dropped. `concat`
                counts tokens in any case.
            packing: "best_fit": best-fit decreasing over windows of samples. "foundry": rows as LLM Foundry's packer
                makes them, what it leaves over included; it needs as many lanes as ranks.
            pack_window: Samples of a lane that are packed together, fewer where they have 512 rows' worth of tokens
                before. Larger fills rows better, and makes a start read more lengths.
            packing_ratio: "foundry" only: a raw batch has int(batch_size * packing_ratio) samples.
            max_leftover_bins_to_keep: "foundry" only: bins beyond it are dropped. Default: all are kept.
            mix_in_rows: What samples may share a row of `pack`: those of all "streams", of one "kind" or of one
                "stream".
            max_samples_per_row: Of `pack`. Default: any number.
            pad_to_multiple: Of `pack`: each sample, or piece of one, is padded to a multiple of it, as context
                parallelism needs (2 * CP). It must divide seq_len.
            cu_seqlens_capacity: Sequences that cu_seqlens has room for, paddings included; more of them in a batch are
                an error. Default: batch_size * (max_samples_per_row + 1), or where that is not given
                batch_size * (max(16, seq_len // 16) + 1).
            documents: Where documents begin, for `position_ids` and `sequence_id`: "samples": at each sample; "eos":
                after each eos_token_id; "bos": at each bos_token_id (for shards that were concatenated before).
            eos_token_id, bos_token_id: See `documents`.
            vocab_size: A token id at or above it is an error. Default: only ids that are negative or don't fit `dtype`.
            pin_memory: Batches in page-locked memory, for `.to(device, non_blocking=True)`.
            device: Batches on an accelerator: "cuda", "cuda:1", "xpu", "mps", a torch.device. They are copied ahead on
                a stream of their own, and are ready in the order of the stream that is current when `next()` is called.
                Token ids must be below 2^31. "cuda" is the device that is current at the first batch.
            static_buffers: With `device`: every batch is in the same tensors, as CUDA graphs need. `next()` overwrites
                them, in the order of the current stream.
            timeout: Seconds that `next()` waits at most for a batch. 0: for as long as it takes.
            cache_memory: Decompressed shards are kept in memory within this size, such as "2gb". Where the working set
                is larger, they are expanded once to files in `cache_dir`.
            cache_dir: Default: `$STOKER_CACHE`, else `stoker` in the user's cache home.
            cache_limit: The local copies of remote streams are kept within this size, such as "100gb", all ranks of a
                node together: the shards that were used least recently are removed. Of each stream it must hold the
                shards under two blocks of `shuffle_block` units (`pack`: three) of all lanes of the node, those of
                `predownload`, and one more; less is an error, with the number. Default: everything is kept.
            predownload: Shards of remote streams, or of such that are tokenized, are supplied ahead of need: in any
                case those under the block of each stream and lane that is read, and under the next one. This many more
                of each; or, as a size such as "4gb", of all together. Raise it where downloads come in fits.
            num_downloads: Requests to remote stores at once.
            tokenizer: Streams may be of raw samples (`text`, `prompt` and `response`, `messages`, `turns`). Their
                shards are tokenized one by one, ahead of need, into files in `cache_dir`, by the rules of
                `stoker.prepare` (see `Stream.prepare`), which tells what a tokenizer may be; or a function that gives
                one, called where there is such a stream. Layout `concat` can't have
                such streams. Where weights or the length of an epoch go by tokens, a stream's are reckoned from the
                first samples of its first shard.
            tokenizer_processes: That tokenize. One keeps up with most trainers; more give the first batch sooner.

        Raises:
            FileNotFoundError: A stream has no index.json, or there is no such tokenizer.
            ValueError: An argument breaks its rule, an index breaks its format, or there is no such device.
            OSError: A remote can't be reached or may not be read, and there is no copy of its index.
            ModuleNotFoundError: A package is missing for a remote; the message says which.
            TypeError: `streams` holds something else than Stream.
        """
        self._arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        ranks = find_ranks(rank, world_size, replication=replication, device_mesh=device_mesh, mesh_dims=mesh_dims)
        self._names = name_fields(fields)
        if isinstance(order, str) and order not in ("stoker", "streaming"):
            raise ValueError(f"order is {order!r}: it must be 'stoker', 'streaming' or StreamingSettings.")
        streaming = order if isinstance(order, StreamingSettings) else None
        if order == "streaming":
            streaming = StreamingSettings()
        options = Options(
            seq_len=seq_len,
            batch_size=rows_of_a_rank(batch_size, global_batch_size, ranks.world_size),
            layout=layout,
            streaming=streaming,
            field_rules=field_rules,
            fields=tuple(dict.fromkeys(field for field in self._names.values() if field != "max_seqlen")),
            epoch_size=None if epoch_size is None else parse_count(epoch_size),
            shuffle=shuffle,
            seed=(0 if streaming is None else _STREAMING_SEED) if seed is None else seed,
            shuffle_block=shuffle_block,
            lanes=ranks.world_size if lanes is None else lanes,
            rank=ranks.rank,
            world_size=ranks.world_size,
            num_workers=num_workers,
            prefetch_factor=8 if prefetch_factor is None else prefetch_factor,
            drop_last=drop_last,
            dtype=getattr(dtype, "__name__", str(dtype)).removeprefix("torch."),
            pad_id=pad_id,
            padding_side=padding_side,
            overflow=overflow,
            weights_in=weights_in,
            packing=packing,
            pack_window=pack_window,
            packing_ratio=packing_ratio,
            max_leftover_bins_to_keep=max_leftover_bins_to_keep,
            mix_in_rows=mix_in_rows,
            max_samples_per_row=max_samples_per_row,
            pad_to_multiple=pad_to_multiple,
            cu_seqlens_capacity=cu_seqlens_capacity,
            documents=documents,
            eos_token_id=eos_token_id,
            bos_token_id=bos_token_id,
            vocab_size=vocab_size,
            pin_memory=pin_memory,
            static_buffers=static_buffers,
            timeout=timeout,
            cache_memory=parse_bytes(cache_memory),
            cache_dir=default_cache_dir() if cache_dir is None else os.fspath(cache_dir),
            cache_limit=None if cache_limit is None else parse_bytes(cache_limit),
            num_downloads=num_downloads,
            predownload_shards=0 if isinstance(predownload, str) else predownload,
            predownload_bytes=parse_bytes(predownload) if isinstance(predownload, str) else 0,
        )
        tokenization = None
        if tokenizer is not None:
            processes = check_index("tokenizer_processes", tokenizer_processes, 1, 1024)
            tokenization = Tokenization(tokenizer, processes=processes, cache_dir=options.cache_dir)
        self.dataset = TokenDataset([streams] if isinstance(streams, Stream) else list(streams), options, tokenization)
        logger.info("rank %d of %d, from %s", ranks.rank, ranks.world_size, ranks.source)
        self._device = check_device(device)
        if static_buffers and self._device is None:
            raise ValueError("static_buffers=True needs `device`, an accelerator whose graphs read them.")
        if self._device is not None and not -(1 << 31) <= options.pad_id < 1 << 31:
            raise ValueError(f"pad_id is {options.pad_id}: with a device it must fit 32 bits, as all ids do.")
        self._process = os.getpid()
        self._options = options
        self._layout = self.dataset.layout()
        self._order: RunOrder
        if streaming is None:
            keeps_lanes = lanes is not None or options.packing == "foundry"
            self._order = OwnOrder(self.dataset, options, self._layout, keeps_lanes=keeps_lanes)
        else:
            self._order = ListedOrder(self.dataset, options, streaming, replication=replication)
        self._form = make_form(self.dataset, options, on_device=self._device is not None)
        self._fields = (*options.row_fields, *(["cu_seqlens"] if options.cu_seqlens_entries else []))
        self._is_renamed = any(name != field for name, field in self._names.items())
        self._place = self._order.first()
        self._iteration = 0  # the one that is alive
        self._last: tuple[int, _core.BatchInfo] | None = None  # epoch and counts of the last batch received
        self._meter = Meter(len(self.dataset.counts))
        self._memory: BatchMemory | None = None  # of the CPU
        self._handoff: Handoff | None = None  # or of the device
        self._feed: Feed | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._is_closed = False

    # ------------------------------------------------------------ iteration
    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Begins the next epoch, or goes on where a loaded state stands. Earlier iterators end.

        Returns:
            An iterator over the batches of the epoch; see there for what it raises.

        Raises:
            LoaderClosedError: The loader is closed, or was started in another process.
        """
        self._check_open()
        self._iteration += 1  # first, so that no exception leaves an older iterator at a place that is not its own
        self._place = self._order.start(self._place)
        return _EpochIterator(self, self._iteration)

    def __len__(self) -> int:
        """Batches of the epoch that is being iterated, or else of the one that `iter` will give. Of an epoch in which
        the global batch has changed: since then."""
        return self._order.num_batches(self._place)

    def _take(self) -> tuple[dict[str, Any], _core.BatchInfo]:
        """The batch at the place where the loader stands. Changes nothing but the engine, which is started anew where
        it does not stand there: at first, after a jump, and after an exception between taking a batch and handing it
        over."""
        begin = time.perf_counter()
        feed = self._feed
        if feed is None or feed.next_row != self._place.row:
            feed = self._start_feed()
        try:
            arrays, info = feed.next(self._options.timeout)
        except CorruptShardError as error:
            self.dataset.forget(error.path)
            raise
        self._meter.received(begin)
        batch = dict(zip(self._fields, arrays, strict=True))
        if info.max_seqlen:
            batch["max_seqlen"] = info.max_seqlen
        if self._is_renamed:
            batch = {name: batch[field] for name, field in self._names.items()}
        return batch, info

    def _start_feed(self) -> Feed:
        self._check_device_process()
        self._stop_feed()
        if self._device is not None:
            if self._handoff is None:
                accelerator = open_accelerator(self._device)
                accelerator.check_usable()
                self._handoff = Handoff(
                    accelerator,
                    self._form,
                    fields=self._options.row_fields,
                    dtype=self._options.dtype,
                    is_static=self._options.static_buffers,
                )
            engine, start = self._start_engine(self._handoff.take)
            self._feed = DeviceFeed(engine, self._handoff, global_batch=self._options.global_batch)
        else:
            self._memory = self._memory or make_memory(
                self._form,
                max_kept=self._in_flight + 2,  # one that the trainer works on, one that it has just let go
                pin_memory=self._options.pin_memory,
            )
            engine, start = self._start_engine(self._memory.take)
            self._feed = HostFeed(engine, self._memory)
        self._finalizer = weakref.finalize(self, _end_run, engine, start)
        return self._feed

    @property
    def _in_flight(self) -> int:
        return self._options.prefetch_factor if self._options.num_workers > 0 else 1

    def _start_engine(self, take_buffer: Callable[[], tuple[Any, int]]) -> tuple[_core.Engine, Start]:
        options = self._options
        start = self._order.open(self._place)
        try:
            self.dataset.start(start.opened)
            engine = _core.Engine(
                store=start.opened.store,
                order=start.opened.order,
                layout=self._layout,
                format=self._form.format,
                rank=options.rank,
                world_size=options.world_size,
                first_row=self._place.row,
                hints_row=start.hints_row,
                hints=start.hints,
                list=None if start.listing is None else start.listing.samples,
                num_workers=options.num_workers,
                buffers=[take_buffer() for _ in range(self._in_flight)],
            )
        except BaseException:
            start.close()
            raise
        return engine, start

    @property
    def _received(self) -> _core.BatchInfo | None:
        return None if self._last is None else self._last[1]

    def _stop_feed(self) -> None:
        if (feed := self._feed) is not None:
            if self._finalizer is not None:
                self._finalizer()  # before it is let go: no two engines work on one store
            self._feed = None
            self._meter.add(feed.engine.progress(), feed.ahead(self._received))

    # ------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch received, JSON-able, a few hundred bytes a stream. Batches filled ahead are
        not part of it. The same on every rank, but for the `hints` of `pack`: two numbers for each lane that the rank
        plans, and the samples left over where packing is "foundry". The union of all ranks' `hints` serves any rank. In
        MosaicML Streaming's order it has the fields of that library's state, and for `pack` the `leftovers` of the
        rank's packers, without which it does not go on; see `stoker.distributed.full_state`."""
        return self._order.state(self._place)

    def load_state_dict(self, state: Mapping[str, Any], *, on_change: str = "error") -> None:
        """Goes on from a state at the next `iter`, on any rank and any world size.

        Args:
            state: From `state_dict`, maybe through JSON; in MosaicML Streaming's order also that library's own.
            on_change: "adapt": go on from the same row where the global batch (batch_size * world_size) has another
                size, and where other packers of LLM Foundry's work in MosaicML Streaming's order: what they had left
                over is left out.

        Raises:
            StateMismatchError: The state is of other data, another specification or another version, or is damaged.
            ValueError: `on_change` is neither "error" nor "adapt".
            LoaderClosedError: The loader is closed, or was started in another process.
        """
        self._check_open()
        if on_change not in ("error", "adapt"):
            raise ValueError(f"on_change is {on_change!r}: it must be 'error' or 'adapt'.")
        place = self._order.load(state, self._place, adapt=on_change == "adapt")
        self._iteration += 1
        self._stop_feed()
        self._last = None
        self._place = self._order.start(place)

    def set_epoch(self, epoch: int) -> None:
        """Makes the next `iter` give this epoch from its beginning, or, where `iter` would go on in it after a state
        was loaded, from there.

        Raises:
            ValueError: `epoch` is not a whole number from 0 to 2^40 / rows an epoch.
        """
        epoch = check_index("epoch", epoch, 0, (1 << 40) // len(self.dataset))
        if not self._place.goes_on or epoch != self._place.epoch:
            self._iteration += 1
            self._stop_feed()
            self._place = self._order.at(self._place, epoch)

    # ------------------------------------------------------------ looking
    def order(self, batch: int) -> list[list[Segment]]:
        """The rows of global batch `batch` = 0, 1, 2, ..., batches counted from row 0: which tokens of which samples
        each holds; in MosaicML Streaming's order those from where this run began with the epoch. An empty list is a row
        of padding. Row i is of rank i mod world_size. Reads the heads of shards;
        where a shard has other columns of varying size, the lengths that stand in its body. `pack` reads those of all
        samples before, too.

        Raises:
            ValueError: `batch` is not a whole number from 0 on, a sample is too long and `overflow` is "error", or rows
                are packed in MosaicML Streaming's order.
            CorruptShardError, OSError: A shard that the batch needs can't be opened.
        """
        batch = check_index("batch", batch, 0, (1 << 40) // self._options.global_batch)
        rows = self._order.rows(self._place, batch)
        return [[Segment(self.dataset.names[s], *rest) for s, *rest in row] for row in rows]

    @property
    def batch_info(self) -> dict[str, Any]:
        """Of the last batch received, this rank's rows: `epoch`, `rows` (the global rows [begin, end) of the step),
        `tokens` and `loss_tokens` of each stream (labels that a model which shifts predicts: not those of rows' first
        tokens), `padding_tokens`. Empty before the first batch."""
        if self._last is None:
            return {}
        epoch, info = self._last
        tokens, end_row = info.tokens, info.end_row
        by_stream = dict(zip(self.dataset.names, tokens.tolist(), strict=True))
        return {
            "epoch": epoch,
            "rows": (end_row - self._options.global_batch, end_row),
            "tokens": by_stream,
            "loss_tokens": dict(zip(self.dataset.names, info.loss_tokens.tolist(), strict=True)),
            "padding_tokens": self._batch_tokens - int(tokens.sum()),
        }

    @property
    def row_info(self) -> RowInfo:
        """The rows of the last batch received. Empty before the first."""
        if self._last is None:
            return RowInfo(0, [], [])
        info = self._last[1]
        return RowInfo(info.num_rows, info.row_tokens, info.row_loss)

    def stats(self) -> dict[str, Any]:
        """What this rank has received so far, and where the time went.

        Returns:
            `batches`, `tokens`, `padding_tokens`, and `fill`, the share of tokens; `elapsed_s` from the first request
            to the last batch, `first_batch_s`, `tokens_per_s`; `wait_s` that the consumer spent waiting and
            `wait_share` of elapsed_s;
            `plan_s`, `supply_s` (planning waited for shards that are fetched or tokenized), `load_s` (decompressing)
            and `fill_s` of the threads together; and of each of `streams` its `asked` and `achieved` share of what
            weights count, `units`, `tokens`, `loss_tokens`, and what became of
            other samples: `truncated_tokens`, `truncated_samples`, `dropped_tokens`, `dropped_samples`,
            `empty_samples`, and `no_loss_samples`: samples of finetuning streams, or pieces of them, that are in the
            rows but have no label there. Of streams that are fetched or tokenized while the run goes on `supply_s`, for
            which planning waited for their shards; of those that are tokenized `left_out`, samples that are empty in
            the shards that this rank has had, by reason; and of those that are fetched, by this rank: `cache_hits` and
            `fetched_shards`, `downloaded_bytes`, `download_s` (of requests, one beside the other), `retries`,
            `evicted_shards`, and `missing_shards`, by number with the reason, and `missing_samples`, which the run went
            on without.
        """
        report = self._meter.report(
            self.dataset.names,
            self.dataset.asked,
            weights_in="tokens" if self._options.weights_in == "tokens" else "units",
            batch_tokens=self._batch_tokens,
            running=None if self._feed is None else self._feed.engine.progress(),
            ahead=() if self._feed is None else self._feed.ahead(self._received),
        )
        for name, of_stream in self.dataset.supply_stats().items():
            report["streams"][name] |= of_stream
        return report

    @property
    def _batch_tokens(self) -> int:
        return self._options.batch_size * self._options.seq_len

    @property
    def batch_size(self) -> int:
        """Rows a batch of this rank."""
        return self._options.batch_size

    @property
    def drop_last(self) -> bool:
        """Whether rows that don't fill the last batch of an epoch come first in the next."""
        return self._options.drop_last

    @property
    def num_workers(self) -> int:
        """Threads that fill batches."""
        return self._options.num_workers

    @property
    def prefetch_factor(self) -> int:
        """Batches that are filled ahead."""
        return self._options.prefetch_factor

    @property
    def timeout(self) -> float:
        """Seconds that a batch is waited for at most; 0: for as long as it takes."""
        return self._options.timeout

    @property
    def pin_memory(self) -> bool:
        """Whether page-locked memory was asked for."""
        return self._options.pin_memory

    @property
    def rank(self) -> int:
        """This process's number among those that get different rows."""
        return self._options.rank

    @property
    def world_size(self) -> int:
        """How many processes get different rows."""
        return self._options.world_size

    # ------------------------------------------------------------ lifetime
    def close(self) -> None:
        """Stops and joins the threads. Idempotent; the loader can't be used afterwards, batches received can."""
        self._is_closed = True
        self._stop_feed()
        self.dataset.close()

    def __enter__(self) -> DataLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise LoaderClosedError("the loader is closed: make a new one, and give it the state of this one to go on.")
        if self._feed is not None:
            self._feed.engine.check_process()
        self._check_device_process()

    def _check_device_process(self) -> None:
        if self._device is not None and os.getpid() != self._process:
            raise LoaderClosedError(
                "a loader with a device works in the process that made it, and this is a fork: make the loader here."
            )

    def __getstate__(self) -> dict[str, Any]:
        if self._feed is not None:
            raise TypeError("a loader that has started can't be pickled: pickle it before its first batch is taken.")
        return {"arguments": self._arguments, "place": self._place}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["arguments"])  # type: ignore[misc]  # the files are read again where it is unpickled
        self._place = state["place"]


class _EpochIterator(Iterator[dict[str, Any]]):
    """The batches of one epoch of a loader."""

    def __init__(self, loader: DataLoader, iteration: int) -> None:
        self._loader = loader
        self._iteration = iteration
        self._is_over = False

    def __next__(self) -> dict[str, Any]:
        """The next batch.

        Returns:
            The `fields` asked for: (batch_size, seq_len) tensors. See `DataLoader`.

        Raises:
            StopIteration: The epoch is over.
            CorruptShardError: A shard of the batch breaks its format or has changed; the same at every later call.
            OSError: A shard of the batch is missing or can't be read; the same at every later call.
            ValueError: A sample is longer than seq_len and `overflow` is "error"; the same at every later call.
            TimeoutError: No batch came within `timeout` seconds. A later call goes on waiting.
            LoaderClosedError: The loader is closed, or was started in another process.
            RuntimeError: `iter`, `set_epoch` or `load_state_dict` of the loader was called since, or a CUDA graph is
                being captured on the loader's device.
        """
        loader, place = self._loader, self._loader._place
        if loader._is_closed:
            loader._check_open()
        if self._is_over:
            raise StopIteration
        if self._iteration != loader._iteration:
            raise RuntimeError(
                "this iterator has ended: iter(), set_epoch() or load_state_dict() of its loader was called since."
            )
        # A first batch is there in any case. Where the order is not worked out yet, it is waited for with the timeout.
        if place.row > place.first_row and place.row >= loader._order.end(place):
            self._is_over = True
            loader._place = loader._order.next_epoch(place)
            raise StopIteration
        batch, info = loader._take()
        # Last, and at once: an exception at any moment leaves the loader before this batch or behind it.
        loader._last = place.epoch, info
        loader._place = loader._order.behind(place, info)
        return batch


def _end_run(engine: _core.Engine, start: Start) -> None:
    engine.close()
    start.close()
