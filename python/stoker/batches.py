"""Memory for batches, and the arrays or tensors that a trainer sees of it."""

from __future__ import annotations

import logging
import math
from typing import Any, Protocol

import numpy as np

from stoker import _core

logger = logging.getLogger("stoker")


class BatchMemory(Protocol):
    """Where batches are filled. One buffer holds all fields, (fields, rows, seq_len) of one integer type, and behind
    them cu_seqlens, `num_more` int32, if any."""

    def take(self) -> tuple[Any, int]:
        """A buffer that nobody uses, and its address."""

    def arrays(self, buffer: Any) -> Any:
        """The fields of the filled buffer, each an array or a tensor that keeps the buffer alive."""


class NumpyMemory:
    """Buffers from a pool, to which each returns when the last array that views it dies."""

    def __init__(self, shape: tuple[int, int, int], num_more: int, dtype: str, max_kept: int) -> None:
        self._shape = shape
        self._num_more = num_more
        self._dtype = np.dtype(dtype)
        self._pool = _core.BufferPool(math.prod(shape) * self._dtype.itemsize + 4 * num_more, max_kept)

    def take(self) -> tuple[_core.Buffer, int]:
        return self._pool.take()

    def arrays(self, buffer: _core.Buffer) -> Any:
        return buffer.arrays(self._dtype, self._shape, self._num_more)


class TorchMemory(NumpyMemory):
    """The same as tensors."""

    def __init__(self, shape: tuple[int, int, int], num_more: int, dtype: str, max_kept: int) -> None:
        import torch

        super().__init__(shape, num_more, dtype, max_kept)
        self._from_numpy = torch.from_numpy

    def arrays(self, buffer: _core.Buffer) -> Any:
        return [self._from_numpy(field) for field in super().arrays(buffer)]


class PinnedMemory:
    """torch's own pinned tensors, each handed out once: torch's caching host allocator then keeps the memory of a
    tensor that is dropped until copies from it are done."""

    def __init__(self, shape: tuple[int, int, int], num_more: int, dtype: str) -> None:
        import torch

        self._torch = torch
        self._shape = shape
        self._dtype = getattr(torch, dtype)
        self._fields_bytes = math.prod(shape) * self._dtype.itemsize
        self._size_bytes = self._fields_bytes + 4 * num_more

    def take(self) -> tuple[Any, int]:
        tensor = self._torch.empty(self._size_bytes, dtype=self._torch.uint8, pin_memory=True)
        return tensor, tensor.data_ptr()

    def arrays(self, buffer: Any) -> Any:
        fields = list(buffer[: self._fields_bytes].view(self._dtype).view(self._shape).unbind())
        more = buffer[self._fields_bytes :].view(self._torch.int32)
        return [*fields, more] if len(more) else fields


def make_memory(
    shape: tuple[int, int, int], num_more: int, dtype: str, *, max_kept: int, pin_memory: bool
) -> BatchMemory:
    """Chooses where batches are filled: torch tensors, or numpy arrays where torch is not installed.

    Args:
        shape: (fields, rows, seq_len).
        num_more: int32 numbers behind them.
        dtype: "int32" or "int64".
        max_kept: Buffers that wait in the pool for use at most.
        pin_memory: Fill page-locked memory. Without torch or an accelerator, plain memory is used, with a warning.
    """
    try:
        import torch
    except ModuleNotFoundError:
        if pin_memory:
            logger.warning("pin_memory=True needs torch, which is not installed: batches are plain numpy arrays.")
        return NumpyMemory(shape, num_more, dtype, max_kept)
    if pin_memory and torch.cuda.is_available():
        return PinnedMemory(shape, num_more, dtype)
    if pin_memory:
        logger.warning("pin_memory=True but torch finds no accelerator: batches are in plain memory.")
    return TorchMemory(shape, num_more, dtype, max_kept)
