"""Rows of a part of raw data to a directory of token shards."""

from __future__ import annotations

import collections
import functools
import itertools
import json
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stoker.encodings import EMPTY_ARRAY
from stoker.files import write_atomically
from stoker.foundry.errors import BadExampleError
from stoker.preparation.examples import EmptyTextError, NoLossError
from stoker.preparation.rules import Rules
from stoker.preparation.sample_maker import BATCH_CHARS, Sample, SampleMaker, Waiting
from stoker.preparation.sources import BadRowError, Part, Piece, Row, read_rows
from stoker.preparation.tokenizer import TextTokenizer
from stoker.writer import MDSWriter

COUNTS_FILE = "counts.json"
_SHOWN = 5  # errors that are kept with their places


@dataclass
class Counts:
    """What became of rows.

    Attributes:
        samples, tokens, loss_tokens: That were written.
        bad: Rows left out, by reason (the name of the error).
        shown: The first errors, with file and line.
        text_bytes: Of the text that was tokenized, in UTF-8.
        mixed: Of a mixture: samples and tokens of each source, by its name.
    """

    samples: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    shown: list[str] = field(default_factory=list)
    text_bytes: int = 0
    mixed: dict[str, list[int]] = field(default_factory=dict)

    def add(self, other: Counts) -> None:
        self.samples += other.samples
        self.tokens += other.tokens
        self.loss_tokens += other.loss_tokens
        self.text_bytes += other.text_bytes
        self.bad = dict(collections.Counter(self.bad) + collections.Counter(other.bad))
        self.shown = (self.shown + other.shown)[:_SHOWN]

    def leave_out(self, error: Exception) -> bool:
        """Counts a row that is left out. Returns whether it is one of the first, and is to be shown."""
        reason = type(error).__name__.removesuffix("Error")
        self.bad[reason] = self.bad.get(reason, 0) + 1
        return len(self.shown) < _SHOWN


# ---------------------------------------------------------------- one part
def _read(part: Part) -> Iterator[Row | BadRowError]:
    """The rows of all its pieces.

    Raises:
        BadRowError: What is broken is not one row.
    """
    return itertools.chain.from_iterable(map(read_rows, part))


def _read_to_the_end(piece: Piece) -> Iterator[Row | BadRowError]:
    """The rows of a piece. Where more is broken than one of them, that error is the last one."""
    try:
        yield from read_rows(piece)
    except BadRowError as error:
        yield error


@functools.lru_cache(maxsize=8)
def find_writer(rules: Rules, tokenizer_digest: str) -> PartWriter:
    """The writer of some rules in this process: its tokenizer takes a while to read.

    Args:
        rules: The rules.
        tokenizer_digest: Of the tokenizer with which the preparation began.

    Raises:
        ValueError: The tokenizer is another one here and now.
    """
    tokenizer = TextTokenizer(rules.tokenizer, date=rules.date)
    if tokenizer.digest != tokenizer_digest:
        raise ValueError(
            f"{rules.tokenizer} on {platform.node()} is another tokenizer than the one that the preparation began "
            "with: give all machines the same one, and leave it as it is meanwhile."
        )
    return PartWriter(rules, tokenizer)


