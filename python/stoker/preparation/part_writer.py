"""Rows of a part of raw data to a directory of token shards."""

from __future__ import annotations

import collections
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stoker.files import write_atomically
from stoker.preparation.examples import BadExampleError, Targets, Untokenized, read_example, stitch
from stoker.preparation.sources import Part, Row, read_rows
from stoker.preparation.tokenizer import TextTokenizer
from stoker.writer import MDSWriter

COUNTS_FILE = "counts.json"
TEXT_KEYS = ("text", "content")
EXAMPLE_KEYS = (("messages",), ("turns",), ("prompt", "response"), ("prompt", "completion"))
_BATCH_CHARS = 1 << 20  # that are tokenized at once
_SHOWN = 5  # errors that are kept with their places


@dataclass(frozen=True)
class Rules:
    """How rows become samples.

    Attributes:
        tokenizer: As `TextTokenizer` takes it.
        kind: "text" or "finetuning", of the shards.
        columns: Names of a row's columns by what they are: {"prompt": "instruction", "response": "output"}.
        add_special_tokens: Of text: what the tokenizer puts around a document.
        bos_text, eos_text: Of text: before and behind each document; None: nothing, or for the end the tokenizer's
            end-of-sequence token.
        targets: Of finetuning: where there is loss.
        concat: Of text: rows of so many tokens instead of documents, at the end; None: documents.
        wrap: Whether a document goes on in the next of these rows.
        foundry_compatible: int32 for all, as LLM Foundry's scripts write.
        compression: Of the shards: None or "zstd[:level]".
        skip_errors: Whether bad rows are left out; else the first one ends the preparation.
        mix: Sources and their shares of the tokens, by which they are mixed at the end; empty: they are not.
        mix_tokens: Tokens of the mixture; None: as many as the sources have.
        seed: Of its order.
    """

    tokenizer: str
    kind: str
    columns: tuple[tuple[str, str], ...] = ()
    add_special_tokens: bool = True
    bos_text: str | None = None
    eos_text: str | None = None
    targets: Targets = field(default_factory=Targets)
    concat: int | None = None
    wrap: bool = True
    foundry_compatible: bool = False
    compression: str | None = "zstd"
    skip_errors: bool = False
    mix: tuple[tuple[str, float], ...] = ()
    mix_tokens: int | None = None
    seed: int = 0

    @property
    def is_read_again(self) -> bool:
        """Whether parts are not yet what comes out."""
        return bool(self.concat or self.mix)

    def columns_of(self, vocab_size: int) -> dict[str, str]:
        """Columns of the shards and their encodings."""
        ids = "uint16" if vocab_size <= 1 << 16 else "uint32"
        labels = "int16" if vocab_size <= 1 << 15 else "int32"
        if self.foundry_compatible:
            ids = labels = "int32"
        if self.kind == "text":
            return {"tokens": f"ndarray:{ids}"}
        return {"input_ids": f"ndarray:{ids}", "labels": f"ndarray:{labels}"}


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

    def leave_out(self, error: Exception) -> None:
        reason = type(error).__name__.removesuffix("Error")
        self.bad[reason] = self.bad.get(reason, 0) + 1
        if len(self.shown) < _SHOWN:
            self.shown.append(str(error))


# ---------------------------------------------------------------- one part
def kind_of_row(values: Mapping[str, Any], columns: Mapping[str, str]) -> str | None:
    """ "finetuning" or "text", by a row's columns; None where they are those of neither.

    Args:
        values: The row.
        columns: As in `Rules`. Where those of examples are named, the text's must be, too.
    """
    named = example_columns(columns)
    of_text = [columns["text"]] if "text" in columns else [] if named else TEXT_KEYS
    of_examples = [tuple(named.values())] if named else EXAMPLE_KEYS
    found = {
        "finetuning": any(all(key in values for key in keys) for keys in of_examples),
        "text": any(key in values for key in of_text),
    }
    order = ("text", "finetuning") if "text" in columns and not named else ("finetuning", "text")
    return next((kind for kind in order if found[kind]), None)


