"""Rows to samples: what is to be tokenized of a row, and what becomes of it afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stoker.foundry.errors import BadExampleError, UnknownExampleTypeError
from stoker.preparation.boundaries import find_boundary
from stoker.preparation.examples import (
    IGNORE_LABEL,
    EmptyTextError,
    NoLossError,
    Untokenized,
    check_loss,
    read_example,
    stitch,
)
from stoker.preparation.presets import find_preset
from stoker.preparation.rules import Rules, end_of, find_form
from stoker.preparation.sources import Row
from stoker.preparation.tokenizer import TextTokenizer

BATCH_CHARS = 1 << 20  # that are tokenized at once


@dataclass(frozen=True)
class Sample:
    """What is written of a row.

    Attributes:
        columns: Values by column: a column of ids, and labels in finetuning data; or `turns`.
        num_tokens: In it.
        num_loss_tokens: Those of them that have loss.
    """

    columns: dict[str, Any]
    num_tokens: int
    num_loss_tokens: int


@dataclass(frozen=True)
class Waiting:
    """A row that has kept its rules, and what of it is still to be tokenized.

    Attributes:
        row: The row.
        texts: Parts of a document, or the texts of an example.
        text_bytes: Of all of them, in UTF-8.
        rest: What they are of: an example; a sample, if the row has token ids and there is no text; None: a document.
    """

    row: Row
    texts: list[str]
    text_bytes: int
    rest: Untokenized | Sample | None

    @property
    def size(self) -> int:
        """Characters, or token ids."""
        return sum(map(len, self.texts)) + (self.rest.num_tokens if isinstance(self.rest, Sample) else 0)

    def goes_on(self, number: int) -> bool:
        """Whether a text goes on where another one ended: that before, or that of the row before."""
        return self.rest is None and (number > 0 or not self.row.is_begin)


class SampleMaker:
    """Makes samples of rows by rules.

    Attributes:
        columns: Columns of the samples and their encodings.
    """

    def __init__(self, rules: Rules, tokenizer: TextTokenizer) -> None:
        self._rules = rules
        self._named = dict(rules.columns)
        self._preset = None if rules.preset is None else find_preset(rules.preset)
        self._tokenizer = tokenizer
        self.columns = rules.columns_of(tokenizer.vocab_size)
        dtypes = rules.dtypes_of(tokenizer.vocab_size)
        self._ids_name = next(iter(dtypes))
        self._ids_dtype, self._labels_dtype = dtypes[self._ids_name], dtypes.get("labels")
        before, behind = _around(rules, tokenizer)
        self._before, self._behind = np.array(before, self._ids_dtype), np.array(behind, self._ids_dtype)
        asked_for = [tokenizer.encode([text])[0] if text else [] for text in (rules.bos_text, rules.eos_text)]
        self._around_ids = np.array(asked_for[0], self._ids_dtype), np.array(asked_for[1], self._ids_dtype)

    def read(self, row: Row) -> Waiting:
        """Checks a row and takes it apart.

        Raises:
            BadExampleError: It breaks a rule of its kind.
        """
        if self._preset is not None:
            row = replace(row, values=self._preset(row.values))
        form = find_form(row.values, self._named, self._rules.kind)
        if form is None:
            raise self._formless(row.values)
        if form.name == "ids" and self._rules.pairs_apart:
            vocab_size = self._tokenizer.vocab_size
            turn = {key: _integers(row.values, column, vocab_size).tolist() for key, column in form.columns.items()}
            return Waiting(row, [], 0, read_example({"turns": [turn]}, self._tokenizer.chat_template))
        if form.name == "ids":
            sample = self._sample_of_ids(row, form.columns)
            if not sample.num_tokens:
                raise EmptyTextError("it has no token.")
            return Waiting(row, [], 0, sample)
        if form.name == "text":
            (column,) = form.columns.values()
            texts = list(cut_text(_text_of(row.values, column)))
            return Waiting(row, texts, _count_bytes(texts), None)
        given = {key: row.values[column] for key, column in form.columns.items()}
        example = read_example(given, self._tokenizer.chat_template)
        return Waiting(row, example.texts, _count_bytes(example.texts), example)

    def make(self, waiting: Waiting, ids_of_texts: Iterable[list[int]]) -> Sample:
        """The sample of a row, whose texts have been tokenized.

        Raises:
            BadExampleError: It breaks a rule of its kind.
        """
        if isinstance(waiting.rest, Sample):
            return waiting.rest
        if waiting.rest is None:
            before, behind = _at_ends(waiting.row, self._before, self._behind)
            return self._sample([before, *(np.array(ids, self._ids_dtype) for ids in ids_of_texts), behind])
        return self._sample_of_example(waiting.rest, list(ids_of_texts))

    def _formless(self, values: Mapping[str, Any]) -> BadExampleError:
        """What to say of a row whose columns are those of no form."""
        asked_for = [column for column in self._named.values() if column not in values]
        if asked_for or self._rules.kind == "text":
            return BadExampleError(
                f"there is no column {' or '.join(asked_for or ('text', 'content'))} among {', '.join(values)}: name "
                "those that there are by columns, such as text=NAME."
            )
        return UnknownExampleTypeError(str(sorted(values, key=str)))

    # ------------------------------------------------------------ token ids
    def _sample_of_ids(self, row: Row, columns: Mapping[str, str]) -> Sample:
        vocab_size = self._tokenizer.vocab_size
        name = next(iter(columns.values()))
        ids = _integers(row.values, name, vocab_size).astype(self._ids_dtype)
        before, behind = _at_ends(row, *self._around_ids)
        if "labels" not in columns or self._labels_dtype is None:
            return self._sample([before, ids, behind])
        labels = _integers(row.values, columns["labels"], vocab_size, besides=IGNORE_LABEL).astype(self._labels_dtype)
        if len(labels) != len(ids):
            raise BadExampleError(f"there are {len(ids)} {name} and {len(labels)} labels: they go together.")
        if len(labels) and np.all(labels == IGNORE_LABEL):
            raise NoLossError(f"no label is left: all of them are {IGNORE_LABEL}.")
        return self._sample([before, ids, behind], [before, labels, behind])

    # ------------------------------------------------------------ examples
    def _sample_of_example(self, example: Untokenized, ids_of_texts: Sequence[list[int]]) -> Sample:
        rules, tokenizer = self._rules, self._tokenizer
        turns = example.turns_of(ids_of_texts, tokenizer)
        ids, labels = stitch(turns, rules.targets, None if rules.writes_turns else tokenizer.eos_token_id)
        if max(ids) >= tokenizer.vocab_size:
            raise BadExampleError(f"token id {max(ids)} is not in a vocabulary of {tokenizer.vocab_size}.")
        check_loss(labels, rules.max_seq_len)
        if not rules.writes_turns:
            return self._sample([np.array(ids)], [np.array(labels)])
        given = [{"input_ids": context, "labels": target} for context, target in turns]
        return Sample({"turns": given}, len(ids), len(labels) - labels.count(IGNORE_LABEL))

    def _sample(self, ids: Sequence[np.ndarray], labels: Sequence[np.ndarray] | None = None) -> Sample:
        """A sample of arrays one behind the other. Without labels there is loss on every token."""
        if self._rules.writes_turns:
            raise BadExampleError(
                "it is no prompt with a response: foundry_compatible writes turns, which text and token ids are not."
            )
        all_ids = np.concatenate(ids).astype(self._ids_dtype)
        if self._labels_dtype is None:
            return Sample({self._ids_name: all_ids}, len(all_ids), len(all_ids))
        all_labels = (all_ids if labels is None else np.concatenate(labels)).astype(self._labels_dtype)
        num_loss_tokens = int(np.count_nonzero(all_labels != IGNORE_LABEL))
        return Sample({self._ids_name: all_ids, "labels": all_labels}, len(all_ids), num_loss_tokens)


def _at_ends(row: Row, before: np.ndarray, behind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What stands around a document, where the row is its beginning and its end."""
    return before[: None if row.is_begin else 0], behind[: None if row.is_end else 0]


def _text_of(values: Mapping[str, Any], column: str) -> str:
    text = values[column]
    if not isinstance(text, str):
        raise BadExampleError(f"column {column} holds {type(text).__name__}, not text.")
    if not text:
        raise EmptyTextError("its text is empty.")
    return text


def _count_bytes(texts: Iterable[str]) -> int:
    """Of texts in UTF-8.

    Raises:
        BadExampleError: Python has the text, but no tokenizer.
    """
    try:
        return sum(len(text.encode()) for text in texts)
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise BadExampleError(f"its text has {half!a}, which is one half of a character without the other.") from None


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
    while len(text) - begin > BATCH_CHARS:
        end = find_boundary(text, begin + BATCH_CHARS)
        yield text[begin:end]
        begin = end
    if begin < len(text):
        yield text[begin:]
