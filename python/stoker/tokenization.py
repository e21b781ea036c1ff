"""Token shards of raw ones, made while a run goes on: ahead of need, in helper processes, into a cache.

A cached shard is one MDS file with an entry for each sample of the raw one, and beside it what became of them. Both
appear under their names when they are whole. A cache belongs to one data set, one tokenizer and one set of rules: its
directory is named by their digest. Processes that share a cache make each shard once: who makes it holds a byte of the
directory's lock file, and the others wait for that.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from stoker.cache import OpenedFile, ShardCache
from stoker.errors import LoaderClosedError
from stoker.files import legible_name, write_atomically
from stoker.helpers import HelperDiedError, Helpers
from stoker.index import StreamIndex, TokenizerIdentity, read_index
from stoker.locks import lock_byte
from stoker.schema import TOKEN_COLUMNS
from stoker.stream import Stream

if TYPE_CHECKING:  # what prepares data is not loaded where nothing is to be prepared
    from stoker.preparation.rules import Rules
    from stoker.preparation.sources import Part
    from stoker.preparation.tokenizer import TextTokenizer

logger = logging.getLogger("stoker")

_T = TypeVar("_T")

# Arguments of `stoker.prepare` that make sense for a sample alone.
_OPTIONS = (
    *("add_special_tokens", "bos_text", "columns", "eos_text", "max_seq_len", "on_error", "pairs_apart", "preset"),
    *("target_prompts", "target_responses"),
)
_FIRST_SAMPLES = 1000  # by which the mean length is told
_ATTEMPTS = 3  # at a file that somebody removes meanwhile


class Tokenization:
    """How the raw streams of a loader become token streams."""

    def __init__(
        self,
        tokenizer: str | os.PathLike[str] | Callable[[], str],
        *,
        processes: int,
        cache_dir: str,
    ) -> None:
        """
        Args:
            tokenizer: As `stoker.prepare` takes it; or what gives that, called when a stream turns out to be raw.
            processes: That tokenize.
            cache_dir: Holds a directory for each stream.

        Raises:
            FileNotFoundError, ModuleNotFoundError, ValueError: As `stoker.prepare`.
        """
        self.processes = processes
        self._cache_dir = cache_dir
        self._given = tokenizer
        if not callable(tokenizer):
            _ = self._tokenizer  # is there
        self._helpers: Helpers | None = None
        self._mutex = threading.Lock()
        self._is_closed = False

    @functools.cached_property
    def _name(self) -> str:
        name = self._given() if callable(self._given) else self._given
        return os.path.abspath(name) if os.path.exists(name) else os.fspath(name)

    @functools.cached_property
    def _tokenizer(self) -> TextTokenizer:
        from stoker.preparation.tokenizer import TextTokenizer

        return TextTokenizer(self._name)

    def read_index(self, stream: Stream, raw: ShardCache | None) -> tuple[StreamIndex, RawStream | None]:
        """The index of a stream; of one that is raw as of the shards that are made of it, and how they are made.

        Args:
            stream: The stream.
            raw: Where its shards come from; None: they are there.

        Raises:
            FileNotFoundError, ValueError: As `stoker.index.read_index`; and as `rules`.
            ValueError: It has token ids that another tokenizer made.
        """
        found: list[Rules] = []

        def made_columns(names: Sequence[str], is_stokers: bool) -> Mapping[str, str] | None:
            rules = self.rules(stream, names, is_stokers=is_stokers)
            if rules is None:
                return None
            found.append(rules)
            return rules.columns_of(self._tokenizer.vocab_size)

        index = read_index(stream.directory, stream.bytes_dtype, stream.labels_dtype, made_columns=made_columns)
        made_by = index.tokenizer
        if made_by is not None and not callable(self._given) and made_by.sha256 != self._tokenizer.sha256:
            raise ValueError(
                f"stream {stream.name!r} has token ids of another tokenizer than `tokenizer`, with a vocabulary of "
                f"{made_by.vocab_size:,}: give the one that they were made with."
            )
        if not found:
            return index, None
        shards = self._shards(stream, index, found[0], is_remote=raw is not None)
        identity = TokenizerIdentity(**self._identity_of(found[0]))
        return replace(index, tokenizer=identity), RawStream(shards, raw, self)

    def rules(self, stream: Stream, columns: Sequence[str], *, is_stokers: bool = False) -> Rules | None:
        """The rules for the samples of a stream with these columns; None where they are tokens.

        Args:
            stream: The stream.
            columns: Of its shards.
            is_stokers: Whether stoker has written them: then labels are those of the ids beside them.

        Raises:
            ValueError: `stream.prepare` has an unknown argument or a wrong one, or the columns are of no known kind.
        """
        from stoker.preparation.examples import Targets
        from stoker.preparation.rules import Rules, find_form

        options = dict(stream.prepare or {})
        if set(columns) & set(TOKEN_COLUMNS):
            is_pair = options.get("pairs_apart", False) and {"input_ids", "labels"} <= set(columns)
            if is_stokers or not is_pair:
                return None
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise ValueError(
                f"prepare of stream {stream.name!r} has {', '.join(unknown)}: it may have {', '.join(_OPTIONS)}."
            )
        named = dict(options.pop("columns", {}))
        targets = Targets(options.pop("target_prompts", "none"), options.pop("target_responses", "all"))
        form = None if "preset" in options else find_form(columns, named)
        if form is None and "preset" not in options:
            raise ValueError(
                f"stream {stream.name!r} has the columns {', '.join(columns)}: say which of them is the text, or "
                'prompt and response, by prepare={"columns": {"text": NAME}} or {"prompt": NAME, "response": NAME}.'
            )
        return Rules(
            tokenizer=self._name,
            kind=stream.kind or ("finetuning" if form is None else form.kind),
            columns=tuple(named.items()),
            targets=targets,
            **options,
        )

    def helpers(self) -> Helpers:
        """The processes that tokenize, started where they are not.

        Raises:
            LoaderClosedError: Nobody wants them any more.
        """
        with self._mutex:
            if self._is_closed:
                raise LoaderClosedError("the loader is closed.")
            self._helpers = self._helpers or Helpers(self.processes)
            return self._helpers

    def close(self) -> None:
        """Ends the helpers, whatever they are doing. Idempotent."""
        with self._mutex:
            self._is_closed = True
            helpers, self._helpers = self._helpers, None
        if helpers is not None:
            helpers.close()

    def _shards(self, stream: Stream, index: StreamIndex, rules: Rules, *, is_remote: bool) -> RawShards:
        from stoker.preparation.plan import VERSION

        tokenizer = self._tokenizer
        of = (index.sha256, {**asdict(rules), "tokenizer": tokenizer.digest}, stream.bytes_dtype, VERSION)
        digest = hashlib.sha256(json.dumps(of).encode()).hexdigest()
        cache = os.path.join(self._cache_dir, f"{legible_name(str(stream.name))}-{digest[:16]}")
        return RawShards(
            name=str(stream.name),
            directory=stream.directory,
            token_dtype=stream.bytes_dtype,
            rules=replace(rules, date=_date_of(cache)) if tokenizer.chat_template.is_dated else rules,
            tokenizer_digest=tokenizer.digest,
            cache=cache,
            first_shard=int(np.argmax(index.samples > 0)),
            basenames=list(zip(index.raw_basenames, index.zip_basenames, strict=True)),
            is_remote=is_remote,
        )

    def _identity_of(self, rules: Rules) -> dict[str, Any]:
        from stoker.preparation.rules import identity_of

        return identity_of(rules, self._tokenizer)


@dataclass(frozen=True)
class RawShards:
    """Shards of which others are made, and how.

    Attributes:
        name: Of the stream.
        directory: Of the raw shards and their index.json.
        token_dtype: Integer type of token ids in columns of bytes.
        rules: How samples become tokens.
        tokenizer_digest: Of the tokenizer with which the loader began.
        cache: Where the made shards go.
        first_shard: That has a sample.
        basenames: Of the raw files of each shard: as they are, and compressed or "".
        is_remote: Whether they are copies of remote files, which come and go.
    """

    name: str
    directory: str
    token_dtype: str
    rules: Rules
    tokenizer_digest: str
    cache: str
    first_shard: int
    basenames: Sequence[tuple[str, str]]
    is_remote: bool

    def made_path(self, shard: int) -> str:
        """Where a made shard is, or will be: by the size and time of the raw one, where these tell whether it is still
        the same; for a remote one the index does, by whose digest the cache is named.

        Raises:
            OSError: The raw shard is not there.
        """
        if self.is_remote:
            return os.path.join(self.cache, f"{shard:06}.mds")
        raw, compressed = (os.path.join(self.directory, name) for name in self.basenames[shard])
        status = os.stat(compressed if self.basenames[shard][1] and not os.path.exists(raw) else raw)
        return os.path.join(self.cache, f"{shard:06}-{status.st_size:x}-{status.st_mtime_ns:x}.mds")

    def part(self, shard: int) -> Part:
        """A shard as the preparation reads it."""
        from stoker.preparation.sources import Reading, find_shard

        return (find_shard(self.directory, shard, Reading(token_dtype=self.token_dtype)),)


class RawStream:
    """A stream whose shards are made. Thread-safe.

    Attributes:
        shards: What they are made of.
    """

    def __init__(self, shards: RawShards, raw: ShardCache | None, tokenization: Tokenization) -> None:
        self.shards = shards
        self._raw = raw
        self._tokenization = tokenization
        self._left_out: Counter[str] = Counter()
        self._counted: set[int] = set()
        self._mutex = threading.Lock()

    def open_shard(self, shard: int) -> OpenedFile:
        """A made shard, made if it is not there.

        Raises:
            BadRowError, BadExampleError: A sample is bad, and the rules do not leave bad ones out.
            MissingShardError: The raw shard is remote and can't be had.
            OSError: The raw shard can't be read, or the cache not be written.
            LoaderClosedError: Nobody wants it any more.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            path = self.shards.made_path(shard)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                if attempt == _ATTEMPTS:
                    raise
                self._call(make_shard, shard, path)
            else:
                self._count(shard, path)
                return OpenedFile(path, fd, is_compressed=False)
        raise AssertionError("unreachable")

    def left_out(self) -> dict[str, int]:
        """Samples that are empty in the shards that this process has had, by reason."""
        return dict(self._left_out)

    def mean_tokens(self) -> float:
        """Mean tokens of the first samples, at most a thousand, of the first shard that has any: what stands for those
        of the stream where weights or the length of an epoch need them. Found once a cache, in a helper.

        Raises:
            ValueError: They hold no token.
            OSError: They can't be read.
        """
        first = self.shards.first_shard
        path = self.shards.made_path(first).removesuffix(".mds") + ".first.json"
        if not os.path.exists(path):
            os.makedirs(self.shards.cache, exist_ok=True)
            write_atomically(path, json.dumps(self._call(count_first, first)).encode())
        with open(path, "rb") as file:
            samples, tokens = json.load(file)
        if tokens == 0:
            raise ValueError(
                f"the first {samples:,} samples of stream {self.shards.name!r} hold no token: its length can't be "
                "told. Prepare it with `stoker prepare`."
            )
        return float(tokens / samples)

    def _call(self, function: Callable[..., _T], shard: int, *arguments: object) -> _T:
        """Calls a function of the raw shards in a helper, while the raw shard is there."""
        raw = None if self._raw is None else self._raw.open_shard(shard)
        try:
            return self._tokenization.helpers().submit(function, self.shards, shard, *arguments).result()
        except (CancelledError, HelperDiedError):
            self._tokenization.helpers()  # raises, if it is closed, whose doing that is then
            raise
        finally:
            if raw is not None:
                os.close(raw.fd)

    def _count(self, shard: int, path: str) -> None:
        """Notes what was left out of a shard, and tells it the first time."""
        with self._mutex:
            if shard in self._counted:
                return
            self._counted.add(shard)
        with open(_counts_path(path), "rb") as file:
            counts = json.load(file)
        if not counts["bad"]:
            return
        with self._mutex:
            self._left_out.update(counts["bad"])
        logger.warning(
            "stream %r: %d samples of shard %d are empty (%s). %s",
            self.shards.name,
            sum(counts["bad"].values()),
            shard,
            ", ".join(f"{reason}: {number}" for reason, number in sorted(counts["bad"].items())),
            " ".join(counts["shown"][:1]),
        )


