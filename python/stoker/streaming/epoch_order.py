"""The order of an epoch, made once for all workers of a rank.

Each worker could make it for itself: it is a function of what they all know. But where samples are shuffled it takes
seconds, and 4 bytes a sample, from some 10^7 samples on. So whoever comes first makes it, while it holds a lock, and
leaves it in a file in memory without a name. The others wait for the lock, and map the file. The kernel lets go of the
lock with the process that has it; then the next one makes the order. Where the file is gone, or can't be opened, a
worker makes the order for itself.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import msgspec

from stoker.streaming.shared_file import SharedFile
from stoker.streaming_order import EpochOrder

_ORDER_LOCK = 0
_ALIGNMENT = 64  # bytes, of arrays in the file


class _Offer(msgspec.Struct):
    """Where an order lies: in a file that a process has open."""

    key: str = ""
    path: str = ""
    sizes: list[int] = []  # bytes of its parts: the pickle, then arrays


class OrderSharing:
    """Where workers find the order of their epoch. Can be pickled for them."""

    def __init__(self) -> None:
        self._board = SharedFile(msgspec.json.encode(_Offer()))
        self._offered: weakref.finalize[Any, Any] | None = None  # of the file that others open by our descriptor

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_offered": None}

    def find(self, key: str, make: Callable[[], EpochOrder]) -> EpochOrder:
        """The order of an epoch, made here or by another worker.

        Args:
            key: The same for all who may share it, and for nobody else.
            make: What makes it. Raises what it raises.
        """
        with self._board.locked(_ORDER_LOCK):
            offer = msgspec.json.decode(self._board.read(), type=_Offer)
            if offer.key == key:
                with contextlib.suppress(OSError):
                    return _read(offer)
            file, sizes = _write(make())
            offer = _Offer(key, f"/proc/{os.getpid()}/fd/{file}", sizes)
            self._board.write(msgspec.json.encode(offer))
        if self._offered is not None:
            self._offered()  # closes what was offered for the epoch before
        self._offered = weakref.finalize(self, os.close, file)
        return _read(offer)


def _write(order: EpochOrder) -> tuple[int, list[int]]:
    """A file with the pickle of an order, and its arrays behind it."""
    arrays: list[pickle.PickleBuffer] = []
    content = pickle.dumps(order, protocol=5, buffer_callback=arrays.append)
    parts = [memoryview(content), *(array.raw() for array in arrays)]
    file = os.memfd_create("stoker-streaming", os.MFD_CLOEXEC)
    at = 0
    with open(file, "wb", closefd=False) as out:
        for part in parts:
            out.seek(at)
            out.write(part)
            at = _behind(at, part.nbytes)
    os.ftruncate(file, at)
    return file, [part.nbytes for part in parts]


def _read(offer: _Offer) -> EpochOrder:
    """
    Raises:
        OSError: The process has the file no more, or is another user's.
    """
    with open(offer.path, "rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    parts = []
    at = 0
    for size in offer.sizes:
        parts.append(data[at : at + size])
        at = _behind(at, size)
    order: EpochOrder = pickle.loads(parts[0], buffers=parts[1:])
    return order


def _behind(at: int, size: int) -> int:
    return -(-(at + size) // _ALIGNMENT) * _ALIGNMENT
