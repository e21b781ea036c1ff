"""Rows of a part of raw data to a directory of token shards."""

from __future__ import annotations

import collections
import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stoker.encodings import EMPTY_ARRAY
from stoker.files import write_atomically
from stoker.preparation.boundaries import find_boundary
from stoker.preparation.examples import (
    IGNORE_LABEL,
    BadExampleError,
    EmptyTextError,
    NoLossError,
    Untokenized,
    read_example,
    stitch,
)
from stoker.preparation.rules import EXAMPLE_KEYS, TEXT_KEYS, Rules, end_of, example_columns, form_of_row, ids_columns
from stoker.preparation.sources import BadRowError, Part, Row, read_rows
from stoker.preparation.tokenizer import TextTokenizer
from stoker.writer import MDSWriter

COUNTS_FILE = "counts.json"
_BATCH_CHARS = 1 << 20  # that are tokenized at once
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
Sample = dict[str, np.ndarray]  # a column of ids, and labels in finetuning data


@dataclass(frozen=True)
class _Waiting:
    """A row that has kept its rules, and what of it is still to be tokenized.

    Attributes:
        row: The row.
        texts: Parts of a document, or the texts of an example.
        rest: What they are of: an example; a sample, if the row has token ids and there is no text; None: a document.
    """

    row: Row
    texts: list[str]
    rest: Untokenized | Sample | None

    @property
    def size(self) -> int:
        """Characters, or token ids."""
        num_ids = sum(map(len, self.rest.values())) if isinstance(self.rest, dict) else 0
        return sum(map(len, self.texts)) + num_ids


@functools.lru_cache(maxsize=8)
def find_writer(rules: Rules) -> PartWriter:
    """The writer of some rules in this process: its tokenizer takes a while to read."""
    return PartWriter(rules)


