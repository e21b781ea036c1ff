"""The way of a batch from pinned memory to tensors on an accelerator.

A batch travels as one block of bytes, each field in the smallest integer type that holds it. The copy runs on a stream
of its own, batches ahead of the consumer; the consumer's stream waits for its event, and widens the fields there into
tensors of the dtype asked for. No thread of the CPU waits for the device.

Who may reuse which memory when:
* the pinned buffer: torch's caching host allocator keeps a dropped pinned tensor until the copies from it are done;
* the block on the device: it belongs to the copy stream, and `record_stream` tells torch's caching allocator that the
  consumer's stream reads it, too;
* the tensors handed out: they are allocated on the consumer's stream and are the consumer's. With static buffers they
  are written again in that stream's order, behind everything the consumer has launched before it asks for a batch.
"""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple, Protocol

from stoker.batches import BatchForm

_IGNORE_LABEL = -100  # torch's ignore_index


class Accelerator(Protocol):
    """A device's allocators and streams, as far as the handoff uses them. Streams have torch's methods record_event,
    wait_event and wait_stream."""

    def take_host(self, size_bytes: int) -> Any:
        """Bytes on the CPU that the device copies from: a tensor that is handed out once."""

    def take(self, size_bytes: int) -> Any:
        """Bytes on the device, of the current stream."""

    def copy(self, to: Any, source: Any) -> None:
        """Launches a copy from host to device on the current stream. `source` may be dropped at once."""

    def new_stream(self) -> Any:
        """A stream for copies."""

    def current_stream(self) -> Any:
        """The stream that the calling thread launches on."""

    def launching_on(self, stream: Any) -> contextlib.AbstractContextManager[Any]:
        """Makes it another one."""

    def keep_for(self, tensor: Any, stream: Any) -> None:
        """Once `tensor` is dropped, its memory is not reused before all that `stream` has been given until then."""

    def check_usable(self) -> None:
        """Raises RuntimeError where a graph is being captured."""


class TorchAccelerator:
    """A device of torch that has streams: CUDA, ROCm, XPU."""

    def __init__(self, device: Any) -> None:
        import torch

        self._torch = torch
        self._module = torch.get_device_module(device)
        index = self._module.current_device() if device.index is None else device.index
        self._device = torch.device(device.type, index)

    def take_host(self, size_bytes: int) -> Any:
        return self._torch.empty(size_bytes, dtype=self._torch.uint8, pin_memory=True)

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
        capturing = getattr(self._module, "is_current_stream_capturing", None)
        if capturing is not None and capturing():
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
        return self._torch.empty(size_bytes, dtype=self._torch.uint8)

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


class Copy(NamedTuple):
    """A batch under way: its block on the device, and the event after the copy."""

    block: Any
    done: Any