def _date_of(cache: str) -> str:
    """The date on which a cache began: what chat templates take for today, in all of its shards."""
    from stoker.preparation.rules import today

    path = os.path.join(cache, "date")
    if not os.path.exists(path):
        os.makedirs(cache, exist_ok=True)
        write_atomically(path, today().encode())
    with open(path, encoding="utf-8") as file:
        return file.read()


# ---------------------------------------------------------------- in helpers
def count_first(shards: RawShards, shard: int) -> tuple[int, int]:
    """Samples and tokens of the first samples of a raw shard."""
    from stoker.preparation.part_writer import find_writer

    return find_writer(shards.rules, shards.tokenizer_digest).count_first(shards.part(shard), _FIRST_SAMPLES)


def make_shard(shards: RawShards, shard: int, path: str) -> None:
    """Makes a shard, unless another process has meanwhile.

    Raises:
        BadRowError, BadExampleError: A sample is bad, and the rules do not leave bad ones out.
        ValueError: The tokenizer has changed since the loader began.
        OSError: The raw shard can't be read, or the cache not be written.
    """
    from stoker.preparation.part_writer import find_writer

    os.makedirs(shards.cache, exist_ok=True)
    with lock_byte(os.path.join(shards.cache, "lock"), shard) as is_locked:
        if os.path.exists(path):
            return
        if is_locked:
            for left in glob.glob(os.path.join(glob.escape(shards.cache), f"{shard:06}-*.tmp")):
                shutil.rmtree(left)  # by a process that was killed
        with tempfile.TemporaryDirectory(prefix=f"{shard:06}-", suffix=".tmp", dir=shards.cache) as directory:
            writer = find_writer(shards.rules, shards.tokenizer_digest)
            made, counts = writer.write_shard(shards.part(shard), Path(directory))
            write_atomically(_counts_path(path), json.dumps(asdict(counts)).encode())
            os.replace(made, path)


def _counts_path(path: str) -> str:
    return path.removesuffix(".mds") + ".json"
