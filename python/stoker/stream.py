"""What the user says of one stream."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stoker.options import OVERFLOWS, check_index
from stoker.schema import INTEGER_TYPES, KINDS

_WEIGHTS = ("proportion", "repeat", "choose")


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One dataset directory of MDS shards, with a name and a weight.

    At most one of `proportion`, `repeat` and `choose` may be given; without any, each sample comes once an epoch.

    Attributes:
        local: The directory with `index.json`. Made absolute, so that it means the same wherever it is used.
        name: Unique among the streams of a loader; part of the order's keys, so that the same name gives the same
            shuffle wherever the data lies. Default: the directory's own name.
        split: A sub-directory of `local` to read instead, such as "train".
        proportion: Share of the epoch, relative to the other streams. All streams or none have one.
        repeat: Passes an epoch; may be fractional.
        choose: Units an epoch: samples (`pad`, `pack`; tokens where the loader's weights are) or rows (`concat`).
        kind: "text" (loss on every token) or "finetuning" (loss where `labels` are not -100). Found from the columns: a
            stream with `labels` beside `input_ids` is for finetuning. Give it to have it checked.
        overflow: What a sample longer than seq_len does in this stream; see `DataLoader`.
        eos_token_id: With `documents="eos"`: the last token of a document in this stream. Default: the loader's, for
            text streams.
        bytes_dtype: Integer type of token columns whose encoding is `bytes`, which does not tell it.
        labels_dtype: The same of a column `labels`. Default: as bytes_dtype.
        follow_links: Shards may be symbolic links that lead out of the directory, as in the cache of the Hugging Face
            hub. Without it such a shard is an error: an index should not make a job read files elsewhere.
        prepare: Of a stream of raw text, prompts and responses, messages or turns, in a loader with a `tokenizer`: how
            samples become tokens. Arguments of `stoker.prepare` by name: add_special_tokens, bos_text, columns,
            eos_text, max_seq_len, on_error, preset, target_prompts, target_responses.

    Raises:
        ValueError: More than one weight is given, one is not a number of at least 0, another value is not one of those
            listed, or the directory's or stream's name is not UTF-8.
    """

    local: str | os.PathLike[str]
    name: str | None = None
    split: str | None = None
    proportion: float | None = None
    repeat: float | None = None
    choose: int | None = None
    kind: str | None = None
    overflow: str | None = None
    eos_token_id: int | None = None
    bytes_dtype: str = "int64"
    labels_dtype: str | None = None
    follow_links: bool = False
    prepare: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        local = os.path.abspath(os.fspath(self.local))
        if not isinstance(local, str):
            raise ValueError(f"local is {self.local!r}: give the directory as str or Path.")
        object.__setattr__(self, "local", local)
        object.__setattr__(self, "name", self.name or os.path.basename(local))
        for text in (self.name, self.directory):
            try:
                str(text).encode()
            except UnicodeEncodeError:
                raise ValueError(
                    f"{text!r} is not UTF-8: rename the directory, or link to it by another name."
                ) from None
        given = [w for w in _WEIGHTS if getattr(self, w) is not None]
        if len(given) > 1:
            raise ValueError(f"stream {self.name!r} has {' and '.join(given)}: give at most one of them.")
        for weight in given:
            value = getattr(self, weight)
            if not isinstance(value, (int, float, np.number)) or not 0 <= value < math.inf:
                raise ValueError(f"stream {self.name!r} has {weight}={value!r}: it must be a number of at least 0.")
        if self.choose is not None and self.choose != int(self.choose):
            raise ValueError(f"stream {self.name!r} has choose={self.choose!r}: it must be a whole number.")
        for option, known in (("kind", KINDS), ("overflow", OVERFLOWS)):
            value = getattr(self, option)
            if value is not None and value not in known:
                raise ValueError(
                    f"stream {self.name!r} has {option}={value!r}: it must be one of {', '.join(map(repr, known))}."
                )
        if self.eos_token_id is not None:
            check_index(f"eos_token_id of stream {self.name!r}", self.eos_token_id, 0, (1 << 63) - 1)
        for option in ("bytes_dtype", "labels_dtype"):
            value = getattr(self, option) or self.bytes_dtype
            try:
                dtype = np.dtype(value).name
            except TypeError:
                dtype = ""
            if dtype not in INTEGER_TYPES:
                raise ValueError(
                    f"stream {self.name!r} has {option}={value!r}: it must be one of {', '.join(INTEGER_TYPES)}."
                )
            object.__setattr__(self, option, dtype)

    @property
    def directory(self) -> str:
        """The directory that holds index.json."""
        return os.path.join(self.local, self.split) if self.split else os.fspath(self.local)
