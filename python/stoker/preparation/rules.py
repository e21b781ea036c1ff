"""How rows of raw data become samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stoker.preparation.examples import Targets
from stoker.preparation.tokenizer import TextTokenizer

TEXT_KEYS = ("text", "content")
EXAMPLE_KEYS = (("messages",), ("turns",), ("prompt", "response"), ("prompt", "completion"))


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
        on_error: "raise": the first bad row ends the preparation; "skip": they are left out. Empty texts, and examples
            without loss, are left out in any case.
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
    on_error: str = "raise"
    mix: tuple[tuple[str, float], ...] = ()
    mix_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {self.on_error!r}: it must be 'raise' or 'skip'.")

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


def identity_of(rules: Rules, tokenizer: TextTokenizer) -> dict[str, Any]:
    """The tokenizer, as the index of what it has made names it: with the token that ends documents there."""
    end = end_of(rules, tokenizer) if rules.kind == "text" else [tokenizer.eos_token_id]
    return {**tokenizer.identity, "eos_token_id": end[0] if len(end) == 1 else None}
