"""Encodings of single values: bytes, text, numbers, JSON and pickles."""

from __future__ import annotations

import json
import pickle
import struct
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np

from stoker.encodings.base import Encoding, expect

SCALARS = (
    *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64"),
)
_INT64 = struct.Struct("<q")


class Bytes(Encoding):
    """Bytes as they are."""

    def encode(self, obj: Any) -> bytes:
        return bytes(expect(obj, bytes))

    def decode(self, data: bytes) -> bytes:
        return data


class Str(Encoding):
    """Text, as UTF-8."""

    def encode(self, obj: Any) -> bytes:
        return str(expect(obj, str)).encode()

    def decode(self, data: bytes) -> str:
        return data.decode()


class Int(Encoding):
    """A Python int, as int64."""

    size = 8

    def encode(self, obj: Any) -> bytes:
        return bytes(np.int64(expect(obj, int)).tobytes())

    def decode(self, data: bytes) -> int:
        return int(_INT64.unpack(_of_size(data, 8))[0])


class Scalar(Encoding):
    """A number of a numpy type."""

    def __init__(self, dtype: str) -> None:
        self._dtype = np.dtype(dtype)
        self._type = self._dtype.type
        self.size = self._dtype.itemsize

    def encode(self, obj: Any) -> bytes:
        return bytes(self._type(obj).tobytes())

    def decode(self, data: bytes) -> Any:
        return np.frombuffer(_of_size(data, self._dtype.itemsize), self._dtype)[0]


class StrInt(Encoding):
    """A Python int of any size, as its digits."""

    def encode(self, obj: Any) -> bytes:
        return str(expect(obj, int)).encode()

    def decode(self, data: bytes) -> int:
        return int(data.decode())


class StrFloat(Encoding):
    """A Python float, as its shortest digits."""

    def encode(self, obj: Any) -> bytes:
        return str(expect(obj, float)).encode()

    def decode(self, data: bytes) -> float:
        return float(data.decode())


class StrDecimal(Encoding):
    """A Decimal, as its digits."""

    def encode(self, obj: Any) -> bytes:
        return str(expect(obj, Decimal)).encode()

    def decode(self, data: bytes) -> Decimal:
        try:
            return Decimal(data.decode())
        except InvalidOperation:
            raise ValueError(f"{data!r} is no decimal number.") from None


class Json(Encoding):
    """What JSON can hold, and NaN and infinities, as Python writes them. An array becomes a list."""

    def encode(self, obj: Any) -> bytes:
        return json.dumps(obj.tolist() if isinstance(obj, np.ndarray) else obj).encode()

    def decode(self, data: bytes) -> Any:
        return json.loads(data.decode())


class Pickle(Encoding):
    """Whatever can be pickled. Reading it may run any code."""

    def encode(self, obj: Any) -> bytes:
        return pickle.dumps(obj)

    def decode(self, data: bytes) -> Any:
        return pickle.loads(data)


def _of_size(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise ValueError(f"a number of {size} bytes has {len(data)}.")
    return data
