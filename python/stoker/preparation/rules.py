"""How rows of raw data become samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stoker.options import check_index
from stoker.preparation.examples import Targets
from stoker.preparation.presets import find_preset
from stoker.preparation.tokenizer import TextTokenizer
from stoker.schema import TOKEN_COLUMNS

TEXT_KEYS = ("text", "content")
IDS_KEYS = (*TOKEN_COLUMNS, "labels")  # of rows that are token ids already; labels stand beside input_ids only
EXAMPLE_KEYS = (("messages",), ("turns",), ("prompt", "response"), ("prompt", "completion"))


@dataclass(frozen=True)
class Rules:
    """How rows become samples.

    Attributes:
        tokenizer: As `TextTokenizer` takes it.
        kind: "text" or "finetuning", of the shards.
        columns: Names of a row's columns by what they are: {"prompt": "instruction", "response": "output"}.
        preset: Makes examples of rows, see `find_preset`; None: they are examples.
        add_special_tokens: Of text: what the tokenizer puts around a document.
        bos_text, eos_text: Of text: before and behind each document; None: nothing, or for the end the tokenizer's
            end-of-sequence token.
        targets: Of finetuning: where there is loss.
        max_seq_len: Of finetuning: an example without loss among so many first tokens is left out; None: whatever its
            length. Nothing is cut.
        concat: Of text: rows of so many tokens instead of documents, at the end; None: documents.
        wrap: Whether a document goes on in the next of these rows.
        foundry_compatible: As LLM Foundry's scripts write: int32 ids of text, and of examples `turns`, as JSON.
        compression: Of the shards: None or "zstd[:level]".
        on_error: "raise": the first bad row ends the preparation; "skip": they are left out. Empty texts, and examples
            without loss, are left out in any case.
        mix: Sources and their shares of the tokens, by which they are mixed at the end; empty: they are not.
        mix_tokens: Tokens of the mixture; None: as many as the sources have.
        seed: Of its order.
    """

    tokenizer: str
    kind: str
    columns: tuple[tuple[str, str], ...] = ()
    preset: str | None = None
    add_special_tokens: bool = True
    bos_text: str | None = None
    eos_text: str | None = None
    targets: Targets = field(default_factory=Targets)
    max_seq_len: int | None = None
    concat: int | None = None
    wrap: bool = True
    foundry_compatible: bool = False
    compression: str | None = "zstd"
    on_error: str = "raise"
    mix: tuple[tuple[str, float], ...] = ()
    mix_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {self.on_error!r}: it must be 'raise' or 'skip'.")
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


def form_of_row(values: Mapping[str, Any], columns: Mapping[str, str]) -> str | None:
    """ "example", "text" or "ids", by a row's columns; None where they are those of none.

    Args:
        values: The row.
        columns: As in `Rules`. Where some are named, no others are looked for.
    """
    of_examples = [tuple(named.values())] if (named := example_columns(columns)) else [] if columns else EXAMPLE_KEYS
    of_text = [columns["text"]] if "text" in columns else [] if columns else TEXT_KEYS
    found = {
        "example": any(all(key in values for key in keys) for keys in of_examples),
        "text": any(key in values for key in of_text),
        "ids": ids_columns(values, columns) is not None,
    }
    return next((form for form, is_found in found.items() if is_found), None)


def kind_of_row(values: Mapping[str, Any], columns: Mapping[str, str]) -> str | None:
    """ "finetuning" or "text", by a row's columns as `form_of_row` takes them; None where they are those of none."""
    form = form_of_row(values, columns)
    if form == "ids":
        ids_and_labels = ids_columns(values, columns)
        return "finetuning" if ids_and_labels is not None and ids_and_labels[1] else "text"
    return None if form is None else "text" if form == "text" else "finetuning"


def ids_columns(values: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[str, str | None] | None:
    """The columns of a row that hold token ids, and labels if there are any; None where it has no ids."""
    named = columns or {key: key for key in IDS_KEYS if key in values}
    for key in TOKEN_COLUMNS:
        if named.get(key) in values:
            labels = named.get("labels") if key == "input_ids" else None
            return named[key], labels if labels in values else None
    return None


def example_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """Those of prompts, responses and the like."""
    return {key: column for key, column in columns.items() if key not in ("text", *IDS_KEYS)}


def end_of(rules: Rules, tokenizer: TextTokenizer) -> list[int]:
    """What stands behind each document."""
    if rules.eos_text is not None:
        return tokenizer.encode([rules.eos_text])[0]
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def identity_of(rules: Rules, tokenizer: TextTokenizer) -> dict[str, Any]:
    """The tokenizer, as the index of what it has made names it: with the token that ends documents there."""
    end = end_of(rules, tokenizer) if rules.kind == "text" else [tokenizer.eos_token_id]
    return {**tokenizer.identity, "eos_token_id": end[0] if len(end) == 1 else None}
