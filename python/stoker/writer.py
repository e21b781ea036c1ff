"""Writes MDS shards, byte for byte as MosaicML Streaming's MDSWriter does where they are not compressed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stoker.compressions import compress, find_compression, in_words
from stoker.encodings import get_mds_encodings, parse_encoding
from stoker.files import write_atomically, write_durably
from stoker.hashes import get_hash
from stoker.index import INDEX_FILE, Totals, index_path
from stoker.schema import TOKEN_COLUMNS
from stoker.stores import is_url
from stoker.units import parse_bytes
from stoker.uploads import Uploader

ZSTD_FRAME_BYTES = 1 << 20  # raw bytes a frame: what a reader has to decode at least
_MAX_SHARD_BYTES = (1 << 32) - 1  # offsets are u32
_IGNORED = ("progress_bar", "max_workers", "retry")  # of MosaicML Streaming, about uploads


class MDSWriter:
    """Writes samples into a directory of MDS shards.

    The format (`version` 2) and its shard boundaries are those of MosaicML Streaming. Compressed shards are cut into
    independent zstd frames of 1 MiB of raw bytes (the last one may hold more), each with a checksum, which its readers
    accept: a reader decodes a frame and not the shard, and notices damage. Where a column `tokens`, or `input_ids`,
    holds ndarrays, and `labels` as many, index.json gets a `stoker` object with the tokens, loss tokens and longest
    sample of each shard.

    A remote `out` gets each shard when it is finished, in the background. index.json comes last, all at once: a
    directory without it is not finished. In a `with` block that raises, it is not written.

    Example:
        >>> with MDSWriter(columns={"tokens": "ndarray:uint16"}, out="data/web", compression="zstd") as out:
        ...     out.write({"tokens": np.array([5, 6, 7], np.uint16)})
    """

    def __init__(
        self,
        *,
        columns: Mapping[str, str],
        out: str | os.PathLike[str] | tuple[str, str],
        keep_local: bool = False,
        compression: str | None = None,
        hashes: Sequence[str] | None = None,
        size_limit: int | str | None = 1 << 26,
        exist_ok: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Makes the directory.

        Args:
            columns: Encoding of each column; docs/shards.md lists them.
            out: A directory, which must be empty or absent: local; or a URL, such as "s3://bucket/data", whose shards
                are written into a temporary directory first; or both, as (local, remote).
            keep_local: Of a remote `out`: what is written locally stays, and is not removed when it is uploaded.
            compression: None, or "zstd", "gz", "bz2", "br" or "snappy", with a level behind a colon, such as "zstd:7".
                Levels and defaults: zstd 1 to 22, 3; gz 0 to 9, 9; bz2 1 to 9, 9; br 0 to 11, 11; snappy has none.
                Choose zstd where it is free: the others are expanded on the disk before they are read.
            hashes: Names of hashes, sorted, to put into the index for each file.
            size_limit: Bytes a shard at most, such as 1 << 26 or "64mb"; None or 0: 4 GiB. A larger sample gets a
                shard of its own.
            exist_ok: Remove what the local directory holds, and write over what is at the URL.
            storage_options: Of the remote store, see docs/remote.md.
            **kwargs: `progress_bar`, `max_workers` and `retry` are accepted for compatibility and mean nothing here.

        Raises:
            FileExistsError: `out` holds something and `exist_ok` is False.
            TypeError: A column's encoding is not known.
            ValueError: Another argument breaks its rule.
            ModuleNotFoundError: A hash, a compression or a URL needs a package that is not installed.
            OSError: The directory can't be made, or the store not be reached.
        """
        unknown = sorted(set(kwargs) - set(_IGNORED))
        if unknown:
            raise ValueError(f"Invalid Writer argument(s): {unknown} ")
        self._columns = _parse_columns(columns)
        self._directory, remote = _places(out)
        self._compression = compression or None
        self._code, self._level = parse_compression(self._compression)
        self._hashes = list(hashes or [])
        if self._hashes != sorted(self._hashes):
            raise ValueError(f"Hashes must be unique and in sorted order. Found {self._hashes}.")
        self._hashers = {name: get_hash(name) for name in self._hashes}
        self._size_limit = _parse_size_limit(size_limit)
        _make_empty(self._directory, exist_ok)
        self._keep_local = keep_local
        self._uploader = None if remote is None else _open_uploader(remote, storage_options, exist_ok=exist_ok)

        config = {
            "column_encodings": [column.encoding for column in self._columns],
            "column_names": [column.name for column in self._columns],
            "column_sizes": [column.size for column in self._columns],
            "compression": self._compression,
            "format": "mds",
            "hashes": self._hashes,
            "size_limit": self._size_limit,
            "version": 2,
        }
        self._config = config
        self._config_json = json.dumps(config, sort_keys=True).encode()
        self._counter = _TokenCounter([column.name for column in self._columns])
        self._entries: list[dict[str, Any]] = []
        self._is_finished = False
        self._begin_shard()

    def write(self, sample: Mapping[str, Any]) -> None:
        """Adds one sample. Columns that the writer does not have are left out.

        Raises:
            KeyError: A column is missing, or bytes given for a column of fixed size have another size.
            AttributeError, ValueError, OverflowError: A value does not suit its column's encoding.
            ValueError: The writer is finished, or the shard would exceed 4 GiB.
            OSError: A shard that is full can't be written.
        """
        if self._is_finished:
            raise ValueError("the writer is finished: make a new one for another directory.")
        data = self._encode(sample)
        # The offset of a sample takes 4 bytes too.
        if self._size_limit is not None and self._size_limit < self._shard_bytes + 4 + len(data):
            self._flush()
        if self._shard_bytes + 4 + len(data) > _MAX_SHARD_BYTES:
            raise ValueError(
                f"a shard of {self._shard_bytes + 4 + len(data)} bytes exceeds the format's {_MAX_SHARD_BYTES}: set "
                "size_limit, or cut the sample."
            )
        self._samples.append(data)
        self._shard_bytes += 4 + len(data)
        self._counter.add(sample)

    def finish(self) -> None:
        """Writes the last shard and the index. Idempotent, and may be called again after an error.

        Raises:
            OSError: The directory can't be written to, or is full.
        """
        if self._is_finished:
            return
        if self._samples:
            self._flush()
        index: dict[str, Any] = {"shards": self._entries, "version": 2}
        if (totals := self._counter.totals) is not None:
            index["stoker"] = {
                "version": totals.version,
                "tokens": totals.tokens,
                "loss_tokens": totals.loss_tokens,
                "longest_sample": totals.longest_sample,
                "zstd_frame_bytes": ZSTD_FRAME_BYTES if self._code == "zstd" else None,
            }
        content = json.dumps(index, sort_keys=True).encode()
        write_atomically(index_path(self._directory), content)
        if self._uploader is not None:
            self._uploader.wait()
            self._uploader.store.write(INDEX_FILE, content)
        self._is_finished = True
        self._close()

    def __enter__(self) -> MDSWriter:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        try:
            if exception_type is None:
                self.finish()
        finally:
            self._is_finished = True
            self._close()

    def _close(self) -> None:
        """Ends uploads, and removes what was written for them alone. Idempotent."""
        uploader, self._uploader = self._uploader, None
        if uploader is not None:
            uploader.close()
            if not self._keep_local:
                shutil.rmtree(self._directory, ignore_errors=True)

    def _begin_shard(self) -> None:
        self._samples: list[bytes] = []
        self._shard_bytes = 4 + 4 + len(self._config_json)  # the sample count, the end of the last sample

    def _encode(self, sample: Mapping[str, Any]) -> bytes:
        """Size words of the variable columns, then all columns, in the order of their names."""
        sizes, values = [], []
        for column in self._columns:
            value = sample[column.name]
            data = value if isinstance(value, bytes) else column.encode(value)
            if column.size is None:
                sizes.append(len(data))
            elif len(data) != column.size:
                raise KeyError(
                    f"Unexpected data size; was this data typed with the correct encoding ({column.encoding})? Column "
                    f"{column.name} has {len(data)} bytes, not {column.size}."
                )
            values.append(data)
        return np.array(sizes, "<u4").tobytes() + b"".join(values)

    def _flush(self) -> None:
        """Writes the shard at hand, which may be empty: so does the reference where the first sample is too large."""
        sizes = [len(sample) for sample in self._samples]
        begin = 4 + 4 * (len(sizes) + 1) + len(self._config_json)
        offsets = begin + np.cumsum([0, *sizes], dtype=np.uint64)
        head = np.array([len(sizes), *offsets], "<u4").tobytes()
        raw = b"".join([head, self._config_json, *self._samples])
        basename = f"shard.{len(self._entries):05}.mds"
        zip_data = None
        if self._compression is None:
            write_durably(os.path.join(self._directory, basename), raw)
        else:
            is_zstd = self._code == "zstd"
            compressed = b"".join(_compress(raw, self._level)) if is_zstd else compress(raw, self._compression)
            zip_data = self._file_entry(f"{basename}.{self._code}", compressed)
            write_durably(os.path.join(self._directory, zip_data["basename"]), compressed)
        self._entries.append(
            {
                **self._config,
                "samples": len(sizes),
                "raw_data": self._file_entry(basename, raw),
                "zip_data": zip_data,
            }
        )
        if self._uploader is not None:
            name = basename if zip_data is None else zip_data["basename"]
            self._uploader.put(os.path.join(self._directory, name), name, keep=self._keep_local)
        self._counter.end_shard()
        self._begin_shard()

    def _file_entry(self, basename: str, data: bytes) -> dict[str, Any]:
        return {
            "basename": basename,
            "bytes": len(data),
            "hashes": {name: hasher(data) for name, hasher in self._hashers.items()},
        }


