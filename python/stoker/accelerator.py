"""The devices that batches are handed to: what the handoff needs of torch, and no more."""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

from stoker.batches import take_pinned


class Accelerator(Protocol):
    """A device's allocators and streams, as far as the handoff uses them. Streams have torch's methods record_event,
    wait_event and wait_stream."""

    def take_host(self, size_bytes: int) -> Any:
        """Bytes on the CPU that the device copies from: a tensor that is handed out once."""

    def take(self, size_bytes: int) -> Any:
        """Bytes on the device, of the stream that the calling thread launches on."""

    def copy(self, to: Any, source: Any) -> None:
        """Launches a copy from host to device on the current stream. `source` may be dropped at once."""

    def new_stream(self) -> Any:
        """A stream for copies."""

    def current_stream(self) -> Any:
        """The stream that the calling thread launches on."""

    def launching_on(self, stream: Any) -> contextlib.AbstractContextManager[Any]:
        """In a `with` block the thread launches on `stream`."""

    def keep_for(self, tensor: Any, stream: Any) -> None:
        """Once `tensor` is dropped, its memory is not reused before all that `stream` has been given until then."""

    def check_usable(self) -> None:
        """Raises RuntimeError where a graph is being captured."""


class TorchAccelerator:
    """A device of torch that has streams: CUDA, ROCm, XPU."""

    def __init__(self, device: Any) -> None:
        import torch

        self._torch = torch
        self._module = getattr(torch, device.type)
        index = self._module.current_device() if device.index is None else device.index
        self._device = torch.device(device.type, index)

    def take_host(self, size_bytes: int) -> Any:
        return take_pinned(size_bytes)

    def take(self, size_bytes: int) -> Any:
        return self._torch.empty(size_bytes, dtype=self._torch.uint8, device=self._device)

    def copy(self, to: Any, source: Any) -> None:
        to.copy_(source, non_blocking=True)

    def new_stream(self) -> Any:
        return self._module.Stream(device=self._device)

    def current_stream(self) -> Any:
        return self._module.current_stream(self._device)

    def launching_on(self, stream: Any) -> contextlib.AbstractContextManager[Any]:
        context: contextlib.AbstractContextManager[Any] = self._module.stream(stream)
        return context

    def keep_for(self, tensor: Any, stream: Any) -> None:
        tensor.record_stream(stream)

    def check_usable(self) -> None:
        is_capturing = getattr(self._module, "is_current_stream_capturing", None)
        if is_capturing is None:
            return
        with self._module.device(self._device):
            refuses = is_capturing()
        if refuses:
            raise RuntimeError(
                "a batch was asked for while a CUDA graph is being captured: take it before the capture, and give the "
                "graph the tensors of a loader with static_buffers=True."
            )


class TorchQueue:
    """A device of torch that does one thing after the other, such as MPS: a copy is done before the call returns."""

    class _Stream:
        def record_event(self) -> None:
            return None

        def wait_event(self, _: None) -> None:
            return None

    def __init__(self, device: Any) -> None:
        import torch

        self._torch = torch
        self._device = device
        self._stream = self._Stream()

    def take_host(self, size_bytes: int) -> Any:
        return self._torch.empty(size_bytes, dtype=self._torch.uint8, device="cpu")

    def take(self, size_bytes: int) -> Any:
        return self._torch.empty(size_bytes, dtype=self._torch.uint8, device=self._device)

    def copy(self, to: Any, source: Any) -> None:
        to.copy_(source)

    def new_stream(self) -> Any:
        return self._stream

    def current_stream(self) -> Any:
        return self._stream

    def launching_on(self, stream: Any) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext(stream)

    def keep_for(self, tensor: Any, stream: Any) -> None:
        pass

    def check_usable(self) -> None:
        pass


def check_device(device: Any) -> Any:
    """Checks a loader's `device`, without starting the device's context.

    Args:
        device: "cuda", "cuda:1", a torch.device, ...; or an Accelerator itself.

    Returns:
        A torch.device, or the Accelerator; None for the CPU.

    Raises:
        ValueError: There is no such device here.
    """
    if device is None or hasattr(device, "keep_for"):
        return device
    try:
        import torch
    except ModuleNotFoundError:
        raise ValueError(f"device={str(device)!r} needs torch, which is not installed.") from None
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(
            f'device is {device!r}: it must be torch\'s name of one, such as "cuda" or "cuda:0".'
        ) from None
    if wanted.type == "cpu":
        return None
    try:
        module = getattr(torch, wanted.type)
        found = module.device_count() if module.is_available() else 0
    except (RuntimeError, AttributeError):  # no such backend
        found = 0
    if found == 0:
        raise ValueError(
            f"device is {str(wanted)!r}, but torch {torch.__version__} finds no {wanted.type} device here: check the "
            "driver and that torch was built for it, or leave `device` out."
        )
    if wanted.index is not None and wanted.index >= found:
        raise ValueError(
            f"device is {str(wanted)!r}, but there are {found} {wanted.type} devices here: the last one is "
            f"{wanted.type}:{found - 1}."
        )
    return wanted


def open_accelerator(device: Any) -> Accelerator:
    """Makes the accelerator of what `check_device` returned."""
    if hasattr(device, "keep_for"):
        accelerator: Accelerator = device
        return accelerator
    import torch

    return TorchAccelerator(device) if hasattr(getattr(torch, device.type), "Stream") else TorchQueue(device)
