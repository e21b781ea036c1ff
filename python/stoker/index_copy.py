"""The local copy of a remote stream's index.json, and of the totals beside it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from typing import Any

import msgspec

from stoker.downloads import DownloadError, RetryingStore
from stoker.files import write_atomically
from stoker.index import TOTALS_FILE, digest_of, index_path
from stoker.stores import ObjectInfo

logger = logging.getLogger("stoker")

OWN_DIRECTORY = ".stoker"
_NOTE = "remote.json"


class FileEntry(msgspec.Struct, gc=False):
    """A file of a shard, as index.json lists it."""

    basename: str
    bytes: int
    hashes: dict[str, str] = {}


class ShardEntry(msgspec.Struct, gc=False):
    """The files of a shard."""

    raw_data: FileEntry
    zip_data: FileEntry | None = None
    compression: str | None = None

    @property
    def files(self) -> list[FileEntry]:
        """As it is, and compressed if there is such a file."""
        return [self.raw_data] if self.zip_data is None else [self.raw_data, self.zip_data]

    @property
    def remote(self) -> FileEntry:
        """The one that the remote has."""
        return self.zip_data or self.raw_data


class _Listing(msgspec.Struct):
    shards: list[ShardEntry]


def read_listing(directory: str) -> list[ShardEntry]:
    """The files of all shards, by the copy of an index that has been checked."""
    with open(index_path(directory), "rb") as file:
        return msgspec.json.decode(file.read(), type=_Listing).shards


class IndexCopy:
    """The copy of one stream's index. remote.json in `.stoker` notes of which remote, and which version of it."""

    def __init__(self, name: str, store: RetryingStore, directory: str) -> None:
        """
        Args:
            name: Of the stream, for errors.
            store: With index.json at its root.
            directory: Where the copy goes. It is made.
        """
        self._name = name
        self._store = store
        self._directory = directory

    def is_current(self) -> bool:
        """Whether the copy is that of the remote, as far as the remote tells; and whether, where the remote can't be
        reached, there is one.

        Raises:
            FileNotFoundError, PermissionError: The remote has no index, or it may not be read.
            ValueError: The directory is the copy of another remote.
            DownloadError: The remote can't be reached, and there is no copy.
        """
        try:
            info = self._store.stat("index.json")
        except DownloadError as error:
            if not os.path.isfile(index_path(self._directory)):
                raise DownloadError(
                    f"stream {self._name!r}: its index can't be had: {error}.", error.attempts
                ) from None
            self._check_remote()
            logger.warning("stream %r: %s. The copy in %s is used.", self._name, error, self._directory)
            return True
        return self._is_noted(info)

    def fetch(self) -> None:
        """Makes the copy what the remote is; to be called by one process at a time. Shards that another index described
        are removed.

        Raises:
            FileNotFoundError, PermissionError, DownloadError, ValueError: As `is_current`.
        """
        info = self._store.stat("index.json")
        content = self._store.read("index.json")
        totals = self._read_totals(content)
        path = index_path(self._directory)
        if os.path.isfile(path):
            with open(path, "rb") as file:
                before = file.read()
            if before != content:
                self._check_remote()
                self._remove_changed(before, content)
        write_atomically(path, content)
        if totals is not None:
            write_atomically(os.path.join(self._directory, TOTALS_FILE), totals)
        note = {"url": self._store.url, "version": info.version, "size": info.size_bytes, "index": digest_of(content)}
        write_atomically(self._note_path, json.dumps(note).encode())

    def _read_totals(self, index: bytes) -> bytes | None:
        """stoker.json, where index.json does not tell the totals and the remote has one."""
        if b'"stoker"' in index:
            return None
        try:
            return self._store.read(TOTALS_FILE)
        except (FileNotFoundError, PermissionError):  # some stores say that of what is not there
            return None

    @property
    def _note_path(self) -> str:
        return os.path.join(self._directory, OWN_DIRECTORY, _NOTE)

    def _note(self) -> dict[str, Any]:
        try:
            with open(self._note_path, "rb") as file:
                note = json.load(file)
        except (FileNotFoundError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def _is_noted(self, info: ObjectInfo) -> bool:
        note = self._note()
        if not info.version or note.get("url") != self._store.url:
            return False
        if (note.get("version"), note.get("size")) != (info.version, info.size_bytes):
            return False
        try:
            with open(index_path(self._directory), "rb") as file:
                return digest_of(file.read()) == note.get("index")
        except FileNotFoundError:
            return False

    def _check_remote(self) -> None:
        note = self._note()
        if note and note.get("url") != self._store.url:
            raise ValueError(
                f"{self._directory} is the copy of {note.get('url')}, not of {self._store.url}: give stream "
                f"{self._name!r} another `local`."
            )

    def _remove_changed(self, before: bytes, after: bytes) -> None:
        """Removes the files of shards that are not the same by both indexes, as far as these tell."""
        try:
            old, new = (msgspec.json.decode(content, type=_Listing).shards for content in (before, after))
        except msgspec.DecodeError:  # reading it will say why
            return
        now = {file.basename: file for shard in new for file in shard.files}
        changed = [f.basename for shard in old for f in shard.files if not f.hashes or now.get(f.basename) != f]
        logger.warning(
            "stream %r: %s has changed since it was copied: %d files that it listed are fetched anew.",
            self._name,
            self._store.url,
            len(changed),
        )
        for basename in changed:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self._directory, basename))