class _TokenCounter:
    """Counts tokens per shard, as long as every sample's token columns are arrays."""

    def __init__(self, columns: Sequence[str]) -> None:
        self._tokens = next((n for n in TOKEN_COLUMNS if n in columns), None)
        self._labels = "labels" if self._tokens == "input_ids" and "labels" in columns else None
        self.totals = None if self._tokens is None else Totals(tokens=[], loss_tokens=[], longest_sample=[])
        self._num_tokens = self._num_loss_tokens = self._longest = 0

    def add(self, sample: Mapping[str, Any]) -> None:
        if self.totals is None or self._tokens is None:
            return
        tokens = sample[self._tokens]
        labels = tokens if self._labels is None else sample[self._labels]
        if not (isinstance(tokens, np.ndarray) and isinstance(labels, np.ndarray)):
            self.totals = None  # bare bytes don't tell how many tokens they are
            return
        if labels.size != tokens.size:
            self.totals = None  # a prompt and its response, as LLM Foundry has them: not the labels of the tokens
            return
        self._num_tokens += tokens.size
        self._num_loss_tokens += tokens.size if self._labels is None else int(np.count_nonzero(labels != -100))
        self._longest = max(self._longest, tokens.size)

    def end_shard(self) -> None:
        if self.totals is not None:
            self.totals.tokens.append(self._num_tokens)
            self.totals.loss_tokens.append(self._num_loss_tokens)
            self.totals.longest_sample.append(self._longest)
        self._num_tokens = self._num_loss_tokens = self._longest = 0