class PartWriter:
    """Makes samples of rows and writes them.

    Attributes:
        tokenizer_sha256: The tokenizer's.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._columns = dict(rules.columns)
        self._tokenizer = TextTokenizer(rules.tokenizer)
        tokenizer = self._tokenizer
        self._out_columns = rules.columns_of(tokenizer.vocab_size)
        self._dtypes = {name: np.dtype(e.partition(":")[2]) for name, e in self._out_columns.items()}
        self._ids_name = next(iter(self._dtypes))
        self._ids_dtype, self._labels_dtype = self._dtypes[self._ids_name], self._dtypes.get("labels")
        before, behind = _around(rules, tokenizer)
        self._before, self._behind = np.array(before, self._ids_dtype), np.array(behind, self._ids_dtype)
        asked_for = [tokenizer.encode([text])[0] if text else [] for text in (rules.bos_text, rules.eos_text)]
        self._around_ids = np.array(asked_for[0], self._ids_dtype), np.array(asked_for[1], self._ids_dtype)
        self.tokenizer_sha256 = tokenizer.sha256

    def write(self, part: Part, directory: Path) -> Counts:
        """Writes a part's shards and what became of its rows, its index last. What an earlier attempt left is removed.

        Raises:
            BadRowError, BadExampleError: A row is bad, and rules.on_error is "raise"; the message says where it is.
            OSError: A piece can't be read, or the directory not be written.
        """
        rules, counts = self._rules, Counts()
        with MDSWriter(
            columns=self._out_columns,
            out=directory,
            compression=None if rules.is_read_again else rules.compression,
            hashes=None if rules.is_read_again else ["sha256"],
            exist_ok=True,
        ) as out:
            for sample in self._samples(part, counts):
                if sample is not None:
                    out.write(sample)
            write_atomically(str(directory / COUNTS_FILE), json.dumps(asdict(counts)).encode())
        return counts

    def write_shard(self, part: Part, directory: Path) -> tuple[Path, Counts]:
        """Writes one shard with a sample for each row, empty where it is left out.

        Returns:
            The shard's file, and what became of the rows.

        Raises:
            BadRowError, BadExampleError, OSError: As `write`.
        """
        counts = Counts()
        empty = dict.fromkeys(self._out_columns, EMPTY_ARRAY)
        with MDSWriter(columns=self._out_columns, out=directory, size_limit=None) as out:
            for sample in self._samples(part, counts):
                out.write(empty if sample is None else sample)
        return directory / "shard.00000.mds", counts

    def count_first(self, part: Part, most: int) -> tuple[int, int]:
        """Samples and tokens of the first `most` rows of a part, fewer where they are long.

        Raises:
            BadRowError, BadExampleError, OSError: As `write`.
        """
        counts, num_rows = Counts(), 0
        for _ in self._samples(part, counts):
            num_rows += 1
            if num_rows >= most or counts.text_bytes >= _BATCH_CHARS:
                break
        return num_rows, counts.tokens

    def _samples(self, part: Part, counts: Counts) -> Iterator[Sample | None]:
        """Of each row, in order; None where it is left out. They are tokenized some at a time."""
        waiting: list[_Waiting | None] = []
        size = 0
        for row in itertools.chain.from_iterable(map(read_rows, part)):
            try:
                waiting.append(self._read(row, counts))
            except (BadRowError, BadExampleError) as error:
                self._leave_out(row, error, counts)
                waiting.append(None)
            size += waiting[-1].size if waiting[-1] else 0
            if size >= _BATCH_CHARS:
                yield from self._tokenize(waiting, counts)
                waiting, size = [], 0
        yield from self._tokenize(waiting, counts)

    def _read(self, row: Row | BadRowError, counts: Counts) -> _Waiting | None:
        if not isinstance(row, Row):
            raise row
        form = form_of_row(row.values, self._columns)
        if form == "ids":
            sample = self._sample_of(row)
            if not len(sample[self._ids_name]):
                raise EmptyTextError("it has no token.")
            return _Waiting(row, [], sample)
        if form == "text" or self._rules.kind == "text":
            text = self._text_of(row.values)
            if not text:
                raise EmptyTextError("its text is empty.")
            return _Waiting(row, list(cut_text(text)), None)
        example = read_example(self._example_of(row.values), self._tokenizer)
        return _Waiting(row, example.texts, example)

    def _leave_out(self, row: Row | BadRowError, error: BadRowError | BadExampleError, counts: Counts) -> None:
        """Raises the error, with the place of the row, unless it is to be counted."""
        is_counted = self._rules.on_error == "skip" or isinstance(error, (EmptyTextError, NoLossError))
        if is_counted and not counts.leave_out(error):
            return
        place = f"{row.where}: " if isinstance(row, Row) and isinstance(error, BadExampleError) else ""
        told = type(error)(f"{place}{error}")
        if not is_counted:
            raise told from None
        counts.shown.append(str(told))

    def _tokenize(self, waiting: Sequence[_Waiting | None], counts: Counts) -> Iterator[Sample | None]:
        ids = self._ids_of(text for one in waiting if one for text in one.texts)
        for one in waiting:
            if one is None:
                yield None
                continue
            of_texts = itertools.islice(ids, len(one.texts))
            try:
                sample = self._sample(one, of_texts)
            except BadExampleError as error:
                self._leave_out(one.row, error, counts)
                yield None
                continue
            counts.samples += 1
            counts.tokens += len(sample[self._ids_name])
            counts.loss_tokens += (
                int(np.count_nonzero(sample["labels"] != IGNORE_LABEL))
                if "labels" in sample
                else len(sample[self._ids_name])
            )
            counts.text_bytes += sum(len(text.encode()) for text in one.texts)
            yield sample

    def _ids_of(self, texts: Iterable[str]) -> Iterator[list[int]]:
        """The ids of each text, some at a time: a tokenizer takes a hundred bytes a token."""
        waiting: list[str] = []
        num_chars = 0
        for text in texts:
            waiting.append(text)
            num_chars += len(text)
            if num_chars >= _BATCH_CHARS:
                yield from self._tokenizer.encode(waiting)
                waiting, num_chars = [], 0
        yield from self._tokenizer.encode(waiting)

    # ------------------------------------------------------------ rows
    def _text_of(self, values: Mapping[str, Any]) -> str:
        keys = [self._columns["text"]] if "text" in self._columns else [key for key in TEXT_KEYS if key in values]
        if not keys or keys[0] not in values:
            raise BadExampleError(
                f"there is no column {' or '.join(keys or TEXT_KEYS)} among {', '.join(values)}: name the text's with "
                "columns text=NAME."
            )
        text = values[keys[0]]
        if not isinstance(text, str):
            raise BadExampleError(f"column {keys[0]} holds {type(text).__name__}, not text.")
        return text

    def _sample_of(self, row: Row) -> Sample:
        """Of a row that has token ids."""
        columns = ids_columns(row.values, self._columns)
        assert columns is not None
        vocab_size = self._tokenizer.vocab_size
        ids = _integers(row.values, columns[0], vocab_size).astype(self._ids_dtype)
        before, behind = _at_ends(row, *self._around_ids)
        if columns[1] is None or self._labels_dtype is None:
            return self._make([before, ids, behind])
        labels = _integers(row.values, columns[1], vocab_size, besides=IGNORE_LABEL).astype(self._labels_dtype)
        if len(labels) != len(ids):
            raise BadExampleError(f"there are {len(ids)} {columns[0]} and {len(labels)} labels: they go together.")
        if len(labels) and np.all(labels == IGNORE_LABEL):
            raise NoLossError(f"no label is left: all of them are {IGNORE_LABEL}.")
        return self._make([before, ids, behind], [before, labels, behind])

    def _sample(self, waiting: _Waiting, ids_of_texts: Iterable[list[int]]) -> Sample:
        if isinstance(waiting.rest, dict):
            return waiting.rest
        if waiting.rest is None:
            before, behind = _at_ends(waiting.row, self._before, self._behind)
            return self._make([before, *(np.array(ids, self._ids_dtype) for ids in ids_of_texts), behind])
        return self._example(waiting.rest, list(ids_of_texts))

    def _example(self, example: Untokenized, ids_of_texts: Sequence[list[int]]) -> Sample:
        tokenizer = self._tokenizer
        ids, labels = stitch(example.turns_of(ids_of_texts, tokenizer), self._rules.targets, tokenizer.eos_token_id)
        if max(ids) >= tokenizer.vocab_size:
            raise BadExampleError(f"token id {max(ids)} is not in a vocabulary of {tokenizer.vocab_size}.")
        return self._make([np.array(ids)], [np.array(labels)])

    def _make(self, ids: Sequence[np.ndarray], labels: Sequence[np.ndarray] | None = None) -> Sample:
        """A sample of arrays one behind the other. Without labels there is loss on every token."""
        all_ids = np.concatenate(ids).astype(self._ids_dtype)
        if self._labels_dtype is None:
            return {self._ids_name: all_ids}
        all_labels = all_ids if labels is None else np.concatenate(labels)
        return {self._ids_name: all_ids, "labels": all_labels.astype(self._labels_dtype)}

    def _example_of(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        if columns := example_columns(self._columns):
            missing = [column for column in columns.values() if column not in values]
            if missing:
                raise BadExampleError(f"there is no column {missing[0]} among {', '.join(values)}.")
            return {key: values[column] for key, column in columns.items()}
        for keys in EXAMPLE_KEYS:
            if all(key in values for key in keys):
                return {key: values[key] for key in keys}
        return values  # which kind_of refuses, naming its keys


def _at_ends(row: Row, before: np.ndarray, behind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What stands around a document, where the row is its beginning and its end."""
    return before[: None if row.is_begin else 0], behind[: None if row.is_end else 0]


