"""LLM Foundry's collators in Python, for torch's DataLoader: the same batches as its own, key by key."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stoker.foundry.targets import (
    TokenizedExample,
    stitch_turns_decoder_only,
    stitch_turns_encoder_decoder,
    validate_target_settings,
)
from stoker.preparation.examples import IGNORE_LABEL

logger = logging.getLogger("stoker")

_MODEL_KEYS = ("input_ids", "labels", "attention_mask", "decoder_input_ids", "decoder_attention_mask")
_MULTIPLE = 8  # columns that trimmed batches have a multiple of

Batch = Any  # a mapping of tensors and lists: transformers' BatchEncoding, or dict


class ConcatenatedSequenceCollatorWrapper:
    """Adds `sequence_id` to batches of documents that were concatenated: (rows, width), as `input_ids`; the number of
    the document in its row."""

    def __init__(
        self,
        base_collator: Callable[[list[Any]], Batch],
        eos_token_id: int | None = None,
        bos_token_id: int | None = None,
    ) -> None:
        """
        Args:
            base_collator: Makes batches with `input_ids`.
            eos_token_id: Documents end with it: it belongs to the one that it ends. Documents count from 0.
            bos_token_id: Documents begin with it. A row that begins with it counts from 1, another one from 0.

        Raises:
            ValueError: Neither is given, or both.
        """
        if eos_token_id is None and bos_token_id is None:
            raise ValueError("Must supply a value for either eos_token_id or bos_token_id, but got None for both.")
        if eos_token_id is not None and bos_token_id is not None:
            raise ValueError(BOTH_SEPARATORS)
        self.base_collator = base_collator
        self.bos_mode = eos_token_id is None
        self.split_token_id = bos_token_id if eos_token_id is None else eos_token_id

    def __call__(self, examples: list[Any]) -> Batch:
        batch = self.base_collator(examples)
        batch["sequence_id"] = self.get_sequence_id_from_batch(batch)
        return batch

    def get_sequence_id_from_batch(self, batch: Batch) -> Any:
        """The numbers of documents, a tensor like `batch["input_ids"]`. Padding goes on as its last document."""
        import torch

        ids = batch["input_ids"]
        counts = torch.cumsum(ids == self.split_token_id, dim=1).to(ids.dtype)
        if self.bos_mode:
            return counts
        return torch.nn.functional.pad(counts[:, :-1], (1, 0))


BOTH_SEPARATORS = (
    "Cannot use *both* EOS and BOS tokens for detecting sequence boundaries. Please supply `eos_token_id` if sequences "
    "end with an EOS token, or use `bos_token_id` if sequences start with a BOS token."
)


class Seq2SeqFinetuningCollator:
    """Makes batches of examples for finetuning, one a row.

    For decoders, (rows, width) int64, padded on the tokenizer's side:

    ================  ==========================================  =======
    key               meaning                                     padding
    ================  ==========================================  =======
    `input_ids`       contexts and targets, turn after turn       pad id
    `labels`          the same, -100 where there is no loss       -100
    `attention_mask`  1                                           0
    `sequence_id`     0                                           -1
    ================  ==========================================  =======

    For encoder-decoder models `input_ids` and `attention_mask` of all but the last target, `labels` of that, padded on
    the right; `decoder_input_ids`, labels one to the right behind a padding; `decoder_attention_mask`, bool.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_seq_len: int,
        decoder_only_format: bool,
        target_responses: str = "last",
        target_prompts: str = "none",
        allow_pad_trimming: bool = False,
        batch_metadata: dict[str, Any] | None = None,
        pad_to_longest: bool = False,
    ) -> None:
        """
        Args:
            tokenizer: Of transformers; its ids of padding and end and its padding side count.
            max_seq_len: Tokens of a row at most. What is longer is cut on the right, with a warning the first time.
            decoder_only_format: Whether batches are for decoders.
            target_responses, target_prompts: See `stitch_turns_decoder_only`; of any case.
            allow_pad_trimming: Columns of padding alone are left out, up to a multiple of 8, from the second batch on.
            batch_metadata: More keys of every batch, and the value that each row has there.
            pad_to_longest: Rows are as wide as the longest of the batch, instead of max_seq_len. (Those of
                encoder-decoder models may be wider than that.)

        Raises:
            ValueError: A setting is none of the known ones, `batch_metadata` has a key that models use, or the
                tokenizer has no padding.
        """
        self.tokenizer = tokenizer
        self.max_seq_len = max_seq_len
        self.decoder_only_format = decoder_only_format
        self.target_responses = target_responses.lower()
        self.target_prompts = target_prompts.lower()
        self.batch_metadata = batch_metadata or {}
        self._allow_pad_trimming = allow_pad_trimming
        self._pad_to_longest = pad_to_longest
        self._seen_first_batch = False
        self._warned: set[str] = set()
        if found := [key for key in _MODEL_KEYS if key in self.batch_metadata]:
            raise ValueError(
                f"The following keys are in batch_metadata but are not allowed: {', '.join(found)}.\n"
                "You cannot use keys that are used directly by the models. The prohibited keys are:\n"
                f"{', '.join(_MODEL_KEYS)}"
            )
        if max_seq_len % 8:
            logger.warning("For performance, a max_seq_len as a multiple of 8 is recommended.")
        if tokenizer.pad_token_id is None:
            raise ValueError(f"{type(self).__name__} requires that the tokenizer has the pad token set, but it is None")
        validate_target_settings(self.target_prompts, self.target_responses, decoder_only_format)

    def __call__(self, examples: Sequence[TokenizedExample]) -> Batch:
        """A batch of tokenized examples.

        Raises:
            KeyError: The first turn has no input_ids or no labels.
            ValueError: Nothing with loss is left of an example that was cut.
            IndexError: The last target of an example is empty.
        """
        import torch
        from transformers import BatchEncoding

        for key in ("input_ids", "labels"):
            if key not in examples[0]["turns"][0]:
                raise KeyError(f"Examples returned by dataset do not include required key: {key}")
        arrays = self._decoder_only(examples) if self.decoder_only_format else self._encoder_decoder(examples)
        batch = BatchEncoding({key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in arrays.items()})
        batch.update({key: torch.tensor([value] * len(examples)) for key, value in self.batch_metadata.items()})
        return batch

    def _decoder_only(self, examples: Sequence[TokenizedExample]) -> dict[str, npt.NDArray[Any]]:
        stitched = [
            stitch_turns_decoder_only(
                example["turns"], self.target_prompts, self.target_responses, self.tokenizer.eos_token_id
            )
            for example in examples
        ]
        width = self.max_seq_len
        if self._pad_to_longest:
            width = min(width, max(len(ids) for ids, _ in stitched))
        for ids, labels in stitched:
            self._check_cut(len(ids), labels[:width], width)
        side = self.tokenizer.padding_side
        mask = _padded([[1] * min(len(ids), width) for ids, _ in stitched], width, 0, side)
        arrays: dict[str, npt.NDArray[Any]] = {
            "input_ids": _padded([ids[:width] for ids, _ in stitched], width, self.tokenizer.pad_token_id, side),
            "labels": _padded([labels[:width] for _, labels in stitched], width, IGNORE_LABEL, side),
            "attention_mask": mask,
            "sequence_id": mask - 1,
        }
        if self._trims():
            kept = _columns_of(mask)
            columns = slice(-kept, None) if side == "left" else slice(kept)
            arrays = {key: array[:, columns] for key, array in arrays.items()}
        return arrays

    def _encoder_decoder(self, examples: Sequence[TokenizedExample]) -> dict[str, npt.NDArray[Any]]:
        eos, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        stitched = [stitch_turns_encoder_decoder(example["turns"], eos) for example in examples]
        width = self.max_seq_len
        if self._pad_to_longest:
            width = max(len(ids) for both in stitched for ids in both)
        contexts, targets = [], []
        for context, target in stitched:
            if len(target) >= width:  # also where it would just fit, as in LLM Foundry
                self._warn("TARGET sequence", "to", len(target), width)
                target = [*target[: width - 1], eos]
            if len(context) > width:
                self._warn("CONTEXT sequence", "to", len(context), width)
                context = [*context[: width - 1], eos]
            contexts.append(context)
            targets.append(target)
        side = self.tokenizer.padding_side
        labels = _padded(targets, width, IGNORE_LABEL, "right")
        shifted = np.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=pad)
        arrays: dict[str, npt.NDArray[Any]] = {
            "input_ids": _padded(contexts, width, pad, side),
            "labels": labels,
            "attention_mask": _padded([[1] * len(context) for context in contexts], width, 0, side),
            "decoder_input_ids": np.where(shifted == IGNORE_LABEL, pad, shifted),
            "decoder_attention_mask": labels != IGNORE_LABEL,
        }
        if self._trims():
            for mask, others in (
                ("attention_mask", ("input_ids",)),
                ("decoder_attention_mask", ("decoder_input_ids", "labels")),
            ):
                kept = _columns_of(arrays[mask])
                for key in (mask, *others):
                    arrays[key] = arrays[key][:, :kept]
        return arrays

    def _check_cut(self, length: int, labels: Sequence[int], width: int) -> None:
        """Warns of an example that is cut.

        Raises:
            ValueError: Nothing with loss is left of it.
        """
        if length <= width:
            return
        if all(label == IGNORE_LABEL for label in labels):
            raise ValueError(
                f"Truncating to max_seq_len={width} has removed all loss-generating tokens. Pre-truncation sequence "
                f"length was {length}. This sample should have been filtered out before reaching the collator. If "
                "using pre-tokenized streaming data, this may have resulted from using different ``target_prompts``, "
                "``target_responses``, or ``max_seq_len`` settings when preparing the streaming dataset than what are "
                "currently being used."
            )
        self._warn("sequence", "to fit", length, width)

    def _warn(self, what: str, to: str, length: int, width: int) -> None:
        """Says once that something is cut."""
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(
                f"Truncating {what} of length={length} {to} max_seq_len={width}. If truncation is a problem, consider "
                "increasing max_seq_len.",
                stacklevel=2,
            )

    def _trims(self) -> bool:
        """Whether this batch is trimmed; it is seen."""
        is_first, self._seen_first_batch = not self._seen_first_batch, True
        return self._allow_pad_trimming and not is_first


def _padded(rows: Sequence[Sequence[int]], width: int, value: int, side: str) -> npt.NDArray[np.int64]:
    padded = np.full((len(rows), width), value, np.int64)
    for row, ids in zip(padded, rows, strict=True):
        if side == "left":
            row[width - len(ids) :] = ids
        else:
            row[: len(ids)] = ids
    return padded


def _columns_of(mask: npt.NDArray[Any]) -> int:
    """Columns that the longest row needs, up to a multiple."""
    return _MULTIPLE * math.ceil(int(mask.sum(axis=1).max()) / _MULTIPLE)
