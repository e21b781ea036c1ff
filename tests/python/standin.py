"""A model of an accelerator, for tests of the handoff: streams that run as late as they may, or at random; events; and
allocators that poison memory the moment it may be reused."""

from __future__ import annotations

import contextlib
import functools
import random
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map

POISON = 0xA5


class Stream:
    """Work in order, done when somebody needs it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._work: list[Callable[[], Any]] = []
        self.num_done = 0

    def launch(self, work: Callable[[], Any]) -> None:
        self._work.append(work)

    def run(self, until: int) -> None:
        while self.num_done < until:
            self.num_done += 1
            self._work[self.num_done - 1]()

    @property
    def num_launched(self) -> int:
        return len(self._work)

    @property
    def num_waiting(self) -> int:
        return len(self._work) - self.num_done

    def run_one(self) -> None:
        self.run(self.num_done + 1)

    def synchronize(self) -> None:
        self.run(len(self._work))

    def record_event(self) -> Event:
        return Event(self)

    def wait_event(self, event: Event) -> None:
        self.launch(event.synchronize)

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream.record_event())


class Event:
    """What a stream had been given when the event was recorded."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._until = stream.num_launched

    @property
    def has_happened(self) -> bool:
        return self._stream.num_done >= self._until

    def synchronize(self) -> None:
        self._stream.run(self._until)


class Block:
    """Memory of the device. It belongs to a stream."""

    def __init__(self, size_bytes: int, owner: Stream) -> None:
        self.bytes = torch.full((size_bytes,), POISON, dtype=torch.uint8)
        self.owner = owner
        self.users: set[Stream] = set()  # other streams that it was recorded for
        self.num_tensors = 0

    def poison(self) -> None:
        self.bytes.fill_(POISON)


class Allocator:
    """As torch's caching allocator: a block whose tensors are dropped is used again in its stream's order, and poisoned
    before that; but not before the streams that it was recorded for have done what they had been given by then."""

    def __init__(self) -> None:
        self._free: list[Block] = []
        self._busy: list[tuple[Block, list[Event]]] = []

    def take(self, size_bytes: int, owner: Stream) -> Block:
        for block, events in list(self._busy):
            if all(event.has_happened for event in events):
                self._busy.remove((block, events))
                self._give(block)
        for block in self._free:
            if len(block.bytes) == size_bytes and block.owner is owner:
                self._free.remove(block)
                return block
        return Block(size_bytes, owner)

    def attach(self, block: Block, tensor: torch.Tensor) -> None:
        block.num_tensors += 1
        weakref.finalize(tensor, self._detach, block)

    def _detach(self, block: Block) -> None:
        block.num_tensors -= 1
        if block.num_tensors > 0:
            return
        if block.users:
            self._busy.append((block, [stream.record_event() for stream in block.users]))
        else:
            self._give(block)

    def _give(self, block: Block) -> None:
        block.users.clear()
        block.owner.launch(block.poison)
        self._free.append(block)


class DeviceTensor(torch.Tensor):
    """A tensor of the device: what is computed with it is launched on the current stream."""

    accelerator: StandIn
    block: Block
    values: torch.Tensor  # on the CPU, over the block's bytes

    @staticmethod
    def __new__(cls, accelerator: StandIn, block: Block, values: torch.Tensor) -> DeviceTensor:
        self = torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype
        )
        self.accelerator, self.block, self.values = accelerator, block, values
        accelerator.allocator.attach(block, self)
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, DeviceTensor)]
        accelerator = tensors[0].accelerator
        # The work holds values, not tensors: memory is free once the program has dropped its tensors.
        real_args, real_kwargs = tree_map(lambda a: a.values if isinstance(a, DeviceTensor) else a, (args, kwargs))
        work = functools.partial(func, *real_args, **real_kwargs)
        (alias,) = [r.alias_info for r in func._schema.returns]
        if alias is not None and not alias.is_write:  # a view
            return DeviceTensor(accelerator, tensors[0].block, work())
        if alias is not None:  # in place
            accelerator.launch(work)
            return args[0]
        like = work()  # on whatever is there, for its shape and type
        out = accelerator.empty(like.shape, like.dtype)
        values = out.values
        accelerator.launch(lambda: values.copy_(work()))
        return out


class StandIn:
    """An `stoker.accelerator.Accelerator`. With `rng`, streams run in part now and then; else as late as they may."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng
        self.streams = [Stream("default")]
        self._current = self.streams[0]
        self.allocator = Allocator()
        self._host_blocks: dict[int, tuple[np.ndarray, list[Event]]] = {}
        self.copied_bytes: list[int] = []
        self.is_capturing = False

    # ------------------------------------------------------------ what the handoff uses
    def take_host(self, size_bytes: int) -> torch.Tensor:
        memory = np.full(size_bytes, POISON, np.uint8)
        tensor = torch.from_numpy(memory)
        address = tensor.data_ptr()
        self._host_blocks[address] = memory, []
        weakref.finalize(tensor, self._drop_host, address)
        return tensor

    def _drop_host(self, address: int) -> None:
        memory, copies = self._host_blocks[address]
        if not copies:  # torch's caching host allocator waits for those it knows of, and so do we: for ever
            memory.fill(POISON)

    def take(self, size_bytes: int) -> DeviceTensor:
        return self.empty((size_bytes,), torch.uint8)

    def copy(self, to: DeviceTensor, source: torch.Tensor) -> None:
        memory, copies = self._host_blocks[source.data_ptr()]
        values = to.values
        self.copied_bytes.append(len(memory))
        self.launch(lambda: values.copy_(torch.from_numpy(memory)))
        copies.append(self._current.record_event())

    def new_stream(self) -> Stream:
        self.streams.append(Stream(f"stream {len(self.streams)}"))
        return self.streams[-1]

    def current_stream(self) -> Stream:
        return self._current

    @contextlib.contextmanager
    def launching_on(self, stream: Stream) -> Iterator[None]:
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    def keep_for(self, tensor: DeviceTensor, stream: Stream) -> None:
        tensor.block.users.add(stream)

    def check_usable(self) -> None:
        if self.is_capturing:
            raise RuntimeError("a graph is being captured")

    # ------------------------------------------------------------ the model
    def empty(self, shape: Any, dtype: torch.dtype) -> DeviceTensor:
        block = self.allocator.take(int(np.prod(shape)) * dtype.itemsize, self._current)
        return DeviceTensor(self, block, block.bytes.view(dtype).view(shape))

    def launch(self, work: Callable[[], Any]) -> None:
        self._current.launch(work)
        if self._rng is not None:
            for stream in self._rng.sample(self.streams, len(self.streams)):
                for _ in range(self._rng.randrange(4)):
                    if stream.num_waiting:
                        stream.run_one()

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        """The values, as a copy launched on the current stream would see them."""
        assert isinstance(tensor, DeviceTensor)
        self._current.synchronize()
        return tensor.values.clone()
