"""Makes token shards of raw ones while a run goes on: ahead of need, in helper processes, into a cache.

A cached shard is one MDS file with an entry for each sample of the raw one, and beside it what became of them. Both
appear under their names when they are whole. A cache belongs to one data set, one tokenizer and one set of rules: its
directory is named by their digest, and a file by the size and time of what it was made from. Processes that share a
cache make each shard once: who makes it holds a byte of the directory's lock file, and the others wait for that.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import logging
import os
import pickle
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stoker import _core
from stoker.errors import LoaderClosedError
from stoker.files import legible_name, write_atomically
from stoker.helpers import Helpers
from stoker.index import StreamIndex, TokenizerIdentity, read_index
from stoker.locks import lock_byte
from stoker.schema import TOKEN_COLUMNS
from stoker.stream import Stream

if TYPE_CHECKING:  # what prepares data is not loaded where nothing is to be prepared
    from stoker.preparation.rules import Rules
    from stoker.preparation.sources import Part

logger = logging.getLogger("stoker")

# Arguments of `stoker.prepare` that make sense for a sample alone.
_OPTIONS = (
    *("add_special_tokens", "bos_text", "columns", "eos_text", "max_seq_len", "on_error", "preset"),
    *("target_prompts", "target_responses"),
)
_FIRST_SAMPLES = 1000  # by which the mean length is told


class Tokenization:
    """How the raw streams of a loader become token streams."""

    def __init__(self, tokenizer: str | os.PathLike[str], *, processes: int, cache_dir: str) -> None:
        """
        Args:
            tokenizer: As `stoker.prepare` takes it.
            processes: That tokenize.
            cache_dir: Holds a directory for each stream.

        Raises:
            FileNotFoundError, ModuleNotFoundError, ValueError: As `stoker.prepare`.
        """
        from stoker.preparation.tokenizer import TextTokenizer

        self.processes = processes
        self._cache_dir = cache_dir
        self._name = os.path.abspath(tokenizer) if os.path.exists(tokenizer) else os.fspath(tokenizer)
        self._tokenizer = TextTokenizer(self._name)

    def read_index(self, stream: Stream) -> tuple[StreamIndex, RawStream | None]:
        """The index of a stream; of one that is raw as of the shards that are made of it, and how they are made.

        Raises:
            FileNotFoundError, ValueError: As `stoker.index.read_index`; and as `rules`.
        """
        found: list[Rules] = []

        def made_columns(names: Sequence[str]) -> Mapping[str, str] | None:
            rules = self.rules(stream, names)
            if rules is None:
                return None
            found.append(rules)
            return rules.columns_of(self._tokenizer.vocab_size)

        index = read_index(stream.directory, stream.bytes_dtype, stream.labels_dtype, made_columns=made_columns)
        if not found:
            return index, None
        return self._open(stream, index, found[0])

    def rules(self, stream: Stream, columns: Sequence[str]) -> Rules | None:
        """The rules for the samples of a stream with these columns; None where they are tokens.

        Raises:
            ValueError: `stream.prepare` has an unknown argument or a wrong one, or the columns are of no known kind.
        """
        from stoker.preparation.examples import Targets
        from stoker.preparation.rules import Rules, kind_of_row

        if set(columns) & set(TOKEN_COLUMNS):
            return None
        options = dict(stream.prepare or {})
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise ValueError(
                f"prepare of stream {stream.name!r} has {', '.join(unknown)}: it may have {', '.join(_OPTIONS)}."
            )
        named = dict(options.pop("columns", {}))
        targets = Targets(options.pop("target_prompts", "none"), options.pop("target_responses", "all"))
        kind = "finetuning" if "preset" in options else kind_of_row(dict.fromkeys(columns), named)
        if kind is None:
            raise ValueError(
                f"stream {stream.name!r} has the columns {', '.join(columns)}: say which of them is the text, or "
                'prompt and response, by prepare={"columns": {"text": NAME}} or {"prompt": NAME, "response": NAME}.'
            )
        return Rules(
            tokenizer=self._name,
            kind=stream.kind or kind,
            columns=tuple(named.items()),
            targets=targets,
            **options,
        )

    def _open(self, stream: Stream, index: StreamIndex, rules: Rules) -> tuple[StreamIndex, RawStream]:
        from stoker.preparation.pipeline import VERSION
        from stoker.preparation.rules import identity_of

        tokenizer = self._tokenizer
        of = (index.sha256, {**asdict(rules), "tokenizer": tokenizer.sha256}, tokenizer.chat_template.text, VERSION)
        digest = hashlib.sha256(json.dumps(of).encode()).hexdigest()
        raw = RawStream(
            name=str(stream.name),
            directory=stream.directory,
            rules=rules,
            cache=os.path.join(self._cache_dir, f"{legible_name(str(stream.name))}-{digest[:16]}"),
            basenames=list(zip(index.raw_basenames, index.zip_basenames, strict=True)),
        )
        return replace(index, tokenizer=TokenizerIdentity(**identity_of(rules, tokenizer))), raw


@dataclass(frozen=True)
class RawStream:
    """A stream whose shards are made.

    Attributes:
        name: Of the stream.
        directory: Of the raw shards and their index.json.
        rules: How samples become tokens.
        cache: Where the made shards go.
        basenames: Of the raw files of each shard: as they are, and compressed or "".
    """

    name: str
    directory: str
    rules: Rules
    cache: str
    basenames: Sequence[tuple[str, str]]

    def made_path(self, shard: int) -> str:
        """Where a made shard is, or will be.

        Raises:
            OSError: The raw shard is not there.
        """
        raw, compressed = (os.path.join(self.directory, name) for name in self.basenames[shard])
        status = os.stat(compressed if self.basenames[shard][1] and not os.path.exists(raw) else raw)
        return os.path.join(self.cache, f"{shard:06}-{status.st_size:x}-{status.st_mtime_ns:x}.mds")

    def mean_tokens(self) -> float:
        """Mean tokens of the first samples, at most a thousand, of the first shard that has any: what stands for those
        of the stream where weights or the length of an epoch need them. Found once a cache, in a helper.

        Raises:
            ValueError: They hold no token.
            OSError: They can't be read.
        """
        path = self.made_path(0).removesuffix(".mds") + ".first.json"
        if not os.path.exists(path):
            os.makedirs(self.cache, exist_ok=True)
            with Helpers(1) as helpers:
                first = helpers.submit(_count_first, self).result()
            write_atomically(path, json.dumps(first).encode())
        with open(path, "rb") as file:
            samples, tokens = json.load(file)
        if tokens == 0:
            raise ValueError(
                f"the first {samples:,} samples of stream {self.name!r} hold no token: its length can't be told. "
                f"Prepare it with `stoker prepare`."
            )
        return float(tokens / samples)


def _part(raw: RawStream, shard: int) -> Part:
    from stoker.preparation.sources import find_shard

    return (find_shard(raw.directory, shard),)


def _count_first(raw: RawStream) -> tuple[int, int]:
    from stoker.preparation.part_writer import find_writer

    return find_writer(raw.rules).count_first(_part(raw, 0), _FIRST_SAMPLES)


def make_shard(raw: RawStream, shard: int, path: str) -> None:
    """Makes a shard, unless another process has meanwhile. Runs in a helper.

    Raises:
        BadRowError, BadExampleError: A sample is bad, and the rules do not leave bad ones out.
        OSError: The raw shard can't be read, or the cache not be written.
    """
    from stoker.preparation.part_writer import find_writer

    os.makedirs(raw.cache, exist_ok=True)
    with lock_byte(os.path.join(raw.cache, "lock"), shard) as is_locked:
        if os.path.exists(path):
            return
        if is_locked:
            for left in glob.glob(os.path.join(glob.escape(raw.cache), f"{shard:06}-*.tmp")):
                shutil.rmtree(left)  # by a process that was killed
        with tempfile.TemporaryDirectory(prefix=f"{shard:06}-", suffix=".tmp", dir=raw.cache) as directory:
            made, counts = find_writer(raw.rules).write_shard(_part(raw, shard), Path(directory))
            write_atomically(_counts_path(path), json.dumps(asdict(counts)).encode())
            os.replace(made, path)


def _counts_path(path: str) -> str:
    return path.removesuffix(".mds") + ".json"


class Materializer:
    """Serves a store with the shards that it wants, from a thread of its own and helpers. Belongs to one process."""

    def __init__(self, streams: Sequence[RawStream | None], processes: int) -> None:
        self._streams = streams
        self._processes = processes
        self._left_out: list[Counter[str]] = [Counter() for _ in streams]
        self._counted: set[tuple[int, int]] = set()
        self._store: _core.ShardStore | None = None
        self._thread: threading.Thread | None = None
        self._helpers: Helpers | None = None
        self._process = os.getpid()

    def left_out(self, stream: int) -> dict[str, int]:
        """Samples that are empty in the shards that this process has had, by reason."""
        return dict(self._left_out[stream])

    def serve(self, store: _core.ShardStore) -> None:
        """Begins to make what a store wants, for as long as it is not closed or serves another one.

        Raises:
            LoaderClosedError: It has begun in another process, of which this is a fork.
        """
        if store is self._store and os.getpid() == self._process:
            return
        if self._store is not None and os.getpid() != self._process:
            raise LoaderClosedError(
                "a loader that tokenizes works in the process that it was started in, and this is a fork: make the "
                "loader here."
            )
        self.close()
        self._process = os.getpid()
        self._store, self._helpers = store, Helpers(self._processes)
        self._thread = threading.Thread(
            target=self._work, args=(store, self._helpers), name="stoker-materialize", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and the helpers, whatever they are doing. Idempotent; in a fork it does nothing."""
        if self._store is None or os.getpid() != self._process:
            return
        assert self._helpers is not None
        assert self._thread is not None
        self._store.close_supply()
        self._helpers.close()
        self._thread.join()
        self._store = self._helpers = self._thread = None

    def _work(self, store: _core.ShardStore, helpers: Helpers) -> None:
        free = threading.Semaphore(self._processes)  # helpers: what is wanted most is chosen when one has time
        while True:
            free.acquire()
            wanted = store.take_wanted()
            if wanted is None:
                return
            stream, shard = wanted
            raw = self._streams[stream]
            assert raw is not None
            try:
                path = raw.made_path(shard)
                is_there = os.path.exists(path)
            except OSError as error:
                store.set_failed(stream, shard, pickle.dumps(error))
                free.release()
                continue
            finish = functools.partial(self._finish, store, stream, shard, path)
            if is_there:
                finish(None)
                free.release()
            else:
                future = helpers.submit(make_shard, raw, shard, path)
                future.add_done_callback(finish)
                future.add_done_callback(lambda _: free.release())

    def _finish(self, store: _core.ShardStore, stream: int, shard: int, path: str, future: Future[None] | None) -> None:
        error = future.exception() if future is not None and not future.cancelled() else None
        if future is not None and future.cancelled():
            error = LoaderClosedError("the loader is closed.")
        if error is None:
            try:
                size = os.stat(path).st_size
                self._count(stream, shard, path)
            except OSError as of_file:
                error = of_file
        if error is None:
            store.set_ready(stream, shard, path, size)
        else:
            store.set_failed(stream, shard, pickle.dumps(error))

    def _count(self, stream: int, shard: int, path: str) -> None:
        """Notes what was left out of a shard, and tells it the first time."""
        if (stream, shard) in self._counted:
            return
        self._counted.add((stream, shard))
        with open(_counts_path(path), "rb") as file:
            counts = json.load(file)
        if not counts["bad"]:
            return
        self._left_out[stream].update(counts["bad"])
        raw = self._streams[stream]
        assert raw is not None
        logger.warning(
            "stream %r: %d samples of shard %d are empty (%s). %s",
            raw.name,
            sum(counts["bad"].values()),
            shard,
            ", ".join(f"{reason}: {number}" for reason, number in sorted(counts["bad"].items())),
            " ".join(counts["shown"][:1]),
        )
