"""Examples for finetuning as turns of ids, by a tokenizer of transformers; the rules are `stoker.prepare`'s."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from stoker.preparation.chat import CHATML
from stoker.preparation.examples import read_example


def tokenize_formatted_example(example: Mapping[str, Any], tokenizer: Any) -> dict[str, list[Any]]:
    """Tokenizes an example, without cutting or padding it.

    Args:
        example: `prompt` with `response` or `completion`, or `messages`: a conversation.
        tokenizer: Of transformers. Conversations are written by its chat template, or as ChatML where it has none, and
            get no more special tokens than that writes; prompt and response each get those of the tokenizer, but no
            second beginning.

    Returns:
        `turns`, each a mapping with `input_ids`, the context, and `labels`, the target.

    Raises:
        BadExampleError: It is of no kind, or breaks a rule of its kind; a subclass tells which.
    """
    read = read_example(example, _Template(tokenizer))
    if read.turns:
        return {"turns": [{"input_ids": context, "labels": target} for context, target in read.turns]}
    options = {} if read.is_around else {"add_special_tokens": False}
    turns = [
        tokenizer(text=context, text_target=target, padding=False, truncation=False, **options)
        for context, target in zip(read.texts[::2], read.texts[1::2], strict=True)
    ]
    bos = getattr(tokenizer, "bos_token_id", None)
    if read.is_around and bos is not None:
        for turn in turns:
            if turn["input_ids"][:1] == turn["labels"][:1] == [bos]:
                turn["labels"] = turn["labels"][1:]
    return {"turns": turns}


class _Template:
    """The chat template of a tokenizer of transformers, as `read_example` takes it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def text(self) -> str:
        own = getattr(self._tokenizer, "chat_template", None)
        return CHATML if own is None else own

    def render(self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                date_string=datetime.date.today().strftime("%d %b %Y"),
                chat_template=None if getattr(self._tokenizer, "chat_template", None) else CHATML,
            )
        except Exception as error:  # noqa: BLE001  # a template may raise anything, such as TypeError for a list
            raise ValueError(str(error)) from None
        return str(text)
