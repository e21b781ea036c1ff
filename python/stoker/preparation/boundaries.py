"""Where a long text is cut, so that the tokens of its parts are those of the whole."""

from __future__ import annotations

FARTHEST = 1 << 20  # characters, or bytes of a file, that are looked through for such a place


def is_boundary(before: str, after: str) -> bool:
    """Whether tokenizers that split at words first (byte-level BPE: GPT, Llama 3, Qwen) split between two characters:
    where white space begins. A line end belongs to the punctuation before it in some of them."""
    return after.isspace() and not before.isspace() and (after not in "\r\n" or before.isalnum())


def find_boundary(text: str, begin: int) -> int:
    """The first place from `begin` (at least 1) on where a text may be cut; its end, where there is none; and `begin`,
    where the end is far away: memory must not grow with a text without white space."""
    end = min(begin + FARTHEST, len(text))
    otherwise = end if end == len(text) else begin
    return next((at for at in range(begin, end) if is_boundary(text[at - 1], text[at])), otherwise)
