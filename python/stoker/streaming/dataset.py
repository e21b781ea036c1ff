"""The data set that MosaicML Streaming's users have: random access, and its order of samples for torch's DataLoader."""

from __future__ import annotations

import math
import os
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset

from stoker.distributed import find_ranks
from stoker.encodings import is_mds_encoding_safe
from stoker.index import index_path
from stoker.remote import ranks_of_a_node
from stoker.streaming.array import Array
from stoker.streaming.epoch_order import OrderSharing
from stoker.streaming.progress import Place, Progress, Seat, Settings, parse_state
from stoker.streaming.shards import Shards, StreamShards, read_indexes
from stoker.streaming.stream import Stream, apply_weights, name_streams
from stoker.streaming_order import EpochOrder, StreamingOrder, World
from stoker.units import parse_bytes, parse_count

_CHUNK = 4096  # samples at most whose order is asked for at a time
_SHARED_SAMPLES = 1 << 18  # of an epoch, from which on its order is worth sharing


class StreamingDataset(Array, IterableDataset):  # type: ignore[misc]
    """Samples of MDS shards in the order of MosaicML Streaming 0.13, with its arguments.

    For torch's DataLoader, with `batch_size` samples a batch and any number of workers; the ranks are those of
    torch.distributed, or of RANK, WORLD_SIZE and LOCAL_WORLD_SIZE. Or by number: `dataset[i]`, counted over all shards
    of all streams. Each sample is a dict of its columns. A subclass may override `__getitem__` or `get_item`, through
    which iterating goes, too.

    Each `iter` gives the samples of the next epoch, for this rank and worker. Nothing is waited for but shards that are
    still to come, and nothing is left behind in shared memory or in files (progress.py has how workers know the epoch).

    Attributes:
        streams: The streams, with what their weights come to.
        num_samples, size: Samples of all shards.
        epoch_size: Samples of an epoch, over all ranks.
        num_shards, samples_per_shard, sample_offset_per_shard, stream_per_shard: Of all shards, (num_shards,) int64.
        num_streams, samples_per_stream, sample_offset_per_stream, shards_per_stream, shard_offset_per_stream: Of all
            streams, (num_streams,) int64.
    """

    def __init__(
        self,
        *,
        streams: Sequence[Stream] | None = None,
        remote: str | None = None,
        local: str | None = None,
        split: str | None = None,
        download_retry: int = 2,
        download_timeout: float = 60.0,
        validate_hash: str | None = None,
        keep_zip: bool = False,
        epoch_size: int | str | None = None,
        predownload: int | None = None,
        cache_limit: int | str | None = None,
        sampling_method: str = "balanced",
        sampling_granularity: int = 1,
        partition_algo: str = "relaxed",
        num_canonical_nodes: int | None = None,
        batch_size: int | None = None,
        shuffle: bool = False,
        shuffle_algo: str = "py1e",
        shuffle_seed: int = 9176,
        shuffle_block_size: int | None = None,
        batching_method: str = "random",
        allow_unsafe_types: bool = False,
        replication: int | None = None,
        stream_name: str = "stream",
        stream_config: dict[str, Any] | None = None,
    ) -> None:
        """Reads the streams' indexes; opens no shard.

        Args:
            streams: What to read; or else `remote` and `local` say where one stream is.
            remote, local, split: See `Stream`; `split` is that of streams without one, too.
            download_retry, download_timeout, validate_hash, keep_zip: The same.
            epoch_size: Samples of an epoch over all ranks, such as 100000 or "100k". Default: as the weights say.
            predownload: Samples ahead of a worker, whose shards are fetched. Default: 8 batches, or 64 samples.
            cache_limit: Bytes that the local copies of remote streams may take together, such as "100gb"; those of a
                node that share them each keep to it.
            sampling_method, sampling_granularity, partition_algo, num_canonical_nodes, shuffle, shuffle_algo,
                shuffle_seed, shuffle_block_size, batching_method: Of the order, see `stoker.streaming_order`.
            batch_size: Samples of a batch of a rank, as the DataLoader's. Needed to iterate.
            allow_unsafe_types: Reads columns of pickles, which may run any code.
            replication: So many ranks, one after the other, get the same samples.
            stream_name: "stream"; there is no registry of others: give `streams`.
            stream_config: More arguments of `Stream`, where there are no `streams`.

        Raises:
            ValueError: An argument breaks its rule, an index its format, or a column has pickles.
            RuntimeError: A stream has no samples.
            FileNotFoundError, PermissionError: There is no index, or it may not be read.
            OSError: A remote can't be reached, and there is no copy of its index.
        """
        if bool(streams) == (bool(remote) or bool(local)):
            raise ValueError("You must provide either `streams` or `remote`/`local`, but not both.")
        if stream_name != "stream":
            raise ValueError(f"stream_name is {stream_name!r}: there is no registry of streams here, give `streams`.")
        if predownload is not None and batch_size is not None and predownload < batch_size:
            warnings.warn(
                f"predownload < batch_size ({predownload} < {batch_size}).This may result in slower batch time. "
                "Recommendation is to set predownload to at-least batch_size.",
                stacklevel=2,
            )
        self.predownload = predownload if predownload is not None else 8 * batch_size if batch_size else 64
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.shuffle_algo = shuffle_algo
        self.shuffle_seed = shuffle_seed
        self.sampling_method = sampling_method
        self.sampling_granularity = sampling_granularity
        self.partition_algo = partition_algo
        self.batching_method = batching_method
        self.allow_unsafe_types = allow_unsafe_types
        self.replication = replication
        self.cache_limit = parse_bytes(cache_limit) if cache_limit else None
        self._set_world()
        self._given_block = shuffle_block_size
        initial = 64 * self._world.nodes if shuffle_algo in ("py1s", "py2s") else self._world.nodes
        self._apply(Settings(num_canonical_nodes or initial, shuffle_seed, None))
        count = _parse_epoch_size(epoch_size)

        default = {
            "remote": remote,
            "local": local,
            "split": split,
            "download_retry": download_retry,
            "download_timeout": download_timeout,
            "validate_hash": validate_hash,
            "keep_zip": keep_zip,
        }
        self.streams = list(streams) if streams else [Stream(**{**(stream_config or {}), **default})]
        for stream in self.streams:
            if not isinstance(stream, Stream):
                raise TypeError(f"{stream!r} is no stream: give stoker.streaming.Stream(...) for each directory.")
            stream.apply_default(default)
        specs = [stream.specify(name) for stream, name in zip(self.streams, name_streams(self.streams), strict=True)]
        indexes = read_indexes(specs)
        _check_samples(indexes, allow_unsafe_types=allow_unsafe_types)
        _check_limit(self.cache_limit, indexes)
        self._shards = Shards(indexes, cache_limit=self.cache_limit)
        self._measure([len(stream.entries) for stream in indexes])
        apply_weights(self.streams, specs, self.samples_per_stream.tolist(), epoch_size=count, seed=shuffle_seed)
        self.epoch_size = sum(int(stream.choose or 0) for stream in self.streams)
        self.length = math.ceil(self.epoch_size / self._world.num_ranks)
        self._progress = Progress()
        self._sharing = OrderSharing()
        self._order(batch_size or 1)  # checks the settings

    def _set_world(self) -> None:
        ranks = find_ranks(None, None)
        self._rank = ranks.rank
        self._world = World.replicated(
            1 if self.replication is None else self.replication, ranks.world_size, ranks_per_node=ranks_of_a_node()
        )

    def _measure(self, shards_per_stream: Sequence[int]) -> None:
        """Sets what is told of shards and streams."""
        self.num_samples = self._shards.num_samples
        self.num_streams = len(self.streams)
        self.samples_per_shard = self._shards.sizes
        self.num_shards = len(self.samples_per_shard)
        self.sample_offset_per_shard = _before(self.samples_per_shard)
        self.shards_per_stream = np.array(shards_per_stream, np.int64)
        self.shard_offset_per_stream = _before(self.shards_per_stream)
        self.stream_per_shard = np.repeat(np.arange(self.num_streams), self.shards_per_stream)
        self.samples_per_stream = np.array([of_stream.sum() for of_stream in self._samples_by_stream()])
        self.sample_offset_per_stream = _before(self.samples_per_stream)

    @property
    def num_ranks(self) -> int:
        """Ranks with samples of their own."""
        return self._world.num_ranks

    # ------------------------------------------------------------ random access
    @property
    def size(self) -> int:
        """Samples of all shards."""
        return self.num_samples

    def __len__(self) -> int:
        """Samples of an epoch of this rank, rounded up."""
        return self.length

    def get_item(self, sample_id: int, retry: int = 7) -> Any:
        """Reads a sample, after waiting for its shard.

        Args:
            sample_id: Its number, within [0, size).
            retry: Means nothing here: `download_retry` says how hard to try.

        Returns:
            The columns by name.

        Raises:
            IndexError: There is no such sample.
            CorruptShardError: The shard or the sample is not what the index says.
            MissingShardError: A remote shard can't be had.
            FileNotFoundError: A local one is not there.
        """
        return self._shards.sample(sample_id)

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """Fetches a shard, if it is not there.

        Args:
            shard_id: Its number among those of all streams.
            blocking: Whether to wait for it.

        Raises:
            CorruptShardError, MissingShardError, FileNotFoundError: See `get_item`; where `blocking`.
        """
        if blocking:
            self._shards.open(shard_id)
        else:
            self._shards.open_ahead(self.sample_offset_per_shard[shard_id : shard_id + 1])

    # ------------------------------------------------------------ iterating
    def __iter__(self) -> Iterator[Any]:
        """The samples of the next epoch, or from where a loaded state stands, for this rank and worker.

        Raises:
            ValueError: There is no `batch_size`, or the order can't be made with these settings and ranks.
            CorruptShardError, MissingShardError, FileNotFoundError: In place of a sample, see `get_item`.
        """
        seat = Seat.find()
        place = self._progress.begin(seat)
        if place.settings is not None:
            self._apply(place.settings)
        order = self._epoch_order(place, seat)
        waiting: deque[NDArray[np.int64]] = deque()
        num_ahead = 0
        for samples in _chunks(order, self._rank, seat, min(_CHUNK, max(1, self.predownload))):
            self._shards.open_ahead(samples)
            waiting.append(samples)
            num_ahead += len(samples)
            while num_ahead - len(waiting[0]) >= self.predownload:
                num_ahead -= len(waiting[0])
                yield from map(self.__getitem__, waiting.popleft().tolist())
        for samples in waiting:
            yield from map(self.__getitem__, samples.tolist())

    def _epoch_order(self, place: Place, seat: Seat) -> EpochOrder:
        def make() -> EpochOrder:
            return self._order(self.batch_size).epoch(
                place.epoch, place.sample_in_epoch, self._world, self.initial_physical_nodes
            )

        if seat.num_workers == 1 or not self.shuffle or self.epoch_size < _SHARED_SAMPLES:
            return make()
        return self._sharing.find(repr((seat[1:], place)), make)

    def _samples_by_stream(self) -> list[NDArray[np.int64]]:
        return np.split(self.samples_per_shard, self.shard_offset_per_stream[1:])

    def _order(self, batch_size: int | None) -> StreamingOrder:
        return StreamingOrder(
            shard_sizes=[of_stream.tolist() for of_stream in self._samples_by_stream()],
            choose=[int(stream.choose or 0) for stream in self.streams],
            proportion=[float(stream.proportion or 0) for stream in self.streams],
            sampling_method=self.sampling_method,
            sampling_granularity=self.sampling_granularity,
            partition_algo=self.partition_algo,
            num_canonical_nodes=self.num_canonical_nodes,
            shuffle=self.shuffle,
            shuffle_algo=self.shuffle_algo,
            shuffle_seed=self.shuffle_seed,
            shuffle_block_size=self.shuffle_block_size,
            batching_method=self.batching_method,
            batch_size=batch_size,
        )

    # ------------------------------------------------------------ states
    @property
    def next_epoch(self) -> int:
        """The number of the epoch that the next `iter` begins."""
        return self._progress.next_epoch()

    @next_epoch.setter
    def next_epoch(self, next_epoch: int) -> None:
        self._progress.set_next_epoch(next_epoch)

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """Where the run stands, as MosaicML Streaming says it; in the trainer's process.

        Args:
            num_samples: Samples that all ranks have taken of the epoch at hand, without those that are replicated.
            from_beginning: Whether they are counted from its beginning; False: from where it was resumed.

        Returns:
            epoch (-1 before the first one), sample_in_epoch, num_canonical_nodes, shuffle_seed and
            initial_physical_nodes. JSON.
        """
        place = self._progress.place()
        settings = place.settings or self._settings()
        nodes = settings.initial_physical_nodes
        return {
            "epoch": place.epoch,
            "sample_in_epoch": num_samples if from_beginning else place.sample_in_epoch + num_samples,
            "num_canonical_nodes": settings.num_canonical_nodes,
            "shuffle_seed": settings.shuffle_seed,
            "initial_physical_nodes": self._world.nodes if nodes is None else nodes,
        }

    def load_state_dict(self, obj: Mapping[str, Any]) -> None:
        """Lets the next `iter`, in whichever process, go on where a state stands, on any number of ranks with the same
        global batch size; in the trainer's process, on all ranks.

        Args:
            obj: What `state_dict` has returned, here or in MosaicML Streaming.

        Raises:
            ValueError: It is no such state.
        """
        self._progress.load(parse_state(obj))

    def _settings(self) -> Settings:
        return Settings(self.num_canonical_nodes, self.shuffle_seed, self.initial_physical_nodes)

    def _apply(self, settings: Settings) -> None:
        self.num_canonical_nodes, self.shuffle_seed, self.initial_physical_nodes = settings
        block = max(4_000_000 // self.num_canonical_nodes, 1 << 18)
        self.shuffle_block_size = block if self._given_block is None else self._given_block


def _chunks(order: EpochOrder, rank: int, seat: Seat, num_samples: int) -> Iterator[NDArray[np.int64]]:
    """The samples of a worker, whole batches of about so many at a time. Batch i of a rank is that of worker i modulo
    their number."""
    samples = order.rank(rank)
    turn = order.batch_size * seat.num_workers
    step = turn * max(1, num_samples // order.batch_size)
    for begin in range(0, len(samples), step):
        of_all = samples.samples(begin, min(begin + step, len(samples)))
        if seat.num_workers == 1:
            yield of_all
        else:
            batches = np.arange(len(of_all)) // order.batch_size
            yield of_all[batches % seat.num_workers == seat.worker]


def _before(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """What lies before each of these, in all."""
    return counts.cumsum() - counts


def _parse_epoch_size(epoch_size: int | str | None) -> int | None:
    """
    Raises:
        ValueError: It is negative, or no number.
    """
    if not epoch_size:
        return None
    if str(epoch_size).startswith("-"):
        raise ValueError(f"Epoch size cannot be negative. Received {epoch_size}.")
    return parse_count(epoch_size)


def _check_samples(streams: Sequence[StreamShards], *, allow_unsafe_types: bool) -> None:
    """
    Raises:
        RuntimeError: A stream has no samples.
        ValueError: A column has pickles, which are not allowed.
    """
    for stream in streams:
        if not any(entry.samples for entry in stream.entries):
            raise RuntimeError(f"Stream contains no samples: {index_path(stream.spec.directory)}.")
        columns = {
            pair for entry in stream.entries for pair in zip(entry.column_names, entry.column_encodings, strict=True)
        }
        for name, encoding in sorted(columns):
            if not allow_unsafe_types and not is_mds_encoding_safe(encoding):
                raise ValueError(
                    f"Column {name} contains an unsafe type: {encoding}. To proceed anyway, set "
                    "``allow_unsafe_types=True``."
                )


def _check_limit(limit: int | None, streams: Sequence[StreamShards]) -> None:
    """
    Raises:
        ValueError: It is below what MosaicML Streaming takes for the least.
    """
    if limit is None:
        return
    least = sum(os.stat(index_path(stream.spec.directory)).st_size for stream in streams)
    if limit <= least:
        raise ValueError(
            f"Minimum cache usage ({least} bytes) is larger than the cache limit ({limit} bytes). Please raise "
            "`cache_limit`. Recommendation is to provide a `cache_limit` as high as possible to avoid thrashing."
        )
    largest = max(
        entry.raw_data.bytes + (entry.zip_data.bytes if entry.zip_data else 0)
        for stream in streams
        for entry in stream.entries
    )
    if limit < 4 * largest:
        raise ValueError(
            f"Cache limit ({limit} bytes) is too low. Increase the `cache_limit` to at-least four times the largest "
            f"shard size ({largest} bytes) which includes raw (decompressed) and zip (compressed) file size. "
            "Recommendation is to provide a `cache_limit` as high as possible to avoid thrashing."
        )
