# What csrc/bindings/module.cc exposes; stubtest compares the two. Arguments are checked on the Python side.
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

@final
class Column:
    """A column of a shard. `role` is "other", "tokens" or "labels"; `encoding` "opaque", "bytes", "array" or
    "static_array"; `fixed_size` in bytes, 0 where it varies."""

    def __init__(self, role: str, encoding: str, type: str | None, fixed_size: int) -> None: ...

LEAST_PIECE_BYTES: int  # raw bytes of a large compressed shard that are decoded together at least

@final
class StreamFiles:
    """What the index says of one stream, as parallel lists over its shards."""

    def __init__(
        self,
        *,
        name: str,
        directory: str,
        follow_links: bool,
        expand_directory: str,
        supply: str,
        closes_unheld: bool,
        schemas: Sequence[Sequence[Column]],
        raw_basenames: Sequence[str],
        zip_basenames: Sequence[str],
        schema_indexes: npt.NDArray[np.uint32],
        samples: npt.NDArray[np.uint32],
        raw_bytes: npt.NDArray[np.uint64],
        zip_bytes: npt.NDArray[np.uint64],
        tokens: npt.NDArray[np.uint64] | None,
    ) -> None: ...

@final
class ShardStore:
    """The shards of all streams, opened on first use."""

    def __init__(self, streams: Sequence[StreamFiles], cache_bytes: int) -> None: ...
    def read_sample(self, stream: int, shard: int, sample: int) -> dict[str, npt.NDArray[np.integer[Any]]]: ...
    def take_wanted(self) -> tuple[int, int] | None:
        """Waits for a shard that is to be supplied, and takes it: set_ready, set_missing or set_failed is owed. None
        after close_supply."""

    def set_ready(self, stream: int, shard: int, path: str, fd: int, is_compressed: bool) -> None:
        """Takes the descriptor over, whatever happens."""

    def set_missing(self, stream: int, shard: int) -> None:
        """The run goes on without the shard: its samples are empty."""

    def set_failed(self, stream: int, shard: int, pickled: bytes) -> None:
        """`pickled` is the exception that is raised where the shard is needed."""

    def close_supply(self) -> None:
        """Nobody supplies shards any more. Ends take_wanted."""

    def held(self) -> list[tuple[int, int]]:
        """Stream and shard of those, of streams that are supplied, that will be read from soon."""

    def waited_s(self, stream: int) -> float:
        """Seconds that shards of a stream have been waited for."""

    def totals(self, stream: int, shard: int) -> tuple[int, int, int]:
        """Tokens of a shard, those of them with loss, and the tokens of its longest sample."""

    def lengths(self, stream: int, shard: int) -> npt.NDArray[np.uint32]:
        """Tokens of each sample of a shard."""

@final
class Order:
    """The order of a run; `sizes` are those of shards, in the things that `unit` counts."""

    def __init__(
        self,
        *,
        names: Sequence[str],
        sizes: Sequence[npt.NDArray[np.uint64]],
        counts: Sequence[int],
        seed: int,
        lanes: int,
        global_batch: int,
        finite: bool,
        unit: int,
        drop_last: bool,
        shuffle: bool,
        shuffle_block: int,
        blocks_ahead: Sequence[int],
    ) -> None: ...

@final
class Layout:
    """`overflow` and `groups` by stream; `max_samples_per_row` 0: any number."""

    def __init__(
        self,
        *,
        kind: str,
        seq_len: int,
        overflow: Sequence[str],
        packing: str,
        pack_window: int,
        window_rows: int,
        groups: Sequence[int],
        pad_to_multiple: int,
        max_samples_per_row: int,
        max_leftover_bins: int | None,
        num_packers: int,
    ) -> None: ...

@final
class SampleList:
    """The samples of a rank, numbered over all shards of all streams, batch by batch, as somebody works them out.
    `streams` are numbers among all streams and the samples of their shards; `most_ahead` chunks are kept at most."""

    def __init__(self, streams: Sequence[tuple[int, npt.NDArray[np.uint64]]], most_ahead: int) -> None: ...
    def push(
        self, samples: npt.NDArray[np.uint64], batch_ends: npt.NDArray[np.uint32], first_packer: int, begins_anew: bool
    ) -> bool:
        """Whole batches that come next; waits until there is room for them. False once the list is closed."""

    def fail(self, pickled: bytes) -> None:
        """`pickled` is the exception that is raised instead of further batches."""

    def close(self) -> None: ...

@final
class LaneHints:
    """Where lanes of `pack` stand: lane, position of the window's first sample, rows emitted of it, bins left over
    before it as positions."""

    def __init__(self, hints: Sequence[tuple[int, int, int, Sequence[Sequence[int]]]]) -> None: ...
    def list(self) -> list[tuple[int, int, int, list[list[int]]]]: ...

def pack_best_fit(sizes: npt.NDArray[np.uint32], seq_len: int, max_samples_per_row: int) -> list[list[int]]: ...

