"""What builders return: a loader, and what counts the tokens of its batches, as Composer's trainer takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stoker.foundry.token_counts import get_tokens_per_batch_func


class DataSpec:
    """What stands for Composer's class of this name where Composer is not installed.

    Attributes:
        dataloader: The loader.
    """

    def __init__(
        self, dataloader: Any, get_num_tokens_in_batch: Callable[[Any], Mapping[str, int] | int] | None = None
    ) -> None:
        """
        Args:
            dataloader: Any loader.
            get_num_tokens_in_batch: Counts tokens: all, or by what they are. Default: see `TokenCounter`.
        """
        self.dataloader = dataloader
        self._count = get_num_tokens_in_batch or get_tokens_per_batch_func()

    def get_num_tokens_in_batch(self, batch: Any, token_type: str = "total") -> int:
        """Tokens of a batch: "total", those that are no padding; or "loss_generating".

        Raises:
            ValueError: There are no counts of this name, or the batch is not one of tokens.
        """
        counts = self._count(batch)
        if isinstance(counts, int):
            return counts
        if not isinstance(counts, Mapping):
            raise ValueError(f"Unexpected return type from get_num_tokens_in_batch: {type(counts)}")
        if token_type not in counts:
            raise ValueError(f"Token type {token_type} not found in num_tokens dict.")
        return counts[token_type]


def get_data_spec(dl: Any, dataset_cfg: Mapping[str, Any] | None = None) -> Any:
    """A loader with what counts its tokens: Composer's DataSpec where Composer is installed, else a `DataSpec`.

    Args:
        dl: The loader.
        dataset_cfg: Nothing depends on it.
    """
    try:
        from composer.core import DataSpec as ComposerDataSpec
    except ImportError:
        return DataSpec(dataloader=dl, get_num_tokens_in_batch=get_tokens_per_batch_func())
    return ComposerDataSpec(dataloader=dl, get_num_tokens_in_batch=get_tokens_per_batch_func())
