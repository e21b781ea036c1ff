"""The way of a batch from pinned memory to tensors on an accelerator.

A batch travels as one block of bytes, each field in the smallest integer type that holds it. The copy runs on a stream
of its own, batches ahead of the consumer; the consumer's stream waits for its event, and widens the fields there into
tensors of the dtype asked for. No thread of the CPU waits for the device.

Who may reuse which memory when:
* the pinned buffer: torch's caching host allocator keeps a dropped pinned tensor until the copies from it are done;
* the staged bytes on the device: they belong to the copy stream, and `record_stream` tells torch's caching allocator
  that the consumer's stream reads them, too;
* the tensors handed out: they are allocated on the consumer's stream and are the consumer's. Static ones are written
  again in the order of the stream that asks for a batch, behind what was launched before on the stream that asked last;
  `record_stream` tells the allocator of each such stream.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from stoker.accelerator import Accelerator
from stoker.batches import BatchForm

_IGNORE_LABEL = -100  # torch's ignore_index


class Copy(NamedTuple):
    """A batch under way: its bytes on the device, and the event after the copy."""

    staged: Any
    done: Any


class Handoff:
    """Copies batches to a device and widens them there. Belongs to the thread of the consumer."""

    def __init__(
        self, accelerator: Accelerator, form: BatchForm, *, fields: tuple[str, ...], dtype: str, is_static: bool
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
            staged = self._accelerator.take(len(host))
            self._accelerator.copy(staged, host)
        return Copy(staged, self._copies.record_event())

    def receive(self, copy: Copy) -> list[Any]:
        """The fields of a batch, in the order of the consumer's stream."""
        consumer = self._accelerator.current_stream()
        consumer.wait_event(copy.done)
        self._accelerator.keep_for(copy.staged, consumer)
        fields = self._widen(copy.staged)
        return self._into_static(fields, consumer) if self._is_static else fields

    def _into_static(self, fields: list[Any], consumer: Any) -> list[Any]:
        if not self._static:
            with self._torch.inference_mode(False):  # tensors that may be written anywhere
                self._static = [field.clone() for field in fields]
        else:
            if consumer != self._reader:
                consumer.wait_stream(self._reader)  # what it has launched may still read them
                for static in self._static:
                    self._accelerator.keep_for(static, consumer)
            for static, field in zip(self._static, fields, strict=True):
                static.copy_(field)
        self._reader = consumer
        return self._static

    def _widen(self, staged: Any) -> list[Any]:
        """The fields of a batch in the dtype asked for; cu_seqlens in its own. None of them shares the memory."""
        torch, dtype = self._torch, self._dtype
        views = self._form.tensors(staged)
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
