"""How rows of raw data become samples."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stoker.options import check_index
from stoker.preparation.examples import EXAMPLE_KEYS, Targets
from stoker.preparation.presets import find_preset
from stoker.preparation.tokenizer import TextTokenizer
from stoker.writer import parse_compression

# What rows may be, by the usual names of their columns; the first that fits.
_FORMS: dict[str, tuple[tuple[str, ...], ...]] = {
    "example": tuple(keys for ways in EXAMPLE_KEYS.values() for keys in ways),
    "text": (("text",), ("content",)),
    "ids": (("tokens",), ("input_ids", "labels"), ("input_ids",)),  # token ids already
}
_NAMES = sorted({key for ways in _FORMS.values() for keys in ways for key in keys} - {"content"})  # that users give


@dataclass(frozen=True)
class Rules:
    """How rows become samples.

    Attributes:
        tokenizer: As `TextTokenizer` takes it.
        kind: "text" or "finetuning", of the shards.
        columns: Names of a row's columns by what they are: {"prompt": "instruction", "response": "output"}. Rows that
            do not have them are read by the usual names.
        preset: Makes examples of rows, see `find_preset`; None: they are examples.
        add_special_tokens: Of text: what the tokenizer puts around a document.
        bos_text, eos_text: Of text: before and behind each document; None: nothing, or for the end the tokenizer's
            end-of-sequence token.
        targets: Of finetuning: where there is loss.
        pairs_apart: Of finetuning: `input_ids` and `labels` of a row are a prompt and its response, as in older data of
            LLM Foundry, and not labels of these ids.
        max_seq_len: Of finetuning: an example without loss among so many first tokens is left out; None: whatever its
            length. Nothing is cut.
        concat: Of text: rows of so many tokens instead of documents, at the end; None: documents.
        wrap: Whether a document goes on in the next of these rows.
        foundry_compatible: As LLM Foundry's scripts write: int32 ids of text, and of examples `turns`, as JSON.
        compression: Of the shards, as `MDSWriter` takes it: None, "zstd[:level]", ...
        on_error: "raise": the first bad row ends the preparation; "skip": they are left out. Empty texts, and examples
            without loss, are left out in any case.
        mix: Sources and their shares of the tokens, by which they are mixed at the end; empty: they are not.
        mix_tokens: Tokens of the mixture; None: as many as the sources have.
        seed: Of its order.
        date: What a chat template takes for today, see `today`; None: it does not look.
    """

    tokenizer: str
    kind: str
    columns: tuple[tuple[str, str], ...] = ()
    preset: str | None = None
    add_special_tokens: bool = True
    bos_text: str | None = None
    eos_text: str | None = None
    targets: Targets = field(default_factory=Targets)
    pairs_apart: bool = False
    max_seq_len: int | None = None
    concat: int | None = None
    wrap: bool = True
    foundry_compatible: bool = False
    compression: str | None = "zstd"
    on_error: str = "raise"
    mix: tuple[tuple[str, float], ...] = ()
    mix_tokens: int | None = None
    seed: int = 0
    date: str | None = None

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {self.on_error!r}: it must be 'raise' or 'skip'.")
        if self.compression is not None:
            parse_compression(self.compression)
        check_names(dict(self.columns))
        if not self.wrap and self.concat is None:
            raise ValueError("wrap=False is for the rows of concat: say how long they are.")
        if self.preset is not None:
            find_preset(self.preset)
            if self.columns:
                raise ValueError("columns and preset both say what rows are: give one of them.")
        for name, is_given in (("preset", self.preset is not None), ("max_seq_len", self.max_seq_len is not None)):
            if is_given and self.kind == "text":
                raise ValueError(f"{name}={getattr(self, name)!r} is for finetuning data, and this is text.")
        if self.max_seq_len is not None:
            check_index("max_seq_len", self.max_seq_len, 1, 1 << 31)
        if self.mix and self.writes_turns:
            raise ValueError(
                "foundry_compatible finetuning data are turns, which can't be mixed ahead: prepare each source apart "
                "and mix them as streams."
            )

    @property
    def writes_turns(self) -> bool:
        """Whether examples stay apart in turns, to be put together by who reads them."""
        return self.foundry_compatible and self.kind == "finetuning"

    @property
    def is_read_again(self) -> bool:
        """Whether parts are not yet what comes out."""
        return bool(self.concat or self.mix)

    def dtypes_of(self, vocab_size: int) -> dict[str, np.dtype[Any]]:
        """Integer types of token ids, and of labels beside them in finetuning data."""
        ids = "uint16" if vocab_size <= 1 << 16 else "uint32"
        labels = "int16" if vocab_size <= 1 << 15 else "int32"
        if self.foundry_compatible:
            ids = labels = "int32"
        if self.kind == "text":
            return {"tokens": np.dtype(ids)}
        return {"input_ids": np.dtype(ids), "labels": np.dtype(labels)}

    def columns_of(self, vocab_size: int) -> dict[str, str]:
        """Columns of the shards and their encodings."""
        if self.writes_turns:
            return {"turns": "json"}
        return {name: f"ndarray:{dtype.name}" for name, dtype in self.dtypes_of(vocab_size).items()}


def check_names(columns: Mapping[str, str]) -> None:
    """
    Raises:
        ValueError: Columns are named by what nothing is.
    """
    for name in columns:
        if name not in _NAMES:
            raise ValueError(f"columns names {name!r}: it may name {', '.join(_NAMES)}.")


def today() -> str:
    """The date as `Rules.date` has it."""
    return datetime.date.today().isoformat()


@dataclass(frozen=True)
class Form:
    """How a row is read.

    Attributes:
        name: "example", "text" or "ids".
        columns: Of the row, by what they are.
    """

    name: str
    columns: Mapping[str, str]

    @property
    def kind(self) -> str:
        """ "finetuning" or "text": what the row is for by itself."""
        return "finetuning" if self.name == "example" or "labels" in self.columns else "text"


def find_form(row: Collection[str], columns: Mapping[str, str], kind: str | None = None) -> Form | None:
    """How a row is read; None where its columns are those of no form.

    Args:
        row: Its columns.
        columns: As in `Rules`. A row that has none of those is read by the usual names.
        kind: Of the shards: examples are for "finetuning". None: it is not known yet.
    """
    for name, ways in _FORMS.items():
        for keys in ways:
            named = {key: columns.get(key, key) for key in keys}
            is_asked_for = not columns or not columns.keys().isdisjoint(keys)
            if is_asked_for and (name, kind) != ("example", "text") and all(column in row for column in named.values()):
                return Form(name, named)
    return find_form(row, {}, kind) if columns else None


def end_of(rules: Rules, tokenizer: TextTokenizer) -> list[int]:
    """What stands behind each document."""
    if rules.eos_text is not None:
        return tokenizer.encode([rules.eos_text])[0]
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def identity_of(rules: Rules, tokenizer: TextTokenizer) -> dict[str, Any]:
    """The tokenizer, as the index of what it has made names it: with the token that ends documents there."""
    end = end_of(rules, tokenizer) if rules.kind == "text" else [tokenizer.eos_token_id]
    return {**tokenizer.identity, "eos_token_id": end[0] if len(end) == 1 else None}
