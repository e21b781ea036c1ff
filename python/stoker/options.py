"""The options of a loader, checked."""

from __future__ import annotations

import operator
import os
from dataclasses import dataclass
from typing import Any

FIELDS = ("input_ids", "labels", "attention_mask", "position_ids", "sequence_id", "stream_ids")
_MAX_ROW_TOKENS = (1 << 31) - 1  # places in a row are counted in 32 bits


def default_cache_dir() -> str:
    """`$STOKER_CACHE`, else `stoker` in the user's cache home."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.environ.get("STOKER_CACHE") or os.path.join(home, "stoker")


def check_index(name: str, value: Any, low: int, high: int) -> int:
    """A whole number of any integer type within [low, high].

    Raises:
        ValueError: It is not one.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        raise ValueError(f"{name} is {value!r}: it must be a whole number from {low} to {high}.")
    return number


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `DataLoader` documents, with defaults resolved and names checked.

    Raises:
        ValueError: An option breaks its rule; the message says which and what was found.
    """

    seq_len: int
    batch_size: int
    layout: str
    fields: tuple[str, ...]
    epoch_size: int | None
    shuffle: bool
    seed: int
    shuffle_block: int
    lanes: int
    rank: int
    world_size: int
    num_workers: int
    prefetch_factor: int
    drop_last: bool
    dtype: str
    pad_id: int
    padding_side: str
    overflow: str
    documents: str
    eos_token_id: int | None
    bos_token_id: int | None
    vocab_size: int | None
    pin_memory: bool
    timeout: float
    cache_memory: int
    cache_dir: str

    def __post_init__(self) -> None:
        self._check_index("seq_len", 1, _MAX_ROW_TOKENS)
        self._check_index("batch_size", 1, (1 << 31) - 1)
        self._check_index("seed", 0, (1 << 64) - 1)
        self._check_index("shuffle_block", 1, (1 << 31) - 1)
        self._check_index("world_size", 1, (1 << 31) - 1)
        self._check_index("lanes", 1, (1 << 31) - 1)
        self._check_index("rank", 0, self.world_size - 1)
        self._check_index("num_workers", 0, 1024)
        self._check_index("prefetch_factor", 1, 1 << 16)
        self._check_name("layout", ("pad", "concat"))
        self._check_name("padding_side", ("right", "left"))
        self._check_name("overflow", ("truncate", "error"))
        self._check_name("documents", ("samples", "eos", "bos"))
        self._check_name("dtype", ("int64", "int32"))
        for name in ("shuffle", "drop_last", "pin_memory"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}: it must be True or False.")
        if not isinstance(self.timeout, (int, float)) or not 0 <= self.timeout < float("inf"):
            raise ValueError(f"timeout is {self.timeout!r}: it is in seconds, and 0 means none.")
        limit = 1 << (31 if self.dtype == "int32" else 63)
        self._check_index("pad_id", -limit, limit - 1)
        for name, low in (("vocab_size", 1), ("eos_token_id", 0), ("bos_token_id", 0)):
            if getattr(self, name) is not None:
                self._check_index(name, low, (1 << 63) - 1)
        unknown = [f for f in self.fields if f not in FIELDS]
        if unknown or len(set(self.fields)) < len(self.fields) or "input_ids" not in self.fields:
            raise ValueError(
                f"fields is {list(self.fields)}: it must have 'input_ids' and may have {', '.join(FIELDS[1:])}, each "
                "once."
            )
        if self.documents != "samples" and self.document_token is None:
            raise ValueError(f"documents={self.documents!r} needs {self.documents}_token_id.")

    @property
    def document_token(self) -> int | None:
        """The token at which documents are told apart, where that is not by samples."""
        return {"samples": None, "eos": self.eos_token_id, "bos": self.bos_token_id}[self.documents]

    @property
    def global_batch(self) -> int:
        """Rows a step over all ranks."""
        return self.batch_size * self.world_size

    @property
    def unit(self) -> int:
        """Things (samples or tokens) that one unit of the order is."""
        return self.seq_len if self.layout == "concat" else 1

    def _check_index(self, name: str, low: int, high: int) -> None:
        object.__setattr__(self, name, check_index(name, getattr(self, name), low, high))

    def _check_name(self, name: str, known: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in known:
            raise ValueError(f"{name} is {value!r}: it must be one of {', '.join(map(repr, known))}.")
