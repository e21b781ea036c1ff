"""The options of a loader, checked."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stoker.streaming_order import StreamingSettings

FIELDS = ("input_ids", "labels", "attention_mask", "position_ids", "sequence_id", "stream_ids", "cu_seqlens")
_PACKED_ROWS = {name: name for name in ("input_ids", "labels", "position_ids")}
# Names in a batch and the fields that go by them; max_seqlen comes with cu_seqlens.
PRESETS: dict[str, dict[str, str]] = {
    "huggingface": _PACKED_ROWS
    | dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), "cu_seqlens")
    | dict.fromkeys(("max_length_q", "max_length_k"), "max_seqlen"),
    "flash": _PACKED_ROWS
    | dict.fromkeys(("cu_seqlens_q", "cu_seqlens_k"), "cu_seqlens")
    | dict.fromkeys(("max_seqlen_q", "max_seqlen_k"), "max_seqlen"),
    "composer": {name: name for name in ("input_ids", "labels", "attention_mask", "sequence_id")},
}
LAYOUTS = ("pad", "concat", "pack")
OVERFLOWS = ("truncate", "split", "drop", "error")
_MAX_WINDOW = 1 << 24  # samples
_SHUFFLE_BLOCK = 16384  # units; the default
_WINDOW_ROWS = 512  # of the order's contract, see tests/model/layout.py
_MAX_ROW_TOKENS = (1 << 24) - 1  # so that 2^40 rows of tokens are counted in 64 bits


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


def divisors_in_words(number: int) -> str:
    """The whole numbers that divide it, as "1, 2 and 4"."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    *most, last = sorted({*small, *(number // n for n in small)})
    return f"{', '.join(map(str, most))} and {last}" if most else str(last)


def name_fields(fields: Sequence[str] | Mapping[str, str] | str) -> dict[str, str]:
    """`fields` as names in a batch and the field that each stands for.

    Raises:
        ValueError: A field is not known, or there twice.
    """
    if isinstance(fields, str):
        if fields not in PRESETS:
            raise ValueError(
                f"fields is {fields!r}: it must be a list of fields, or one of {', '.join(map(repr, PRESETS))}."
            )
        return PRESETS[fields]
    if isinstance(fields, Mapping):
        names = dict(fields)
        known = (*FIELDS, "max_seqlen") if "cu_seqlens" in names.values() else FIELDS
    else:
        names = {field: field for field in fields}
        known = FIELDS
    if any(f not in known for f in names.values()) or len(names) < len(fields) or "input_ids" not in names.values():
        raise ValueError(
            f"fields is {fields if isinstance(fields, Mapping) else list(fields)}: it must have 'input_ids' and may "
            f"have {', '.join(FIELDS[1:])}, each once; and where a mapping gives names, max_seqlen beside cu_seqlens."
        )
    if not isinstance(fields, Mapping) and "cu_seqlens" in names:
        names["max_seqlen"] = "max_seqlen"
    return names


