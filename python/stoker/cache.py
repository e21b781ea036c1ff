"""The local copy of a remote stream: a directory with its index and the shards that have been fetched.

The directory looks like the remote one, so that other readers of the format can use it, but for `.stoker`: a lock file,
a note of which remote it is a copy of (remote.json), and what has come of shards that are not whole. A shard appears
under its name when it is whole and right. Who fetches one holds a byte of the lock file, its number; others wait for
that. The kernel lets go of it with the process, however that ends, so there is nothing to clean.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from stoker.compressions import decompress
from stoker.downloads import Download, DownloadError, PartialFile, Policy, Requests, RetryingStore, Traffic
from stoker.errors import MissingShardError
from stoker.files import write_durably
from stoker.hashes import get_hash, hash_file
from stoker.index_copy import OWN_DIRECTORY, FileEntry, IndexCopy, ShardEntry, read_listing
from stoker.locks import lock_byte
from stoker.marks import Marks
from stoker.stores import Store

logger = logging.getLogger("stoker")

_INDEX_BYTE = 1 << 40  # of the lock file: behind those of all shards
_AUTO = "auto"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_MAY_NOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class CacheOptions:
    """How a stream is fetched and kept; see `Stream`."""

    policy: Policy = field(default_factory=Policy)
    validate_hash: str | None = _AUTO
    validate_cached: bool | None = None
    keep_zip: bool | None = None
    expands_zstd: bool = False  # since who reads does not decode it


@dataclass(frozen=True)
class OpenedFile:
    """A file of a shard, open, so that it can be read whatever becomes of its name.

    Attributes:
        path: Its name.
        fd: A descriptor, which is the caller's to close.
        is_compressed: With zstd, as the index says.
    """

    path: str
    fd: int
    is_compressed: bool


@dataclass
class CacheCounts:
    """What a cache has done for this process.

    Attributes:
        hits: How often a shard was opened that was there: again, where it had to make room for others meanwhile.
        fetched: Shards that were not.
        traffic: What fetching them has cost.
    """

    hits: int = 0
    fetched: int = 0
    traffic: Traffic = field(default_factory=Traffic)


class ShardCache:
    """The local copy of one stream. Thread-safe."""

    def __init__(self, name: str, store: Store, directory: str, options: CacheOptions, requests: Requests) -> None:
        """
        Args:
            name: Of the stream, for errors.
            store: With index.json and the shards at its root.
            directory: Where they go. It is made.
            options: How.
            requests: Who makes requests.
        """
        self.name = name
        self.directory = directory
        self.counts = CacheCounts()
        # Keeps room for so many bytes while they are fetched.
        self.room: Callable[[int], AbstractContextManager[None]] = lambda size_bytes: nullcontext()
        self._options = options
        self._requests = requests
        self._store = RetryingStore(store, requests, options.policy, self.counts.traffic)
        self._download = Download(self._store)
        self._verified: set[int] = set()  # shards whose files this process has compared with their hashes
        self._count_mutex = threading.Lock()

    def fetch_index(self) -> None:
        """Makes index.json what it is at the remote, and stoker.json, if it has one. Where the remote can't be reached,
        a copy that is there is used.

        Raises:
            FileNotFoundError, PermissionError: The remote has no index, or it may not be read.
            ValueError: The directory has data that is not a copy of this remote, or the index does not have the hash
                that is asked for.
            DownloadError: The remote can't be reached, and there is no copy.
            OSError: The directory can't be written to, and is not what the remote is.
        """
        copy = IndexCopy(self.name, self._store, self.directory)
        try:
            if not copy.is_current():
                self._copy_index(copy)
        except DownloadError as error:
            copy.use_as_it_is(error)
        self._check_hashes()

    def _copy_index(self, copy: IndexCopy) -> None:
        try:
            os.makedirs(self._own(""), exist_ok=True)
            with self._locked(_INDEX_BYTE) as is_locked:
                if not copy.is_current():  # as another process has not made it meanwhile
                    copy.fetch(is_alone=is_locked)
        except OSError as error:  # read-only, and made by other means
            if error.errno not in _MAY_NOT_WRITE or not copy.is_same():
                raise

    def _check_hashes(self) -> None:
        """Whether the index has the hash that is asked for, of each shard."""
        asked = self._options.validate_hash
        if asked in (None, _AUTO):
            return
        get_hash(asked)
        for entry in self._shards:
            if asked not in entry.remote.hashes:
                raise ValueError(
                    f"stream {self.name!r}: Hash algorithm `{asked}` chosen for data validation does not match with "
                    f"those provided during dataset creation `{sorted(entry.remote.hashes)}`. Provide one of those."
                )

    # ------------------------------------------------------------ shards
    @functools.cached_property
    def _shards(self) -> list[ShardEntry]:
        return read_listing(self.directory)

    def open_shard(self, shard: int) -> OpenedFile:
        """A shard's file, fetched if it is not there or not right.

        Raises:
            MissingShardError: It can't be had.
            OSError: The directory can't be written to, or the disk is full.
            LoaderClosedError: Nobody wants it any more.
        """
        entry = self._shards[shard]
        opened = self._open_right(shard, entry)
        if opened is not None:
            self._count(hits=1)
            return opened
        try:
            os.makedirs(self._own(""), exist_ok=True)
            with self._locked(shard) as is_locked:
                if (opened := self._open_right(shard, entry)) is None:  # else another process has fetched it meanwhile
                    opened = self._fetch(shard, entry, is_locked=is_locked)
                    self._count(fetched=1)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the disk: those of stores have none
                raise self._disk_error(entry, error) from error
            raise self._missing(shard, entry, error) from error
        return opened

    def _open_right(self, shard: int, entry: ShardEntry) -> OpenedFile | None:
        """The file of a shard, if it is there and right: as it is, or compressed where the core reads that."""
        for file in entry.files:
            is_compressed = file is entry.zip_data
            if is_compressed and not self._is_read_compressed(entry):
                continue
            if (fd := self._open_valid(shard, file)) is not None:
                return OpenedFile(self._path(file), fd, is_compressed)
        return None

    def _open_valid(self, shard: int, file: FileEntry) -> int | None:
        """A descriptor of a file, if it is there and right."""
        path = self._path(file)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        if os.fstat(fd).st_size == file.bytes and self._is_valid(shard, file, path):
            touch(path)
            return fd
        os.close(fd)
        logger.warning("stream %r: %s is not what index.json says; it is fetched again.", self.name, path)
        return None

    def _is_valid(self, shard: int, file: FileEntry, path: str) -> bool:
        """Compares a file with its hashes: once after each start of the machine, before which a copy may have been
        lost with the power; or once a process."""
        checks = self._options.validate_cached
        if checks is False or shard in self._verified or not (hashes := self._hashes_of(file)):
            return True
        if checks is None and self._verified_files.has(shard):
            return True
        if any(hash_file(name, path) != digest for name, digest in hashes.items()):
            return False
        self._set_verified(shard)
        return True

    def _set_verified(self, shard: int) -> None:
        self._verified.add(shard)
        self._verified_files.add(shard)

    @functools.cached_property
    def _verified_files(self) -> Marks:
        return Marks(self._own(""), "verified")

    def _fetch(self, shard: int, entry: ShardEntry, *, is_locked: bool) -> OpenedFile:
        os.makedirs(os.path.dirname(self._path(entry.remote)), exist_ok=True)
        # Without a lock somebody else may write the same: then nothing is shared, and nothing left.
        prefix = f"{shard:06}-" if is_locked else f"{shard:06}.{os.getpid()}.{threading.get_ident()}-"
        is_expanded = bool(entry.zip_data) and (self._options.keep_zip is False or not self._is_read_compressed(entry))
        try:
            with self.room(entry.remote.bytes + (entry.raw_data.bytes if is_expanded else 0)):
                if is_expanded:
                    return OpenedFile(self._path(entry.raw_data), self._fetch_expanded(shard, entry, prefix), False)
                fd = self._download_file(shard, entry.remote, prefix)
                return OpenedFile(self._path(entry.remote), fd, bool(entry.zip_data))
        except BaseException as error:
            if not is_locked or (isinstance(error, OSError) and error.errno in _NO_ROOM):
                for unfinished in Path(self._own("")).glob(f"{prefix}*"):
                    unfinished.unlink(missing_ok=True)
            raise

    def _download_file(self, shard: int, file: FileEntry, prefix: str) -> int:
        """A descriptor of a file that was downloaded."""
        partial = PartialFile(self._own(""), prefix, file.bytes)
        try:
            fd = self._download.to_file(file.basename, partial, self._path(file), self._hashes_of(file))
        finally:
            partial.close()
        if self._hashes_of(file):
            self._set_verified(shard)
        return fd

    def _fetch_expanded(self, shard: int, entry: ShardEntry, prefix: str) -> int:
        """A descriptor of what a compressed file holds, of which one that is there is taken.

        Raises:
            DownloadError: It does not hold what the index says, also when it is fetched again.
        """
        compressed = entry.remote
        most_attempts = 1 if self._hashes_of(compressed) else self._options.policy.retries + 1
        attempts = 0
        while True:
            fd = self._open_valid(shard, compressed)
            if fd is None:
                fd = self._download_file(shard, compressed, prefix)
                attempts += 1
            with open(fd, "rb") as file:
                try:
                    return self._expand(entry, file.read(), prefix)
                except ValueError as error:
                    self.remove(self._path(compressed))
                    if attempts >= most_attempts:
                        raise DownloadError(f"{error} ({attempts} attempts)", attempts) from error
                    self.counts.traffic.add(retries=1)

    def _expand(self, entry: ShardEntry, compressed: bytes, prefix: str) -> int:
        data = decompress(compressed, str(entry.compression))
        if len(data) != entry.raw_data.bytes:
            raise ValueError(f"it holds {len(data)} bytes, not {entry.raw_data.bytes}")
        unfinished = self._own(f"{prefix}expanded")  # what a process leaves that is killed the next one writes over
        write_durably(unfinished, data)
        fd = os.open(unfinished, os.O_RDONLY | os.O_CLOEXEC)
        if not self._options.keep_zip:
            self.remove(self._path(entry.remote))  # first, so that none is left
        try:
            os.replace(unfinished, self._path(entry.raw_data))
        except OSError:
            os.close(fd)
            raise
        return fd

    def _hashes_of(self, file: FileEntry) -> dict[str, str]:
        """Those that are compared."""
        asked = self._options.validate_hash
        if asked == _AUTO:
            return dict(list(file.hashes.items())[:1])
        return {name: digest for name, digest in file.hashes.items() if name == asked}

    def _is_read_compressed(self, entry: ShardEntry) -> bool:
        """Whether who reads decodes it."""
        return str(entry.compression).partition(":")[0] == "zstd" and not self._options.expands_zstd

    # ------------------------------------------------------------ what is there
    def files(self) -> Iterator[tuple[int, str, os.stat_result]]:
        """The files of shards that are there: shard, path and state."""
        wanted = {file.basename: shard for shard, entry in enumerate(self._shards) for file in entry.files}
        for folder in sorted({os.path.dirname(basename) for basename in wanted}):
            with contextlib.suppress(FileNotFoundError), os.scandir(os.path.join(self.directory, folder)) as entries:
                for entry in entries:
                    shard = wanted.get(os.path.join(folder, entry.name))
                    with contextlib.suppress(FileNotFoundError):
                        if shard is not None and entry.is_file(follow_symlinks=False):
                            yield shard, entry.path, entry.stat(follow_symlinks=False)

    def unfinished_bytes(self) -> int:
        """Of what has come of shards that are not whole."""
        total = 0
        with contextlib.suppress(FileNotFoundError), os.scandir(self._own("")) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    total += entry.stat().st_blocks * 512
        return total

    def shard_bytes(self) -> Sequence[int]:
        """Bytes that each shard takes when it has been fetched."""
        return [max(file.bytes for file in entry.files) for entry in self._shards]

    def touch(self, shards: Iterable[int]) -> None:
        """Says that some shards are in use."""
        for shard in shards:
            for file in self._shards[shard].files:
                touch(self._path(file))

    def remove(self, path: str) -> None:
        """Removes a file that turned out to be broken, so that it is fetched again."""
        with contextlib.suppress(OSError):
            os.unlink(path)

    def _path(self, file: FileEntry) -> str:
        return os.path.join(self.directory, file.basename)

    def _own(self, name: str) -> str:
        return os.path.join(self.directory, OWN_DIRECTORY, name)

    def _locked(self, number: int) -> AbstractContextManager[bool]:
        """Waits for as long as a download may take; then whoever has the lock hangs, and is not waited for."""
        timeout_s = self._options.policy.total_timeout_s
        return lock_byte(self._own("lock"), number, timeout_s=timeout_s, is_over=lambda: self._requests.is_closed)

    def _count(self, *, hits: int = 0, fetched: int = 0) -> None:
        with self._count_mutex:
            self.counts.hits += hits
            self.counts.fetched += fetched

    # ------------------------------------------------------------ errors
    def _missing(self, shard: int, entry: ShardEntry, error: Exception) -> MissingShardError:
        url = f"{self._store.url}/{entry.remote.basename}"
        return MissingShardError(
            f"stream {self.name!r}: shard {shard} can't be had from {url}: {error}",
            stream=self.name,
            shard=shard,
            url=url,
            attempts=error.attempts if isinstance(error, DownloadError) else 1,
        )

    def _disk_error(self, entry: ShardEntry, error: OSError) -> OSError:
        if error.errno in _NO_ROOM:
            return OSError(
                error.errno,
                f"there is no room for {entry.remote.basename} of stream {self.name!r}: free some, give `local` "
                "another disk, or give the loader a cache_limit",
                self.directory,
            )
        return error


def touch(path: str) -> None:
    """Says that a file is in use: by its time of access, since that of change tells versions apart."""
    with contextlib.suppress(OSError):  # another user's; or it is gone
        os.utime(path, ns=(time.time_ns(), os.stat(path).st_mtime_ns))