@final
class FoundryPacker:
    """`examples` are numbers and sizes; bins are lists of numbers."""

    def __init__(self, num_rows: int, seq_len: int, max_leftover_bins: int | None) -> None: ...
    def pack(self, examples: Sequence[tuple[int, int]]) -> list[list[int]]: ...
    @property
    def leftovers(self) -> list[list[int]]: ...

def plan_rows(
    store: ShardStore, order: Order, layout: Layout, first_row: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows of the global batch that begins at `first_row`: segments (n, 5) as stream, shard, sample, token_begin,
    token_end; and where each row ends among them."""

@final
class BatchFormat:
    """`fields` are names and integer types."""

    def __init__(
        self,
        *,
        fields: Sequence[tuple[str, str]],
        num_rows: int,
        seq_len: int,
        pad_id: int,
        pad_left: bool,
        documents: str,
        document_tokens: Sequence[int],
        counts_padding: bool,
        ignores_pad_id: bool,
        needs_loss: bool,
        is_packed: bool,
        pad_to_multiple: int,
        vocab_size: int,
        cu_seqlens_capacity: int,
    ) -> None: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def offsets(self) -> list[int]:
        """Where each field begins in a buffer, and cu_seqlens behind them, if it is asked for."""

@final
class BufferPool:
    def __init__(self, size_bytes: int, max_kept: int) -> None: ...
    def take(self) -> tuple[Buffer, int]:
        """A buffer, and its address for `Engine.next`."""

@final
class Buffer:
    """Memory that returns to its pool when the last view of it dies."""

    def arrays(self, format: BatchFormat) -> list[npt.NDArray[Any]]:
        """The fields, each an array over the buffer, and cu_seqlens behind them, if it is asked for."""

@final
class BatchInfo:
    """A batch that was handed over. Arrays have one entry a stream."""

    @property
    def end_row(self) -> int: ...
    @property
    def num_rows(self) -> int:
        """Rows up to the last that holds samples."""

    @property
    def row_tokens(self) -> list[int]: ...
    @property
    def row_loss(self) -> list[int]: ...
    @property
    def max_seqlen(self) -> int: ...
    @property
    def hints(self) -> LaneHints | None: ...
    @property
    def units(self) -> npt.NDArray[np.uint64]: ...
    @property
    def tokens(self) -> npt.NDArray[np.uint64]: ...
    @property
    def truncated_tokens(self) -> npt.NDArray[np.uint64]: ...
    @property
    def truncated_samples(self) -> npt.NDArray[np.uint64]: ...
    @property
    def dropped_tokens(self) -> npt.NDArray[np.uint64]: ...
    @property
    def dropped_samples(self) -> npt.NDArray[np.uint64]: ...
    @property
    def empty_samples(self) -> npt.NDArray[np.uint64]: ...
    @property
    def loss_tokens(self) -> npt.NDArray[np.uint64]: ...
    @property
    def no_loss_samples(self) -> npt.NDArray[np.uint64]: ...

@final
class Progress:
    """What an engine has done so far. Arrays have one entry a stream."""

    @property
    def num_batches(self) -> int: ...
    @property
    def plan_s(self) -> float: ...
    @property
    def supply_s(self) -> float: ...
    @property
    def load_s(self) -> float: ...
    @property
    def fill_s(self) -> float: ...
    @property
    def wait_s(self) -> float: ...
    @property
    def units(self) -> npt.NDArray[np.uint64]: ...
    @property
    def tokens(self) -> npt.NDArray[np.uint64]: ...
    @property
    def truncated_tokens(self) -> npt.NDArray[np.uint64]: ...
    @property
    def truncated_samples(self) -> npt.NDArray[np.uint64]: ...
    @property
    def dropped_tokens(self) -> npt.NDArray[np.uint64]: ...
    @property
    def dropped_samples(self) -> npt.NDArray[np.uint64]: ...
    @property
    def empty_samples(self) -> npt.NDArray[np.uint64]: ...
    @property
    def loss_tokens(self) -> npt.NDArray[np.uint64]: ...
    @property
    def no_loss_samples(self) -> npt.NDArray[np.uint64]: ...

@final
class Engine:
    """Fills buffers with the batches of one rank, in order. A buffer is an object that keeps memory alive, and the
    memory's address."""

    def __init__(
        self,
        *,
        store: ShardStore,
        order: Order,
        layout: Layout,
        format: BatchFormat,
        rank: int,
        world_size: int,
        first_row: int,
        hints_row: int,
        hints: LaneHints | None,
        list: SampleList | None,
        num_workers: int,
        buffers: Sequence[tuple[object, int]],
    ) -> None: ...
    def next(self, timeout_s: float, replacement: object, address: int) -> tuple[Any, BatchInfo]:
        """The oldest buffer, filled; `replacement` is filled later instead."""

    @property
    def last(self) -> BatchInfo | None:
        """What `next` told last, even if an interrupt came before its caller had it."""

    @property
    def has_batch(self) -> bool:
        """Whether `next` gives a batch at once."""

    @property
    def next_row(self) -> int | None:
        """The global row at which the batch begins that `next` gives next; None once it is closed."""

    def check_process(self) -> None:
        """Raises LoaderClosedError in a forked child."""

    def progress(self) -> Progress: ...
    def close(self) -> None: ...
