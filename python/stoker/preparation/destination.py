"""Where a preparation goes: a local directory, or a remote store."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from stoker.compressions import codes
from stoker.files import legible_name, write_atomically
from stoker.index import INDEX_FILE, TOTALS_FILE, read_entries
from stoker.options import default_cache_dir
from stoker.stores import is_url
from stoker.uploads import Uploader

PLAN_FILE = "plan.json"  # in the scratch, whose it is
_SHARD = re.compile(rf"shard\.\d{{5,}}\.mds(\.({'|'.join(codes())}))?")


class Destination(Protocol):
    """Shards by name, and at the end their index.

    Attributes:
        name: For the user.
        scratch: A local directory for what is not finished.
        is_eager: Whether it takes shards before all of them are there.
    """

    name: str
    scratch: Path
    is_eager: bool

    def read_index(self) -> dict[str, Any] | None:
        """The index that is there; None where there is none.

        Raises:
            FileExistsError: It is that of something else.
        """

    def check_empty(self) -> None:
        """Raises FileExistsError where there is something that is no beginning of a data set."""

    def remove(self) -> bool:
        """Removes the data set that is there, and the beginning of one: what its index lists, and nothing else. Returns
        whether there was any.

        Raises:
            ValueError: The index breaks its format.
        """

    def place(self, path: Path, name: str) -> None:
        """Moves a shard there; one that is not at its path any more has been moved before."""

    def finish(self, index: Mapping[str, Any]) -> None:
        """Writes the index, when all shards are there, and removes the scratch."""

    def close(self) -> None:
        """Ends what is going on."""


def open_destination(
    out: str | os.PathLike[str], scratch: str | os.PathLike[str] | None, storage_options: Mapping[str, Any] | None
) -> Destination:
    """A local directory, or a URL.

    Args:
        out: Either.
        scratch: Of a URL: where shards wait. Default: a directory in the user's cache.
        storage_options: Of a URL.

    Raises:
        ValueError: A local directory has no scratch, or the URL can't be opened.
        ModuleNotFoundError: A package is missing for the URL.
    """
    if is_url(os.fspath(out)):
        return _Remote(os.fspath(out).rstrip("/"), scratch, storage_options)
    if scratch is not None:
        raise ValueError(f"scratch is for an output in a remote store, and {out} is a local directory.")
    return _Local(Path(os.path.abspath(out)))


def check_apart(sources: Iterable[str | os.PathLike[str]], out: str | os.PathLike[str]) -> None:
    """
    Raises:
        ValueError: A source lies in the output, or the output in a source, so that writing changes what is read.
    """
    if is_url(os.fspath(out)):
        return
    target = Path(os.path.realpath(out))
    for source in sources:
        path = Path(os.path.realpath(source))
        if path.exists() and (path.is_relative_to(target) or (path.is_dir() and target.is_relative_to(path))):
            raise ValueError(f"{source} and the output {out} lie one within the other: choose another output.")


class _Local:
    is_eager = False

    def __init__(self, directory: Path) -> None:
        self.name = str(directory)
        self.scratch = directory / ".parts"
        self._directory = directory

    def read_index(self) -> dict[str, Any] | None:
        path = self._directory / INDEX_FILE
        return _decode(path.read_bytes(), self.name) if path.is_file() else None

    def check_empty(self) -> None:
        if self._directory.exists() and any(p != self.scratch for p in self._directory.iterdir()):
            raise FileExistsError(f"{self._directory} is not empty: choose another directory.")

    def remove(self) -> bool:
        has_index = (self._directory / INDEX_FILE).is_file()
        if not has_index and not (self.scratch / PLAN_FILE).is_file():
            return False
        for name in self._listed() if has_index else self._moved():
            (self._directory / name).unlink(missing_ok=True)
            for folder in (self._directory / name).parents:
                if folder == self._directory or any(folder.iterdir()):
                    break
                folder.rmdir()
        _remove_scratch(self.scratch)
        return True

    def _listed(self) -> list[str]:
        """The files of the data set, its index first: without it the others are nothing."""
        entries = read_entries(str(self._directory / INDEX_FILE))
        files = [file.basename for entry in entries for file in (entry.raw_data, entry.zip_data) if file is not None]
        return [INDEX_FILE, TOTALS_FILE, *files]

    def _moved(self) -> list[str]:
        """Shards of a beginning that was interrupted before they were listed."""
        return [path.name for path in self._directory.iterdir() if _SHARD.fullmatch(path.name)]

    def place(self, path: Path, name: str) -> None:
        if path.exists():
            os.replace(path, self._directory / name)

    def finish(self, index: Mapping[str, Any]) -> None:
        write_atomically(str(self._directory / INDEX_FILE), json.dumps(index, sort_keys=True).encode())
        shutil.rmtree(self.scratch, ignore_errors=True)  # somebody may still write there what is not needed any more

    def close(self) -> None:
        pass


class _Remote:
    """Shards are uploaded in the background, and removed here when they are there."""

    is_eager = True

    def __init__(
        self, url: str, scratch: str | os.PathLike[str] | None, storage_options: Mapping[str, Any] | None
    ) -> None:
        self.name = url
        digest = hashlib.sha256(url.encode()).hexdigest()[:16]
        default = os.path.join(default_cache_dir(), "prepare", f"{legible_name(url.rpartition('/')[2])}-{digest}")
        self.scratch = Path(os.path.abspath(default if scratch is None else scratch))
        self._uploader = Uploader(url, storage_options=storage_options)

    def read_index(self) -> dict[str, Any] | None:
        try:
            return _decode(self._uploader.store.read(INDEX_FILE), self.name)
        except FileNotFoundError:
            return None

    def check_empty(self) -> None:
        """What is there without an index is nobody's, or left over from what was interrupted."""
        if self.scratch.exists() and any(not p.name.startswith(PLAN_FILE) for p in self.scratch.iterdir()):
            raise FileExistsError(f"{self.scratch} is not empty: choose another scratch.")

    def remove(self) -> bool:
        index = self.read_index()
        if index is not None:
            self._uploader.store.delete(INDEX_FILE)  # first: without it the others are nothing
            for entry in index["shards"]:
                self._uploader.store.delete((entry["zip_data"] or entry["raw_data"])["basename"])
        return _remove_scratch(self.scratch) or index is not None

    def place(self, path: Path, name: str) -> None:
        if path.exists():
            self._uploader.put(str(path), name)

    def finish(self, index: Mapping[str, Any]) -> None:
        self._uploader.wait()
        self._uploader.store.write(INDEX_FILE, json.dumps(index, sort_keys=True).encode())
        shutil.rmtree(self.scratch, ignore_errors=True)

    def close(self) -> None:
        self._uploader.close()


