"""Memory for batches, and the arrays or tensors that a trainer sees of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from stoker import _core

logger = logging.getLogger("stoker")


@dataclass(frozen=True)
class BatchForm:
    """What a buffer holds: field after field, and cu_seqlens behind them, if it is asked for.

    Attributes:
        format: For the core.
        fields: Name and numpy's integer type of each field that is (num_rows, seq_len).
        num_rows: Rows.
        seq_len: Tokens a row.
        cu_seqlens_entries: int32 numbers of cu_seqlens; 0: there is none.
    """

    format: _core.BatchFormat
    fields: tuple[tuple[str, str], ...]
    num_rows: int
    seq_len: int
    cu_seqlens_entries: int

    def tensors(self, buffer: Any) -> list[Any]:
        """The fields as tensors over a buffer, a torch tensor of bytes. Those of type "uint16" are int16: torch can
        compute with these everywhere."""
        import torch

        views = []
        shapes: list[tuple[tuple[int, ...], str]] = [((self.num_rows, self.seq_len), dtype) for _, dtype in self.fields]
        if self.cu_seqlens_entries:
            shapes.append(((self.cu_seqlens_entries,), "int32"))
        for offset, (shape, dtype) in zip(self.format.offsets, shapes, strict=True):
            torch_dtype = torch.int16 if dtype == "uint16" else getattr(torch, dtype)
            size_bytes = int(np.prod(shape)) * torch_dtype.itemsize
            views.append(buffer[offset : offset + size_bytes].view(torch_dtype).view(shape))
        return views


class BatchMemory(Protocol):
    """Where batches are filled."""

    def take(self) -> tuple[Any, int]:
        """A buffer that nobody uses, and its address."""

    def arrays(self, buffer: Any) -> list[Any]:
        """The fields of the filled buffer, each an array or a tensor that keeps the buffer alive."""


class NumpyMemory:
    """Buffers from a pool, to which each returns when the last array that views it dies."""

    def __init__(self, form: BatchForm, max_kept: int) -> None:
        self._format = form.format
        self._pool = _core.BufferPool(form.format.size_bytes, max_kept)

    def take(self) -> tuple[_core.Buffer, int]:
        return self._pool.take()

    def arrays(self, buffer: _core.Buffer) -> list[Any]:
        return buffer.arrays(self._format)


class TorchMemory(NumpyMemory):
    """The same as tensors."""

    def __init__(self, form: BatchForm, max_kept: int) -> None:
        import torch

        super().__init__(form, max_kept)
        self._from_numpy = torch.from_numpy

    def arrays(self, buffer: _core.Buffer) -> list[Any]:
        return [self._from_numpy(field) for field in super().arrays(buffer)]


def take_pinned(size_bytes: int) -> Any:
    """Page-locked bytes, as a tensor of torch's caching host allocator."""
    import torch

    return torch.empty(size_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)  # whatever torch's default is


class PinnedMemory:
    """torch's own pinned tensors, each handed out once: torch's caching host allocator then keeps the memory of a
    tensor that is dropped until copies from it are done."""

    def __init__(self, form: BatchForm) -> None:
        self._form = form

    def take(self) -> tuple[Any, int]:
        tensor = take_pinned(self._form.format.size_bytes)
        return tensor, tensor.data_ptr()

    def arrays(self, buffer: Any) -> list[Any]:
        return self._form.tensors(buffer)


def make_memory(form: BatchForm, *, max_kept: int, pin_memory: bool) -> BatchMemory:
    """Chooses where batches are filled: torch tensors, or numpy arrays where torch is not installed.

    Args:
        form: What they hold.
        max_kept: Buffers that wait in the pool for use at most.
        pin_memory: Fill page-locked memory. Without torch or an accelerator that has it, plain memory is used, with a
            warning.
    """
    try:
        import torch
    except ModuleNotFoundError:
        if pin_memory:
            logger.warning("pin_memory=True needs torch, which is not installed: batches are plain numpy arrays.")
        return NumpyMemory(form, max_kept)
    accelerators = [getattr(torch, name, None) for name in ("cuda", "xpu")]  # older torch has no xpu
    if pin_memory and any(accelerator is not None and accelerator.is_available() for accelerator in accelerators):
        return PinnedMemory(form)
    if pin_memory:
        logger.warning(
            "pin_memory=True but torch finds no accelerator that copies from pinned memory: batches are in "
            "plain memory."
        )
    return TorchMemory(form, max_kept)
