"""Where a loader's batches come from: an engine, and the memory that it fills."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from stoker import _core
from stoker.batches import BatchForm, BatchMemory
from stoker.dataset import TokenDataset
from stoker.handoff import Copy, Handoff, wire_fields
from stoker.options import Options

# Batches that are on the device, or on their way to it, before they are asked for: one is there when the step ends, and
# the next is on its way even if that step is short. More would only take memory of the device.
_COPIES_AHEAD = 2


def make_form(dataset: TokenDataset, options: Options, *, on_device: bool) -> BatchForm:
    """What a loader's buffers hold: fields of its dtype, or, where they go to a device, the smallest that will do."""
    fields = tuple((name, options.dtype) for name in options.row_fields)
    if on_device:
        fields = wire_fields(
            options.row_fields,
            token_types={schema.token_type for index in dataset.indexes for schema in index.schemas},
            has_labels="finetuning" in dataset.kinds,
            num_streams=len(dataset.names),
            seq_len=options.seq_len,
            pad_id=options.pad_id,
            vocab_size=options.vocab_size,
        )
    follows_foundry = options.field_rules == "foundry"
    core_format = _core.BatchFormat(
        fields=fields,
        num_rows=options.batch_size,
        seq_len=options.seq_len,
        pad_id=options.pad_id,
        pad_left=options.padding_side == "left",
        documents=options.documents,
        document_tokens=dataset.document_tokens(),
        counts_padding=follows_foundry,
        ignores_pad_id=follows_foundry,
        needs_loss=follows_foundry,
        is_packed=options.layout == "pack",
        pad_to_multiple=options.pad_to_multiple,
        vocab_size=options.vocab_size or 0,
        cu_seqlens_capacity=max(0, options.cu_seqlens_entries - 1),
    )
    return BatchForm(core_format, fields, options.batch_size, options.seq_len, options.cu_seqlens_entries)


class Feed(Protocol):
    """The batches of one run of an engine."""

    engine: _core.Engine

    def next(self, timeout_s: float) -> tuple[list[Any], _core.BatchInfo]:
        """Waits for the next batch, `timeout_s` seconds at most; 0: for as long as it takes."""

    @property
    def next_row(self) -> int | None:
        """The global row at which it begins; None once the engine is closed."""

    def ahead(self, received: _core.BatchInfo | None) -> Sequence[_core.BatchInfo]:
        """Batches that the engine has handed over, and a consumer that received this one last has not."""


class HostFeed:
    """Batches in memory of the CPU."""

    def __init__(self, engine: _core.Engine, memory: BatchMemory) -> None:
        self.engine = engine
        self._memory = memory

    def ahead(self, received: _core.BatchInfo | None) -> Sequence[_core.BatchInfo]:
        last = self.engine.last
        return () if last is None or last is received else (last,)

    @property
    def next_row(self) -> int | None:
        return self.engine.next_row

    def next(self, timeout_s: float) -> tuple[list[Any], _core.BatchInfo]:
        buffer, info = self.engine.next(timeout_s, *self._memory.take())
        return self._memory.arrays(buffer), info


class DeviceFeed:
    """Batches on an accelerator. Each `next` launches the copies of what is complete at that moment, up to
    _COPIES_AHEAD."""

    def __init__(self, engine: _core.Engine, handoff: Handoff, *, global_batch: int) -> None:
        self.engine = engine
        self._handoff = handoff
        self._global_batch = global_batch
        self._under_way: deque[tuple[Copy, _core.BatchInfo]] = deque()
        self._taken: deque[_core.BatchInfo] = deque(maxlen=_COPIES_AHEAD + 2)  # from the engine, the last ones

    def ahead(self, received: _core.BatchInfo | None) -> Sequence[_core.BatchInfo]:
        taken = list(self._taken)
        if (last := self.engine.last) is not None and (not taken or taken[-1] is not last):
            taken.append(last)
        places = [i for i, info in enumerate(taken) if info is received]
        return taken[places[0] + 1 :] if places else taken

    @property
    def next_row(self) -> int | None:
        row = self.engine.next_row
        if row is None or not self._under_way:
            return row
        return self._under_way[0][1].end_row - self._global_batch

    def next(self, timeout_s: float) -> tuple[list[Any], _core.BatchInfo]:
        self._handoff.check_usable()
        if not self._under_way:
            self._launch(timeout_s)
        while len(self._under_way) <= _COPIES_AHEAD and self.engine.has_batch:
            self._launch(timeout_s)
        copy, info = self._under_way.popleft()
        return self._handoff.receive(copy), info

    def _launch(self, timeout_s: float) -> None:
        host, info = self.engine.next(timeout_s, *self._handoff.take())
        self._taken.append(info)
        self._under_way.append((self._handoff.launch(host), info))
