"""Packs lengths into rows: what layout `pack` does with samples, for looking at fill and for other loaders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stoker import _core
from stoker.options import check_index


def best_fit(
    lengths: Sequence[int] | npt.NDArray[np.integer], seq_len: int, *, max_samples_per_row: int | None = None
) -> list[list[int]]:
    """Packs all lengths at once, best-fit decreasing: each goes into the row with the least room that holds it.

    Source: Ding et al., "Fewer Truncations Improve Language Modeling", ICML 2024. O(n log n).

    Args:
        lengths: Tokens of each sample, 1 to seq_len.
        seq_len: Tokens a row.
        max_samples_per_row: Default: any number.

    Returns:
        Rows of indices into `lengths`, each longest first.

    Raises:
        ValueError: A length or an argument breaks its rule.
    """
    seq_len = check_index("seq_len", seq_len, 1, (1 << 31) - 1)
    most = 0 if max_samples_per_row is None else check_index("max_samples_per_row", max_samples_per_row, 1, 1 << 31)
    return _core.pack_best_fit(_check_lengths(lengths, 1, seq_len), seq_len, most)


class FoundryPacker:
    """LLM Foundry's packer (`BinPackCollator` of llm-foundry 0.22), row for row, with what it leaves over.

    Attributes:
        leftovers: Bins left over for the next call, as lists of examples' numbers.
    """

    def __init__(self, batch_size: int, seq_len: int, max_leftover_bins_to_keep: int | None = None) -> None:
        """Begins with nothing left over.

        Args:
            batch_size: Rows a call, the reference's `target_batch_size`.
            seq_len: Tokens a row.
            max_leftover_bins_to_keep: Bins beyond it are dropped. Default: all are kept.

        Raises:
            ValueError: An argument breaks its rule.
        """
        self._seq_len = check_index("seq_len", seq_len, 1, (1 << 31) - 1)
        keep = max_leftover_bins_to_keep
        self._packer = _core.FoundryPacker(
            check_index("batch_size", batch_size, 1, (1 << 31) - 1),
            self._seq_len,
            None if keep is None else check_index("max_leftover_bins_to_keep", keep, 0, (1 << 31) - 1),
        )
        self._num_packed = 0

    def pack(self, lengths: Sequence[int] | npt.NDArray[np.integer]) -> list[list[int]]:
        """Packs the examples of one raw batch together with what is left over.

        Args:
            lengths: Tokens of each example, 0 to seq_len.

        Returns:
            At most batch_size rows, the fullest first: numbers of examples, counted from 0 over all calls, in the order
            in which the row holds them.

        Raises:
            ValueError: A length is negative or above seq_len.
        """
        sizes = _check_lengths(lengths, 0, self._seq_len).tolist()
        first = self._num_packed
        self._num_packed += len(sizes)
        return self._packer.pack(list(enumerate(sizes, first)))

    @property
    def leftovers(self) -> list[list[int]]:
        return self._packer.leftovers


def _check_lengths(lengths: Sequence[int] | npt.NDArray[np.integer], low: int, seq_len: int) -> npt.NDArray[np.uint32]:
    array = np.asarray(lengths)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"lengths must be a list of whole numbers; found {array.dtype} of shape {array.shape}.")
    wrong = np.flatnonzero((array < low) | (array > seq_len))
    if wrong.size:
        raise ValueError(f"length {wrong[0]} is {array[wrong[0]]}: it must be from {low} to seq_len = {seq_len}.")
    return array.astype(np.uint32)