class PartWriter:
    """Writes samples of rows."""

    def __init__(self, rules: Rules, tokenizer: TextTokenizer) -> None:
        self._rules = rules
        self._tokenizer = tokenizer
        self._maker = SampleMaker(rules, tokenizer)

    def write(self, part: Part, directory: Path) -> Counts:
        """Writes a part's shards and what became of its rows, its index last. What an earlier attempt left is removed.
        Of a piece in which more is broken than a row, the rest is left out as one row.

        Raises:
            BadRowError, BadExampleError: A row is bad, and rules.on_error is "raise"; the message says where it is.
            OSError: A piece can't be read, or the directory not be written.
        """
        rules, counts = self._rules, Counts()
        with MDSWriter(
            columns=self._maker.columns,
            out=directory,
            compression=None if rules.is_read_again else rules.compression,
            hashes=None if rules.is_read_again else ["sha256"],
            exist_ok=True,
        ) as out:
            rows = itertools.chain.from_iterable(map(_read_to_the_end, part))
            for sample in self._samples(rows, counts):
                if sample is not None:
                    out.write(sample.columns)
            write_atomically(str(directory / COUNTS_FILE), json.dumps(asdict(counts)).encode())
        return counts

    def write_shard(self, part: Part, directory: Path) -> tuple[Path, Counts]:
        """Writes one shard with a sample for each row, empty where it is left out.

        Returns:
            The shard's file, and what became of the rows.

        Raises:
            BadRowError: More is broken than a row, so that samples would lose their places.
            BadRowError, BadExampleError, OSError: As `write`.
        """
        counts = Counts()
        empty = dict.fromkeys(self._maker.columns, EMPTY_ARRAY)
        with MDSWriter(columns=self._maker.columns, out=directory, size_limit=None) as out:
            for sample in self._samples(_read(part), counts):
                out.write(empty if sample is None else sample.columns)
        return directory / "shard.00000.mds", counts

    def count_first(self, part: Part, most: int) -> tuple[int, int]:
        """Samples and tokens of the first `most` rows of a part, fewer where they are long.

        Raises:
            BadRowError, BadExampleError, OSError: As `write`.
        """
        counts, num_rows = Counts(), 0
        for _ in self._samples(_read(part), counts):
            num_rows += 1
            if num_rows >= most or counts.text_bytes >= BATCH_CHARS:
                break
        return num_rows, counts.tokens

    def _samples(self, rows: Iterable[Row | BadRowError], counts: Counts) -> Iterator[Sample | None]:
        """Of each row, in order; None where it is left out. They are tokenized some at a time."""
        waiting: list[Waiting | None] = []
        size = 0
        for row in rows:
            try:
                if not isinstance(row, Row):
                    raise row
                waiting.append(self._maker.read(row))
            except (BadRowError, BadExampleError) as error:
                self._leave_out(row, error, counts)
                waiting.append(None)
            except RecursionError:
                self._leave_out(row, BadExampleError("it is nested too deeply."), counts)
                waiting.append(None)
            size += waiting[-1].size if waiting[-1] else 0
            if size >= BATCH_CHARS:
                yield from self._tokenize(waiting, counts)
                waiting, size = [], 0
        yield from self._tokenize(waiting, counts)

    def _leave_out(self, row: Row | BadRowError, error: BadRowError | BadExampleError, counts: Counts) -> None:
        """Raises the error, with the place of the row, unless it is to be counted."""
        is_counted = self._rules.on_error == "skip" or isinstance(error, (EmptyTextError, NoLossError))
        if is_counted and not counts.leave_out(error):
            return
        place = f"{row.where}: " if isinstance(row, Row) and isinstance(error, BadExampleError) else ""
        message = f"{place}{error}".encode(errors="backslashreplace").decode()  # halves of characters can't be printed
        if not is_counted:
            error.args = (message,)
            raise error from None
        counts.shown.append(message)

    def _tokenize(self, waiting: Sequence[Waiting | None], counts: Counts) -> Iterator[Sample | None]:
        ids = self._ids_of((text, one.goes_on(i)) for one in waiting if one for i, text in enumerate(one.texts))
        for one in waiting:
            if one is None:
                yield None
                continue
            of_texts = itertools.islice(ids, len(one.texts))
            try:
                sample = self._maker.make(one, of_texts)
            except BadExampleError as error:
                self._leave_out(one.row, error, counts)
                yield None
                continue
            counts.samples += 1
            counts.tokens += sample.num_tokens
            counts.loss_tokens += sample.num_loss_tokens
            counts.text_bytes += one.text_bytes
            yield sample

    def _ids_of(self, texts: Iterable[tuple[str, bool]]) -> Iterator[list[int]]:
        """The ids of each text, which may go on where another one ended; some at a time: a tokenizer takes a hundred
        bytes a token."""
        for goes_on, alike in itertools.groupby(texts, key=lambda text: text[1]):
            encode = self._tokenizer.encode_rests if goes_on else self._tokenizer.encode
            waiting: list[str] = []
            num_chars = 0
            for text, _ in alike:
                waiting.append(text)
                num_chars += len(text)
                if num_chars >= BATCH_CHARS:
                    yield from encode(waiting)
                    waiting, num_chars = [], 0
            yield from encode(waiting)
