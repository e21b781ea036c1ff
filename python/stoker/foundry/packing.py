"""LLM Foundry's packing of finetuning examples in Python: the collator, and how many examples a batch should have."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np

from stoker import _core
from stoker.preparation.examples import IGNORE_LABEL

logger = logging.getLogger("stoker")

Example = dict[str, Any]  # one-dimensional tensors

_PADDINGS = {"labels": IGNORE_LABEL, "attention_mask": 0, "sequence_id": -1}  # besides input_ids
_NO_PACKING = 100  # max_seq_len up to which "auto" does not pack
_PROFILED_BATCHES = 100  # of the largest size


class BinPackCollator:
    """Packs the rows of batches together, in fewer rows, as LLM Foundry does, with what is left over from batch to
    batch.

    Batches are dicts of `input_ids`, `labels` (-100 also on the first token of each example but the row's first),
    `attention_mask` (1, and 0 on padding) and `sequence_id` (number of the example in its row, and -1 on padding), as
    far as the batches that are packed have them; (target_batch_size, max_seq_len), the fullest rows first. There are
    fewer rows where there are fewer examples.

    Attributes:
        base_collator: Makes what is packed.
        n_packed_tokens, n_total_tokens: Of all rows that were handed out, and of all examples.
        n_packed_examples: target_batch_size for each batch.
    """

    def __init__(
        self,
        collator: Callable[[list[Any]], Any],
        target_batch_size: int,
        max_seq_len: int,
        pad_token_id: int,
        padding_side: Literal["left", "right"],
        max_leftover_bins_to_keep: int | None = None,
        is_profiling: bool = False,
    ) -> None:
        """
        Args:
            collator: Makes batches with `attention_mask`, such as `Seq2SeqFinetuningCollator`.
            target_batch_size: Rows of a batch.
            max_seq_len: Tokens of a row.
            pad_token_id: On padding of `input_ids`.
            padding_side: Of rows.
            max_leftover_bins_to_keep: Bins beyond it are dropped. Default: all are kept.
            is_profiling: Only `waste` and `efficiency` are wanted.

        Raises:
            ValueError: A number is not in its range.
        """
        self.base_collator = collator
        self.out_size = int(target_batch_size)
        self.max_seq_len = int(max_seq_len)
        self.pad_token_id = int(pad_token_id)
        self.padding_side = padding_side
        if self.out_size <= 0:
            raise ValueError(f"{target_batch_size=} must be >0.")
        if self.max_seq_len <= 0:
            raise ValueError(f"{max_seq_len=} must be >0.")
        if self.pad_token_id < 0:
            raise ValueError(f"{pad_token_id=} must be >=0.")
        if max_leftover_bins_to_keep is not None and max_leftover_bins_to_keep < 0:
            raise ValueError(f"{max_leftover_bins_to_keep=} must be >=0 or None.")
        self.max_leftover_bins_to_keep = max_leftover_bins_to_keep
        self.n_packed_tokens = 0
        self.n_total_tokens = 0
        self.n_packed_examples = 0
        self._is_profiling = is_profiling
        self._packer: _core.FoundryPacker | None = (
            None  # made when it is needed, so that workers can be sent a collator
        )
        self._waiting: dict[int, tuple[int, Example]] = {}  # size and tensors of what is left over, by number
        self._num_seen = 0

    @property
    def waste(self) -> float:
        """Share of the tokens that were not handed out, those left over included.

        Raises:
            ZeroDivisionError: There were none.
        """
        return 1 - self.n_packed_tokens / self.n_total_tokens

    @property
    def efficiency(self) -> float:
        """Share of the rows that was no padding.

        Raises:
            ZeroDivisionError: There was no row.
        """
        return self.n_packed_tokens / (self.max_seq_len * self.n_packed_examples)

    @property
    def _leftover_bins(self) -> list[tuple[int, Example]]:
        """Size and tensors of each bin that is left over."""
        bins = [] if self._packer is None else self._packer.leftovers
        return [(sum(self._waiting[i][0] for i in row), self._join([self._waiting[i][1] for i in row])) for row in bins]

    def __call__(self, examples: list[Any]) -> Example:
        return self.pack(self.base_collator(examples))

    def pack(self, batch: Mapping[str, Any]) -> Example:
        """Packs a batch together with what is left over.

        Args:
            batch: Of padded rows, (rows, width), where `attention_mask` tells what is no padding.

        Raises:
            ValueError: The collator is for profiling, or there is no such padding_side.
            AssertionError: The batch has other keys than those of the class, or not input_ids and attention_mask.
        """
        if self._is_profiling:
            raise ValueError("Cannot pack in profiling mode.")
        known = {"input_ids", "attention_mask", *_PADDINGS}
        if not {"input_ids", "attention_mask"} <= set(batch) <= known:
            raise AssertionError(
                f"a batch to pack has input_ids and attention_mask, and maybe labels and sequence_id; found "
                f"{', '.join(batch)}."
            )
        sizes, examples = self._trim_batch(batch)
        packed = self._pack_trimmed_examples(examples, sizes)
        assert packed is not None
        return packed

    @classmethod
    def _trim_batch(cls, batch: Mapping[str, Any]) -> tuple[list[int], list[Example]]:
        """Sizes and tensors of the rows without padding, each one sequence."""
        import torch

        masks = batch["attention_mask"] == 1
        examples = []
        for i, mask in enumerate(masks):
            example = {key: value[i][mask] for key, value in batch.items()}
            example["sequence_id"] = torch.zeros_like(example["input_ids"])
            examples.append(example)
        return masks.sum(1).tolist(), examples

    def _pack_trimmed_examples(self, trimmed_examples: Sequence[Example], sizes: Sequence[int]) -> Example | None:
        """Rows of padded examples; None when profiling."""
        self._packer = self._packer or _core.FoundryPacker(
            self.out_size, self.max_seq_len, self.max_leftover_bins_to_keep
        )
        numbered = list(enumerate(sizes, self._num_seen))
        self._num_seen += len(sizes)
        self._waiting.update(
            (i, (size, example)) for (i, size), example in zip(numbered, trimmed_examples, strict=True)
        )
        packed = [[self._waiting[i] for i in row] for row in self._packer.pack(numbered)]
        self._waiting = {i: self._waiting[i] for row in self._packer.leftovers for i in row}
        self.n_packed_tokens += sum(size for row in packed for size, _ in row)
        self.n_total_tokens += sum(sizes)
        self.n_packed_examples += self.out_size
        return None if self._is_profiling else self._stack([[example for _, example in row] for row in packed])

    def _join(self, row: Sequence[Example]) -> Example:
        """The examples of a row, one behind the other."""
        import torch

        joined = {key: torch.cat([example[key] for example in row]) for key in row[0]}
        begin = 0
        for number, example in enumerate(row):
            end = begin + len(example["input_ids"])
            joined["sequence_id"][begin:end] = number
            if number and "labels" in joined:  # it is not to be foretold from another example
                joined["labels"][begin] = IGNORE_LABEL
            begin = end
        return joined

    def _stack(self, rows: Sequence[Sequence[Example]]) -> Example:
        """A batch of rows, padded.

        Raises:
            ValueError: There is no such padding_side.
        """
        import torch

        joined = [self._join(row) for row in rows]
        batch = {}
        for key, first in joined[0].items():
            padding = _PADDINGS.get(key, self.pad_token_id)
            batch[key] = torch.full((len(rows), self.max_seq_len), padding, dtype=first.dtype, device=first.device)
            for out, row in zip(batch[key], joined, strict=True):
                room = self.max_seq_len - len(row[key])
                if room and self.padding_side not in ("left", "right"):
                    raise ValueError(f"Unknown padding_side={self.padding_side!r}")
                begin = room if self.padding_side == "left" else 0
                out[begin : begin + len(row[key])] = row[key]
        return batch


def auto_packing_ratio(
    dataloader_cfg: Mapping[str, Any],
    tokenizer: Any,
    device_batch_size: int,
    num_packing_ratios: int = 20,
    max_ratio: float | None = None,
    packing_collator_cls: type[BinPackCollator] = BinPackCollator,
    inner_collator: Callable[[Any], Any] = lambda x: x,
) -> float:
    """Finds the packing ratio that `packing_ratio: auto` means: the last, from the smallest on, at which nothing is
    left over of the first samples. Where torch.distributed runs, the least of all ranks, which all have to call this.

    Random numbers of Python, numpy and torch are what they were, afterwards.

    Args:
        dataloader_cfg: Of the loader, with `name` and `dataset`; it is not changed.
        tokenizer: Of transformers.
        device_batch_size: Rows of a batch.
        num_packing_ratios: That are tried, evenly from 1 to max_ratio.
        max_ratio: Default: max_seq_len / 100.
        packing_collator_cls, inner_collator: See `profile_packing`.

    Returns:
        The ratio: 1 means no packing.

    Raises:
        ValueError: max_ratio is not above 1; or the configuration is wrong, see `build_dataloader`.
    """
    max_seq_len = dataloader_cfg["dataset"]["max_seq_len"]
    if max_seq_len <= _NO_PACKING:
        return 1
    min_ratio = 1
    if max_ratio is None:
        max_ratio = max_seq_len / 100
    elif max_ratio <= min_ratio:
        raise ValueError(f"{max_ratio=} must be >{min_ratio=}")
    found = 1.0
    with _seeded(0):
        for ratio, _, waste in profile_packing(
            dataloader_cfg=dataloader_cfg,
            tokenizer=tokenizer,
            min_ratio=min_ratio,
            max_ratio=max_ratio,
            num_packing_ratios=num_packing_ratios,
            device_batch_size=device_batch_size,
            packing_collator_cls=packing_collator_cls,
            inner_collator=inner_collator,
        ):
            if waste is None or waste > 0:
                break
            found = float(ratio)
        return _least_of_ranks(found)


def profile_packing(
    dataloader_cfg: Mapping[str, Any],
    tokenizer: Any,
    min_ratio: float,
    max_ratio: float,
    num_packing_ratios: int,
    device_batch_size: int,
    packing_collator_cls: type[BinPackCollator] = BinPackCollator,
    inner_collator: Callable[[Any], Any] = lambda x: x,
) -> Iterator[tuple[float, float | None, float | None]]:
    """Packs the first samples of a loader at several ratios, which it reads once.

    Args:
        dataloader_cfg: Of the loader, with `name` and `dataset`; it is not changed.
        tokenizer: Of transformers.
        min_ratio, max_ratio, num_packing_ratios: The ratios, evenly, rounded to tenths; of those with the same number
            of samples the first.
        device_batch_size: Rows of a batch.
        packing_collator_cls: Packs.
        inner_collator: Its base, which is not called.

    Yields:
        Ratio, percent of padding, percent of tokens that are left over; None for both where there are fewer samples
        than rows.
    """
    from stoker.foundry.builders import build_dataloader
    from stoker.foundry.config import plain

    raw_sizes: dict[int, float] = {}  # samples of a raw batch, and the first ratio that has so many
    for ratio in np.round(10 * np.linspace(min_ratio, max_ratio, num_packing_ratios)) / 10:
        raw_sizes.setdefault(int(ratio * device_batch_size), float(ratio))
    cfg = plain(dataloader_cfg)
    changes = {"packing_ratio": 1.0, "pad_to_longest": True, "seq_parallel_replication": 1}
    cfg["dataset"] = {**cfg["dataset"], **changes, "max_leftover_bins_to_keep": None}
    cfg.update(drop_last=False, num_workers=0, prefetch_factor=None, persistent_workers=False)
    loader = build_dataloader(cfg, tokenizer, _PROFILED_BATCHES * max(raw_sizes)).dataloader
    batch = {k: v for k, v in next(iter(loader)).items() if k not in ("total_tokens", "loss_generating_tokens")}
    if packing_collator_cls is BinPackCollator:  # which does not look at examples when profiling
        sizes = batch["attention_mask"].sum(1).tolist()
        examples: list[Example] = [{} for _ in sizes]
    else:
        sizes, examples = packing_collator_cls._trim_batch(batch)
    for raw_size, ratio in raw_sizes.items():
        packer = packing_collator_cls(
            collator=inner_collator,
            target_batch_size=device_batch_size,
            max_seq_len=cfg["dataset"]["max_seq_len"],
            pad_token_id=0,
            padding_side="left",
            max_leftover_bins_to_keep=None,  # also where the configuration drops some, as in LLM Foundry
            is_profiling=True,
        )
        for begin in range(0, len(sizes), raw_size):
            chunk = sizes[begin : begin + raw_size]
            if len(chunk) >= device_batch_size:
                packer._pack_trimmed_examples([dict(e) for e in examples[begin : begin + raw_size]], chunk)
        if packer.n_packed_examples:
            yield ratio, 100 * (1 - packer.efficiency), 100 * packer.waste
        else:
            logger.debug("the data set has fewer samples than a batch has rows: nothing was packed.")
            yield ratio, None, None


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers begin at a seed within, and are what they were behind."""
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpus is not None:
            torch.cuda.set_rng_state_all(on_gpus)


def _least_of_ranks(value: float) -> float:
    """The least of what all ranks of torch's default process group have; each has to call this."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return value
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    least = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(least, op=torch.distributed.ReduceOp.MIN)
    return float(least)
