"""The local copy of a remote stream's index.json, and of the totals beside it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from typing import Any

import msgspec

from stoker.downloads import DownloadError, RetryingStore
from stoker.files import remove_unfinished, write_atomically
from stoker.index import INDEX_FILE, TOTALS_FILE, digest_of, index_path, is_inside

logger = logging.getLogger("stoker")

OWN_DIRECTORY = ".stoker"
_NOTE = "remote.json"


class FileEntry(msgspec.Struct, gc=False):
    """A file of a shard, as index.json lists it."""

    basename: str
    bytes: int
    hashes: dict[str, str] = {}

    def __post_init__(self) -> None:
        if not is_inside(self.basename):
            raise ValueError(f"the file name {self.basename!r} does not stay inside the directory")


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
    """The files of all shards, by the copy of an index.

    Raises:
        FileNotFoundError: There is no index.json.
        ValueError: It does not list shards, or one has a file elsewhere.
    """
    path = index_path(directory)
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=_Listing).shards
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"there is no {path}: a data set is a directory with it.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not what it should be: {error}. Write the data set again.") from None


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
        """Whether the copy is that of the remote, as far as the remote tells.

        Raises:
            FileNotFoundError, PermissionError: The remote has no index, or it may not be read.
            DownloadError: The remote can't be reached.
        """
        info = self._store.stat(INDEX_FILE)
        note = self._note()
        if not info.version or note.get("url") != self._store.url:
            return False
        if (note.get("version"), note.get("size")) != (info.version, info.size_bytes):
            return False
        content = self._content()
        if content is None or digest_of(content) != note.get("index"):
            return False
        return _tells_totals(content) or note.get("totals") == self._totals_version()

    def is_same(self) -> bool:
        """Whether the copy is that of the remote, by what is in it. Raises as `is_current`."""
        return self._content() == self._store.read(INDEX_FILE)

    def fetch(self, *, is_alone: bool) -> None:
        """Makes the copy what the remote is. Shards that another index described are removed.

        Args:
            is_alone: No other process does that now: what those have left that died in it is removed.

        Raises:
            FileNotFoundError, PermissionError, DownloadError: As `is_current`.
            ValueError: The directory has data that is not a copy of this remote.
        """
        totals_path, path = os.path.join(self._directory, TOTALS_FILE), index_path(self._directory)
        if is_alone:
            for own in (self._note_path, totals_path, path):
                remove_unfinished(own)
        info = self._store.stat(INDEX_FILE)
        content = self._store.read(INDEX_FILE)
        totals, totals_version = None, None
        if not _tells_totals(content) and (totals_version := self._totals_version()) is not None:
            totals = self._store.read(TOTALS_FILE)
        before = self._content()
        if before is not None and before != content:
            self._check_remote()
            self._remove_changed(before, content)
        note = {
            "url": self._store.url,
            "version": info.version,
            "size": info.size_bytes,
            "index": digest_of(content),
            "totals": totals_version,
        }
        # First: from now on it is a copy, whatever ends the process; and not a current one before the index is there.
        write_atomically(self._note_path, json.dumps(note).encode())
        if totals is not None:
            write_atomically(totals_path, totals)
        write_atomically(path, content)

    def use_as_it_is(self, error: DownloadError) -> None:
        """Makes do with the copy where the remote can't be reached, as an error told.

        Raises:
            DownloadError: There is none.
            ValueError: It is that of another remote.
        """
        if self._content() is None:
            raise DownloadError(f"stream {self._name!r}: its index can't be had: {error}", error.attempts) from None
        self._check_remote()
        logger.warning("stream %r: %s. The copy in %s is used.", self._name, error, self._directory)

    def _content(self) -> bytes | None:
        """Of the copy, if there is one."""
        try:
            with open(index_path(self._directory), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def _totals_version(self) -> str | None:
        """Of the remote's stoker.json; None: it has none."""
        try:
            return self._store.stat(TOTALS_FILE).version
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

    def _check_remote(self) -> None:
        """
        Raises:
            ValueError: The directory is the copy of another remote, or no copy: what is there may be all that there is.
        """
        url = self._note().get("url")
        if url != self._store.url:
            what = "holds a data set that was not fetched from a remote" if url is None else f"is the copy of {url}"
            raise ValueError(
                f"{self._directory} {what}, and its index is not that of {self._store.url}: give stream "
                f"{self._name!r} another `local`, or remove what is there."
            )

    def _remove_changed(self, before: bytes, after: bytes) -> None:
        """Removes the files of shards that are not the same by both indexes, as far as these tell, and totals that were
        counted for the one before."""
        try:
            old, new = (msgspec.json.decode(content, type=_Listing).shards for content in (before, after))
        except (msgspec.DecodeError, UnicodeDecodeError):  # reading it will say why
            return
        now = {file.basename: file for shard in new for file in shard.files}
        changed = [f.basename for shard in old for f in shard.files if not f.hashes or now.get(f.basename) != f]
        logger.warning(
            "stream %r: %s has changed since it was copied: %d files that it listed are fetched anew.",
            self._name,
            self._store.url,
            len(changed),
        )
        for basename in (*changed, TOTALS_FILE):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self._directory, basename))


def _tells_totals(index: bytes) -> bool:
    """Whether an index has the totals of its shards itself."""
    return b'"stoker"' in index
