"""Tokens of a batch, and those with loss: as Composer asks for them, and as lists with an entry for each row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stoker.preparation.examples import IGNORE_LABEL


class TokenCounter:
    """Counts the tokens of a batch that are no padding, and of its labels those with loss: all but -100 and the first
    of each row, since the model shifts them."""

    def __init__(self, *, decoder_only: bool = True) -> None:
        """
        Args:
            decoder_only: False: the tokens of `decoder_attention_mask` count, too.
        """
        self._decoder_only = decoder_only

    def __call__(self, batch: Any) -> dict[str, int] | int:
        """
        Args:
            batch: A mapping with `attention_mask` or `input_ids`, (rows, width), and maybe `labels`. Or with the lists
                `total_tokens` and `loss_generating_tokens`, of which these are the sums.

        Returns:
            "total" and "loss_generating"; or the total alone, where there are no labels.

        Raises:
            ValueError: The batch is no mapping, or has not what is counted.
        """
        self._check(batch)
        if "total_tokens" in batch and "loss_generating_tokens" in batch:
            return {
                "total": int(sum(batch["total_tokens"])),
                "loss_generating": int(sum(batch["loss_generating_tokens"])),
            }
        totals, losses = self._count_rows(batch)
        if losses is None:
            return sum(totals)
        return {"total": sum(totals), "loss_generating": sum(losses)}

    def count_rows(self, batch: Any) -> tuple[list[int], list[int]]:
        """The same for each row; without labels all tokens count as such with loss.

        Raises:
            ValueError: See above.
        """
        self._check(batch)
        totals, losses = self._count_rows(batch)
        return totals, totals if losses is None else losses

    def _check(self, batch: Any) -> None:
        if not isinstance(batch, Mapping) or ("attention_mask" not in batch and "input_ids" not in batch):
            raise ValueError(
                "get_tokens_per_batch_func() requires a batch with an attention_mask key or an input_ids key"
            )
        if not self._decoder_only and "decoder_attention_mask" not in batch:
            raise ValueError(
                "get_tokens_per_batch_func() for encoder decoder requires a batch with a decoder_attention_mask key"
            )

    def _count_rows(self, batch: Mapping[str, Any]) -> tuple[list[int], list[int] | None]:
        if "attention_mask" in batch:
            totals = batch["attention_mask"].flatten(1).sum(1).tolist()
        else:
            totals = [row.numel() for row in batch["input_ids"]]
        if not self._decoder_only:
            more = batch["decoder_attention_mask"].flatten(1).sum(1).tolist()
            totals = [a + b for a, b in zip(totals, more, strict=True)]
        if "labels" not in batch:
            return totals, None
        return totals, (batch["labels"][..., 1:] != IGNORE_LABEL).flatten(1).sum(1).tolist()


def get_tokens_per_batch_func(decoder_only: bool = True) -> TokenCounter:
    """What counts the tokens of a batch; see `TokenCounter`."""
    return TokenCounter(decoder_only=decoder_only)


class LossGeneratingTokensCollatorWrapper:
    """Adds `total_tokens` and `loss_generating_tokens` to batches: lists of ints with an entry for each row, so that
    Composer can split them as it does tensors."""

    def __init__(
        self, base_collator: Callable[[list[Any]], Any], token_counting_func: Callable[[Any], dict[str, int] | int]
    ) -> None:
        """
        Args:
            base_collator: Makes batches with `input_ids`.
            token_counting_func: Of `get_tokens_per_batch_func`; or anything that counts as that does, which is then
                asked row by row.
        """
        self.base_collator = base_collator
        self.token_counting_func = token_counting_func

    def __call__(self, examples: list[Any]) -> Any:
        batch = self.base_collator(examples)
        if isinstance(self.token_counting_func, TokenCounter):
            totals, losses = self.token_counting_func.count_rows(batch)
        else:
            totals, losses = self._ask_row_by_row(batch)
        batch["total_tokens"] = totals
        batch["loss_generating_tokens"] = list(losses)
        return batch

    def _ask_row_by_row(self, batch: Any) -> tuple[list[Any], list[Any]]:
        keys = [k for k in ("input_ids", "attention_mask", "labels", "decoder_attention_mask") if k in batch]
        rows = [{key: batch[key][i : i + 1] for key in keys} for i in range(len(batch["input_ids"]))]
        counts = [self.token_counting_func(row) for row in rows]
        return (
            [count["total"] if isinstance(count, dict) else count for count in counts],
            [count["loss_generating"] if isinstance(count, dict) else count for count in counts],
        )