class _Column(NamedTuple):
    """How one column is written."""

    name: str
    encoding: str
    size: int | None
    encode: Callable[[Any], bytes]


def _parse_columns(columns: Mapping[str, str]) -> list[_Column]:
    """The columns in the order of their names, in which they are written."""
    if not columns:
        raise ValueError("columns is empty: give at least one column and its encoding.")
    parsed = []
    for name in sorted(columns):
        try:
            encoding = parse_encoding(columns[name])
        except ValueError as error:
            raise TypeError(
                f"MDSWriter passed column `{name}` with encoding `{columns[name]}` is unsupported. Supported encodings "
                f"are {get_mds_encodings()}: {error}"
            ) from None
        parsed.append(_Column(name, columns[name], encoding.size, encoding.encode))
    return parsed


def parse_compression(compression: str | None) -> tuple[str | None, int]:
    """The name and the level of a compression such as "zstd:9"; of none, None and 0.

    Raises:
        ValueError: There is no such compression.
    """
    if compression is None:
        return None, 0
    try:
        return find_compression(compression)
    except ValueError:
        raise ValueError(f"Invalid compression: {compression}. stoker writes {in_words()}.") from None


def _parse_size_limit(size_limit: int | str | None) -> int | None:
    if not size_limit:
        return None
    if isinstance(size_limit, int) and size_limit < 0:
        raise ValueError(f"`size_limit` must be greater than zero, instead, found as {size_limit}.")
    limit = parse_bytes(size_limit)
    if limit > _MAX_SHARD_BYTES:
        raise ValueError(
            f"`size_limit` must be less than 2**32, instead, found as {limit}. This is because sample byte offsets are "
            "stored with uint32."
        )
    return limit or None