def example_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """Those of prompts, responses and the like."""
    return {key: column for key, column in columns.items() if key != "text"}


def end_of(rules: Rules, tokenizer: TextTokenizer) -> list[int]:
    """What stands behind each document."""
    if rules.eos_text is not None:
        return tokenizer.encode([rules.eos_text])[0]
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


class PartWriter:
    """Makes samples of rows and writes them. One a process: it has the tokenizer.

    Attributes:
        tokenizer_sha256: The tokenizer's.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._columns = dict(rules.columns)
        self._tokenizer = TextTokenizer(rules.tokenizer)
        tokenizer = self._tokenizer
        self._end = end_of(rules, tokenizer)
        self._begin = tokenizer.encode([rules.bos_text])[0] if rules.bos_text else []
        self._out_columns = rules.columns_of(tokenizer.vocab_size)
        self._ids_dtype, *labels_dtype = (np.dtype(e.partition(":")[2]) for e in self._out_columns.values())
        self._labels_dtype = labels_dtype[0] if labels_dtype else None
        self.tokenizer_sha256 = tokenizer.sha256

    def write(self, part: Part, directory: Path) -> Counts:
        """Writes a part's shards and what became of its rows, its index last. What an earlier attempt left is removed.

        Raises:
            BadRowError, BadExampleError: A row is bad, and rules.skip_errors is not set; the message says where it is.
            OSError: A piece can't be read, or the directory not be written.
        """
        rules, counts = self._rules, Counts()
        is_text = rules.kind == "text"
        with MDSWriter(
            columns=self._out_columns,
            out=directory,
            compression=None if rules.is_read_again else rules.compression,
            hashes=None if rules.is_read_again else ["sha256"],
            exist_ok=True,
        ) as out:
            for sample in self._samples(part, counts):
                out.write(sample)
                ids = sample["tokens" if is_text else "input_ids"]
                counts.samples += 1
                counts.tokens += len(ids)
                counts.loss_tokens += len(ids) if is_text else int(np.count_nonzero(sample["labels"] != -100))
            write_atomically(str(directory / COUNTS_FILE), json.dumps(asdict(counts)).encode())
        return counts

    def _samples(self, part: Part, counts: Counts) -> Iterator[dict[str, np.ndarray]]:
        """In order. Among finetuning data, rows of text are examples with loss on every token."""
        for is_text, rows in itertools.groupby(self._rows(part, counts), self._is_text):
            samples_of = self._texts if is_text else self._examples
            yield from samples_of(rows, counts)

    def _is_text(self, row: Row) -> bool:
        return self._rules.kind == "text" or kind_of_row(row.values, self._columns) == "text"

    def _rows(self, part: Part, counts: Counts) -> Iterator[Row]:
        for row in itertools.chain.from_iterable(map(read_rows, part)):
            if isinstance(row, Row):
                yield row
            elif self._rules.skip_errors:
                counts.leave_out(row)
            else:
                raise row

    def _leave_out(self, row: Row, error: BadExampleError, counts: Counts) -> None:
        told = type(error)(f"{row.where}: {error}")
        if not self._rules.skip_errors:
            raise told from None
        counts.leave_out(told)

    # ------------------------------------------------------------ text
    def _texts(self, rows: Iterable[Row], counts: Counts) -> Iterator[dict[str, np.ndarray]]:
        """A sample a document, in order, tokenized some at a time."""
        documents: list[str] = []
        waiting = 0
        for row in rows:
            try:
                text = self._text_of(row.values)
            except BadExampleError as error:
                self._leave_out(row, error, counts)
                continue
            if not text:
                counts.bad["EmptyText"] = counts.bad.get("EmptyText", 0) + 1
                continue
            documents.append(text)
            waiting += len(text)
            if waiting >= _BATCH_CHARS:
                yield from self._tokenize(documents, counts)
                documents, waiting = [], 0
        yield from self._tokenize(documents, counts)

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

    def _tokenize(self, documents: list[str], counts: Counts) -> Iterator[dict[str, np.ndarray]]:
        parts = [list(cut_text(text)) for text in documents]
        ids = self._ids_of(part for of_document in parts for part in of_document)
        around = self._rules.add_special_tokens
        before = [*self._begin, *(self._tokenizer.before if around else [])]
        behind = self._tokenizer.behind if around else []
        if self._rules.eos_text is not None or behind[-1:] != self._end:
            behind = [*behind, *self._end]
        begin, end = np.array(before, self._ids_dtype), np.array(behind, self._ids_dtype)
        for text, of_document in zip(documents, parts, strict=True):
            counts.text_bytes += len(text.encode())
            tokens = np.concatenate([begin, *(next(ids) for _ in of_document), end])
            if self._labels_dtype is None:
                yield {"tokens": tokens}
            else:
                yield {"input_ids": tokens, "labels": tokens.astype(self._labels_dtype)}

    def _ids_of(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """The ids of each text, some at a time: a tokenizer takes a hundred bytes a token until they are an array."""
        waiting: list[str] = []
        size = 0
        for text in texts:
            waiting.append(text)
            size += len(text)
            if size >= _BATCH_CHARS:
                yield from (np.array(ids, self._ids_dtype) for ids in self._tokenizer.encode(waiting))
                waiting, size = [], 0
        yield from (np.array(ids, self._ids_dtype) for ids in self._tokenizer.encode(waiting))

    # ------------------------------------------------------------ finetuning
    def _examples(self, rows: Iterable[Row], counts: Counts) -> Iterator[dict[str, np.ndarray]]:
        """A sample an example, in order, tokenized some at a time."""
        examples: list[tuple[Row, Untokenized]] = []
        waiting = 0
        for row in rows:
            try:
                example = read_example(self._example_of(row.values), self._tokenizer)
            except BadExampleError as error:
                self._leave_out(row, error, counts)
                continue
            examples.append((row, example))
            waiting += sum(map(len, example.texts))
            if waiting >= _BATCH_CHARS:
                yield from self._stitch(examples, counts)
                examples, waiting = [], 0
        yield from self._stitch(examples, counts)

    def _stitch(self, examples: Sequence[tuple[Row, Untokenized]], counts: Counts) -> Iterator[dict[str, np.ndarray]]:
        tokenizer = self._tokenizer
        texts = [text for _, example in examples for text in example.texts]
        counts.text_bytes += sum(len(text.encode()) for text in texts)
        all_ids = iter(tokenizer.encode(texts))
        for row, example in examples:
            turns = example.turns_of([next(all_ids) for _ in example.texts], tokenizer)
            try:
                ids, labels = stitch(turns, self._rules.targets, tokenizer.eos_token_id)
                if max(ids) >= tokenizer.vocab_size:
                    raise BadExampleError(f"token id {max(ids)} is not in a vocabulary of {tokenizer.vocab_size}.")
            except BadExampleError as error:
                self._leave_out(row, error, counts)
                continue
            yield {"input_ids": np.array(ids, self._ids_dtype), "labels": np.array(labels, self._labels_dtype)}

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


def cut_text(text: str) -> Iterator[str]:
    """Parts of at most about a million characters, cut before white space, where tokenizers that split at words first
    (byte-level BPE) cut too: so that memory does not grow with a document."""
    begin = 0
    while len(text) - begin > _BATCH_CHARS:
        end = begin + _BATCH_CHARS
        while end < len(text) and not (text[end].isspace() and not text[end - 1].isspace()):
            end += 1
        yield text[begin:end]
        begin = end
    if begin < len(text):
        yield text[begin:]