def _decode(content: bytes, name: str) -> dict[str, Any]:
    """An index.

    Raises:
        FileExistsError: It is none.
    """
    try:
        index = json.loads(content)
    except ValueError:
        index = None
    if not isinstance(index, dict) or not isinstance(index.get("shards"), list):
        raise FileExistsError(f"{name} has an {INDEX_FILE} that is not of a data set: choose another directory.")
    return index


def _remove_scratch(scratch: Path) -> bool:
    """Removes what is not finished, where it is. Returns whether it was."""
    is_there = (scratch / PLAN_FILE).is_file()
    if is_there:
        shutil.rmtree(scratch)
    return is_there


class Joining:
    """Joins the shards of directories to one data set, under consecutive names. May be interrupted anywhere, and done
    again."""

    def __init__(self, destination: Destination, tokenizer: Mapping[str, Any]) -> None:
        """
        Args:
            destination: Where they go.
            tokenizer: For the index.
        """
        self._destination = destination
        self._tokenizer = tokenizer
        self._entries: list[dict[str, Any]] = []
        self._totals: dict[str, list[int]] = {"tokens": [], "loss_tokens": [], "longest_sample": []}
        self._rest: dict[str, Any] = {}

    def add(self, directory: Path) -> None:
        """Moves the shards of a directory, behind those before."""
        index = json.loads((directory / INDEX_FILE).read_text())
        for entry in index["shards"]:
            for data in (entry["raw_data"], entry["zip_data"]):
                if data is None:
                    continue
                was, suffix = data["basename"], data["basename"].split(".mds")[1]
                data["basename"] = f"shard.{len(self._entries):05}.mds{suffix}"
                self._destination.place(directory / was, data["basename"])
            self._entries.append(entry)
        self._rest = index.get("stoker", {})
        for name, of_all in self._totals.items():
            of_all += self._rest.get(name, [])

    def finish(self, **more: Any) -> None:
        """Writes the index, with more in it."""
        totals = self._totals if self._rest else {}  # shards of turns have none
        known = {**self._rest, **totals, "tokenizer": self._tokenizer}
        self._destination.finish({"shards": self._entries, "version": 2, "stoker": known, **more})


def join_locally(directory: Path, parts: Sequence[Path], tokenizer: Mapping[str, Any]) -> None:
    """Joins the shards of some directories in another one."""
    joining = Joining(_Local(directory), tokenizer)
    for part in parts:
        joining.add(part)
    joining.finish()