def rows_of_a_rank(batch_size: int | None, global_batch_size: int | None, world_size: int) -> int:
    """batch_size, given itself or as a part of the global batch.

    Raises:
        ValueError: Both are given, or neither, or the ranks do not divide the global batch.
    """
    if (batch_size is None) == (global_batch_size is None):
        raise ValueError("give batch_size, the rows of a rank, or global_batch_size, those of all ranks together.")
    if batch_size is not None:
        return batch_size
    rows = check_index("global_batch_size", global_batch_size, 1, (1 << 31) - 1)
    if rows % world_size:
        raise ValueError(
            f"global_batch_size is {rows}, which {world_size} ranks do not divide: {divisors_in_words(rows)} do."
        )
    return rows // world_size


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `DataLoader` documents, with defaults resolved and names checked.

    Raises:
        ValueError: An option breaks its rule; the message says which and what was found.
    """

    seq_len: int
    batch_size: int
    layout: str
    streaming: StreamingSettings | None
    fields: tuple[str, ...]
    field_rules: str
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
    overflow: str | None
    weights_in: str | None
    packing: str
    pack_window: int
    packing_ratio: float | None
    max_leftover_bins_to_keep: int | None
    mix_in_rows: str
    max_samples_per_row: int | None
    pad_to_multiple: int
    cu_seqlens_capacity: int | None
    documents: str
    eos_token_id: int | None
    bos_token_id: int | None
    vocab_size: int | None
    pin_memory: bool
    static_buffers: bool
    timeout: float
    cache_memory: int
    cache_dir: str
    cache_limit: int | None
    num_downloads: int
    predownload_shards: int
    predownload_bytes: int

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
        self._check_index("num_downloads", 1, 1024)
        check_index("predownload", self.predownload_shards, 0, 1 << 31)
        self._check_name("layout", LAYOUTS)
        self._check_name("padding_side", ("right", "left"))
        self._check_name("field_rules", ("stoker", "foundry"))
        for name, known in (("overflow", OVERFLOWS), ("weights_in", ("samples", "tokens"))):
            if getattr(self, name) is not None:
                self._check_name(name, known)
        self._check_name("documents", ("samples", "eos", "bos"))
        self._check_name("dtype", ("int64", "int32"))
        for name in ("shuffle", "drop_last", "pin_memory", "static_buffers"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}: it must be True or False.")
        if not isinstance(self.timeout, (int, float)) or not 0 <= self.timeout < float("inf"):
            raise ValueError(f"timeout is {self.timeout!r}: it is in seconds, and 0 means none.")
        limit = 1 << (31 if self.dtype == "int32" else 63)
        self._check_index("pad_id", -limit, limit - 1)
        for name, low in (("vocab_size", 1), ("eos_token_id", 0), ("bos_token_id", 0)):
            if getattr(self, name) is not None:
                self._check_index(name, low, (1 << 63) - 1)
        if self.layout == "concat" and self.overflow is not None:
            raise ValueError(
                f"overflow={self.overflow!r} does not go with layout 'concat', where no sample is too long."
            )
        if self.layout == "concat" and self.weights_in == "samples":
            raise ValueError("weights_in='samples' does not go with layout 'concat', whose weights are about tokens.")
        self._check_streaming()
        self._check_pack()
        self._check_cu_seqlens()

    def _check_streaming(self) -> None:
        if self.streaming is None:
            return
        if self.layout == "concat" or (self.layout == "pack" and self.packing != "foundry"):
            rows = "layout 'concat'" if self.layout == "concat" else f"packing={self.packing!r}"
            raise ValueError(
                f"order='streaming' does not go with {rows}: it has layout 'pad', and 'pack' with packing='foundry'."
            )
        for name, default, instead in (
            ("shuffle_block", _SHUFFLE_BLOCK, "shuffle_block_size"),
            ("lanes", self.world_size, "num_canonical_nodes"),
        ):
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is of stoker's own order: give "
                    f"order=StreamingSettings({instead}=...)."
                )

    def _check_pack(self) -> None:
        self._check_name("packing", ("best_fit", "foundry"))
        self._check_name("mix_in_rows", ("streams", "kind", "stream"))
        self._check_index("pack_window", 1, _MAX_WINDOW)
        self._check_index("pad_to_multiple", 1, self.seq_len)
        for name, low in (("max_samples_per_row", 1), ("max_leftover_bins_to_keep", 0)):
            if getattr(self, name) is not None:
                self._check_index(name, low, (1 << 31) - 1)
        if self.layout != "pack":
            given = {
                "packing": self.packing != "best_fit",
                "mix_in_rows": self.mix_in_rows != "streams",
                "pad_to_multiple": self.pad_to_multiple != 1,
                "pack_window": self.pack_window != 4096,
                "max_samples_per_row": self.max_samples_per_row is not None,
                "packing_ratio": self.packing_ratio is not None,
                "max_leftover_bins_to_keep": self.max_leftover_bins_to_keep is not None,
            }
            if any(given.values()):
                name = next(n for n, is_given in given.items() if is_given)
                raise ValueError(f"{name}={getattr(self, name)!r} needs layout 'pack'; it is {self.layout!r}.")
            return
        if not self.drop_last and self.streaming is None:
            raise ValueError(
                "drop_last=False does not go with layout 'pack', whose rows have no end: evaluate with layout 'pad'."
            )
        if self.seq_len % self.pad_to_multiple:
            raise ValueError(f"pad_to_multiple is {self.pad_to_multiple}: it must divide seq_len, {self.seq_len}.")
        if self.packing != "foundry":
            for name in ("packing_ratio", "max_leftover_bins_to_keep"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}={getattr(self, name)!r} needs packing='foundry'.")
            return
        ratio = self.packing_ratio
        if not isinstance(ratio, (int, float)) or not 1 <= ratio <= 1 << 20:
            raise ValueError(f"packing='foundry' needs packing_ratio, a number of at least 1; it is {ratio!r}.")
        if int(self.batch_size * ratio) > _MAX_WINDOW:
            raise ValueError(f"packing_ratio is {ratio}: a raw batch may have {_MAX_WINDOW:,} samples at most.")
        lanes = self.lanes if self.shuffle else 1
        if lanes != self.world_size and self.streaming is None:
            raise ValueError(
                "packing='foundry' needs as many lanes as ranks, since its rows are those of a rank; there are "
                f"{lanes}{'' if self.shuffle else ', as always with shuffle=False,'} and world_size is "
                f"{self.world_size}."
            )
        options = (self.mix_in_rows, self.pad_to_multiple, self.max_samples_per_row, self.pack_window)
        if options != ("streams", 1, None, 4096):
            raise ValueError(
                "packing='foundry' has no mix_in_rows, pad_to_multiple, max_samples_per_row or pack_window: use "
                "packing='best_fit'."
            )

    def _check_cu_seqlens(self) -> None:
        if self.cu_seqlens_capacity is not None:
            self._check_index("cu_seqlens_capacity", 1, (1 << 31) - 2)
        if "cu_seqlens" in self.fields and self.batch_size * self.seq_len >= 1 << 31:
            raise ValueError(
                f"cu_seqlens counts the {self.batch_size} x {self.seq_len} tokens of a batch in int32: lower "
                "batch_size."
            )

    @property
    def row_fields(self) -> tuple[str, ...]:
        """The fields that are (batch_size, seq_len)."""
        return tuple(f for f in self.fields if f != "cu_seqlens")

    @property
    def cu_seqlens_entries(self) -> int:
        """Entries of cu_seqlens; 0 where it is not asked for."""
        if "cu_seqlens" not in self.fields:
            return 0
        if self.cu_seqlens_capacity is not None:
            return self.cu_seqlens_capacity + 1
        in_a_row = {"pad": 1, "concat": None, "pack": self.max_samples_per_row}[self.layout]
        documents = in_a_row if self.documents == "samples" else None
        return self.batch_size * ((documents or max(16, self.seq_len // 16)) + 1) + 1

    @property
    def finite(self) -> bool:
        """Whether an epoch is an exact number of units of each stream."""
        return self.layout != "pack" or self.streaming is not None

    @property
    def window(self) -> tuple[int, int]:
        """Samples that are packed together, and rows' worth of tokens at which a window ends before."""
        if self.packing == "foundry":
            return int(self.batch_size * (self.packing_ratio or 1)), self.batch_size
        return self.pack_window, _WINDOW_ROWS

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
