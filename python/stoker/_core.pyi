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
    def totals(self, stream: int, shard: int) -> tuple[int, int]:
        """Tokens of a shard, and of its longest sample."""

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
        unit: int,
        drop_last: bool,
        shuffle: bool,
        shuffle_block: int,
    ) -> None: ...

@final
class Layout:
    def __init__(self, kind: str, seq_len: int, overflow: str) -> None: ...

def plan_rows(
    store: ShardStore, order: Order, layout: Layout, first_row: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows of the global batch that begins at `first_row`: segments (n, 5) as stream, shard, sample, token_begin,
    token_end; and where each row ends among them."""

@final
class BatchFormat:
    def __init__(
        self,
        *,
        fields: Sequence[str],
        num_rows: int,
        seq_len: int,
        dtype: str,
        pad_id: int,
        pad_left: bool,
        documents: str,
        document_token: int,
        vocab_size: int,
    ) -> None: ...

@final
class BufferPool:
    def __init__(self, size_bytes: int, max_kept: int) -> None: ...
    def take(self) -> tuple[Buffer, int]:
        """A buffer, and its address for `Engine.next`."""

@final
class Buffer:
    """Memory that returns to its pool when the last view of it dies."""

    def arrays(self, dtype: np.dtype[Any], shape: tuple[int, int, int]) -> list[npt.NDArray[Any]]:
        """The buffer as shape[0] arrays of shape[1:], one behind the other."""

@final
class BatchInfo:
    """A batch that was handed over. Arrays have one entry a stream."""

    @property
    def end_row(self) -> int: ...
    @property
    def units(self) -> npt.NDArray[np.uint64]: ...
    @property
    def tokens(self) -> npt.NDArray[np.uint64]: ...
    @property
    def truncated_tokens(self) -> npt.NDArray[np.uint64]: ...
    @property
    def truncated_samples(self) -> npt.NDArray[np.uint64]: ...

@final
class Progress:
    """What an engine has done so far. Arrays have one entry a stream."""

    @property
    def num_batches(self) -> int: ...
    @property
    def plan_s(self) -> float: ...
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
        num_workers: int,
        buffers: Sequence[tuple[object, int]],
    ) -> None: ...
    def next(self, timeout_s: float, replacement: object, address: int) -> tuple[Any, BatchInfo]:
        """The oldest buffer, filled; `replacement` is filled later instead."""

    @property
    def next_row(self) -> int | None:
        """The global row at which the batch begins that `next` gives next; None once it is closed."""

    def check_process(self) -> None:
        """Raises LoaderClosedError in a forked child."""

    def progress(self) -> Progress: ...
    def close(self) -> None: ...