class Handoff:
    """Copies batches to a device and widens them there. Belongs to the thread of the consumer."""

    def __init__(
        self, accelerator: Accelerator, form: BatchForm, fields: tuple[str, ...], dtype: str, *, is_static: bool
    ) -> None:
        """
        Args:
            accelerator: The device.
            form: What a batch is on the wire: see `wire_fields`.
            fields: The fields that are handed out, in this order.
            dtype: Their type, "int32" or "int64".
            is_static: Hand out the same tensors every time.
        """
        import torch

        self._torch = torch
        self._accelerator = accelerator
        self._form = form
        self._fields = fields
        self._dtype = getattr(torch, dtype)
        self._is_static = is_static
        self._static: list[Any] = []
        self._reader: Any = None  # the stream that the static tensors were last handed out on
        self._copies = accelerator.new_stream()

    def take(self) -> tuple[Any, int]:
        """A buffer for the engine to fill, and its address."""
        host = self._accelerator.take_host(self._form.format.size_bytes)
        return host, host.data_ptr()

    def launch(self, host: Any) -> Copy:
        """Launches the copy of a filled buffer, which may be dropped at once."""
        with self._accelerator.launching_on(self._copies):
            block = self._accelerator.take(len(host))
            self._accelerator.copy(block, host)
        return Copy(block, self._copies.record_event())

    def receive(self, copy: Copy) -> list[Any]:
        """The fields of a batch, in the order of the consumer's stream."""
        consumer = self._accelerator.current_stream()
        consumer.wait_event(copy.done)
        self._accelerator.keep_for(copy.block, consumer)
        fields = self._widen(copy.block)
        return self._into_static(fields, consumer) if self._is_static else fields

    def _into_static(self, fields: list[Any], consumer: Any) -> list[Any]:
        if not self._static:
            self._static = fields
        else:
            if consumer != self._reader:
                consumer.wait_stream(self._reader)  # what it has launched may still read them
            for static, field in zip(self._static, fields, strict=True):
                static.copy_(field)
        self._reader = consumer
        return self._static

    def _widen(self, block: Any) -> list[Any]:
        """The fields of a block in the dtype asked for; cu_seqlens in its own. None of them shares its memory."""
        torch, dtype = self._torch, self._dtype
        views = self._form.tensors(block)
        on_wire = {name: (type_, view) for (name, type_), view in zip(self._form.fields, views, strict=False)}
        wide = {}
        for name, (type_, view) in on_wire.items():
            values = view.to(dtype, copy=True)
            if type_ == "uint16":  # its bits as int16: of ids the large ones are negative, and so is no label at all
                unsigned = values.bitwise_and(0xFFFF)
                values = torch.where(values == _IGNORE_LABEL, values, unsigned) if name == "labels" else unsigned
            wide[name] = values
        if "loss_mask" in wide:
            wide["labels"] = torch.where(wide.pop("loss_mask").bool(), wide["input_ids"], _IGNORE_LABEL)
        fields = [wide[name] for name in self._fields]
        return [*fields, views[-1].clone()] if self._form.cu_seqlens_entries else fields

    def check_usable(self) -> None:
        """Raises RuntimeError while a graph is being captured."""
        self._accelerator.check_usable()


def wire_fields(
    fields: tuple[str, ...],
    *,
    token_types: set[str | None],
    has_labels: bool,
    num_streams: int,
    seq_len: int,
    pad_id: int,
    vocab_size: int | None,
) -> tuple[tuple[str, str], ...]:
    """The fields of a batch on the wire, each with its type: the smallest one that holds all that the field can be.

    Token ids take 2 bytes where the types on disk or the vocabulary say that they fit, else 4. Labels that follow from
    the ids take one byte that says where there is loss; others take 2 where vocab_size leaves -100 (65,436) free, else
    4.

    Args:
        fields: What is asked for.
        token_types: Types of token ids on disk; None: not known before a shard is read.
        has_labels: Whether any stream has labels of its own.
        num_streams: Streams.
        seq_len: Tokens a row.
        pad_id: Token id of padding.
        vocab_size: Ids are below it, if it is known.
    """
    two_bytes = {"uint8", "int8", "uint16", "int16"}
    ids_fit = token_types <= two_bytes or (vocab_size is not None and vocab_size <= 1 << 16)
    labels_fit = vocab_size is not None and vocab_size <= (1 << 16) + _IGNORE_LABEL
    in_row = "int16" if seq_len < 1 << 15 else "int32"
    types = {
        "input_ids": "uint16" if ids_fit and 0 <= pad_id < 1 << 16 else "int32",
        "labels": "uint16" if labels_fit else "int32",
        "loss_mask": "uint8",
        "attention_mask": "uint8",
        "position_ids": in_row,
        "sequence_id": in_row,
        "stream_ids": "int8" if num_streams <= 1 << 7 else "int16" if num_streams <= 1 << 15 else "int32",
    }
    on_wire = ["loss_mask" if name == "labels" and not has_labels else name for name in fields]
    return tuple((name, types[name]) for name in on_wire)


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
        module = torch.get_device_module(wanted)
        found = module.device_count() if module.is_available() else 0
    except (RuntimeError, AttributeError):
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

    return TorchAccelerator(device) if hasattr(torch.get_device_module(device), "Stream") else TorchQueue(device)