def _integers(values: Mapping[str, Any], column: str, vocab_size: int, *, besides: int | None = None) -> np.ndarray:
    """A column of token ids: (num_tokens) of an integer type, each of the vocabulary, or `besides`."""
    try:
        array = np.asarray(values[column])
    except ValueError:  # lists of different lengths
        array = np.empty((0, 0))
    if array.shape == (0,):
        return np.empty(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise BadExampleError(f"column {column} holds {type(values[column]).__name__}, not a list of token ids.")
    wrong = np.flatnonzero(((array < 0) | (array >= vocab_size)) & (True if besides is None else array != besides))
    if len(wrong):
        raise BadExampleError(
            f"column {column} has {array[wrong[0]]} at {wrong[0]}, which is not in a vocabulary of {vocab_size}: give "
            "the tokenizer that it was made with."
        )
    return array


def _around(rules: Rules, tokenizer: TextTokenizer) -> tuple[list[int], list[int]]:
    """What stands before and behind each document."""
    begin = tokenizer.encode([rules.bos_text])[0] if rules.bos_text else []
    before, behind = (tokenizer.before, tokenizer.behind) if rules.add_special_tokens else ([], [])
    end = end_of(rules, tokenizer)
    is_there = rules.eos_text is None and behind[-1:] == end
    return [*begin, *before], behind if is_there else [*behind, *end]


def cut_text(text: str) -> Iterator[str]:
    """Parts of about a million characters at most, so that memory does not grow with a document."""
    begin = 0
    while len(text) - begin > _BATCH_CHARS:
        end = find_boundary(text, begin + _BATCH_CHARS)
        yield text[begin:end]
        begin = end
    if begin < len(text):
        yield text[begin:]
