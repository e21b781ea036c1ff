"""Tokenizers of transformers whose tokens are the numbers of their ids, but for the special ones: "<2>" is 2."""

from __future__ import annotations

from typing import Any


def make_tokenizer(
    pad: int | None, eos: int | None, *, bos: int | None = None, side: str = "right", vocab_size: int = 200
) -> Any:
    """A tokenizer that knows these special tokens; with `bos`, which each text begins with."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": pad, "eos_token": eos, "bos_token": bos}
    named = {name: f"<{token}>" for name, token in special.items() if token is not None}
    vocab = {f"<{i}>" if i in special.values() else str(i): i for i in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos is not None:
        begin = named["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(f"{begin} $A", special_tokens=[(begin, bos)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side=side, **named)