def _places(out: str | os.PathLike[str] | Sequence[str]) -> tuple[str, str | None]:
    """The local directory that is written to, and the URL that it is uploaded to, if there is one."""
    if isinstance(out, (str, os.PathLike)):
        place = os.fspath(out)
        return (tempfile.mkdtemp(prefix="stoker-write-"), place) if is_url(place) else (place, None)
    if len(out) != 2:
        raise ValueError(
            "Invalid `out` argument. It is either a string of local/remote directory or a list of two strings with "
            f"[local, remote]. Found {out!r}."
        )
    return os.fspath(out[0]), os.fspath(out[1])


def _open_uploader(url: str, storage_options: Mapping[str, Any] | None, *, exist_ok: bool) -> Uploader:
    uploader = Uploader(url, storage_options=storage_options)
    if not exist_ok:
        with contextlib.suppress(FileNotFoundError):
            uploader.store.stat(INDEX_FILE)
            uploader.close()
            raise FileExistsError(f"{url} has an index.json. Choose another place, or pass exist_ok=True.")
    return uploader


def _compress(raw: bytes, level: int) -> list[bytes]:
    """The zstd frames of a shard: one for each 1 MiB, but that the last one may hold more."""
    import zstandard

    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True)  # so that a damaged file is noticed
    view = memoryview(raw)
    begins = range(0, len(raw), ZSTD_FRAME_BYTES)
    frames = [compressor.compress(view[begin : begin + ZSTD_FRAME_BYTES]) for begin in begins]
    # The package zstd (1.5.7.2), by which MosaicML Streaming reads, adds up the content sizes of frames until one is
    # not smaller than all those behind it together, and takes the sum for that of all: a buffer that is too small, if
    # more than one is behind. So wherever that happens, what is behind becomes one frame.
    behind = sum(map(len, frames[-2:]))  # bytes of the frames behind number i, two at least
    for i in reversed(range(len(frames) - 2)):
        if len(frames[i]) >= behind:
            frames[i + 1 :] = [compressor.compress(view[begins[i + 1] :])]
            behind = len(frames[-1])
        behind += len(frames[i])
    return frames


def _make_empty(directory: str, exist_ok: bool) -> None:
    if os.path.isdir(directory) and os.listdir(directory):
        if not exist_ok:
            raise FileExistsError(f"Directory is not empty: {directory}. Choose another, or pass exist_ok=True.")
        shutil.rmtree(directory)
    os.makedirs(directory, exist_ok=True)
