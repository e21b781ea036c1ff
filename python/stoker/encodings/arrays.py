"""The encoding of arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from stoker.encodings.base import Encoding, expect

# The byte that names an array's type where the encoding does not.
_DTYPE_CODES = {
    "uint8": 8,
    "int8": 9,
    "uint16": 16,
    "int16": 17,
    "float16": 18,
    "uint32": 32,
    "int32": 33,
    "float32": 34,
    "uint64": 64,
    "int64": 65,
    "float64": 66,
}
_DTYPES = {code: np.dtype(name).newbyteorder("<") for name, code in _DTYPE_CODES.items()}
_MOST_DIMS = 63
# An empty array of one dimension, where the encoding names the type: ndim << 2, its size in a byte. MosaicML Streaming
# reads it, but refuses to write it.
EMPTY_ARRAY = b"\x04\x00"


class Array(Encoding):
    """A numpy array, whose type, or type and shape, may be those of the encoding; else they stand in each value.

    Bytes: the code of the type, if it is not given; ndim << 2 and a code for the width of a dimension, and the
    dimensions, if they are not given; the values, in C order.
    """

    def __init__(self, dtype: str | None = None, shape: tuple[int, ...] | None = None) -> None:
        """
        Args:
            dtype: Name of a numpy type.
            shape: At least 1 in each dimension; needs a dtype.

        Raises:
            ValueError: They are none.
        """
        if dtype is not None and dtype not in _DTYPE_CODES:
            raise ValueError(f"arrays have no dtype {dtype!r}: they are of {', '.join(_DTYPE_CODES)}.")
        if shape is not None and (dtype is None or min(shape) < 1):
            raise ValueError(f"arrays have no shape {shape}: it is numbers of at least 1 behind a dtype.")
        self._name = dtype
        self._dtype = None if dtype is None else np.dtype(dtype).newbyteorder("<")
        self._shape = shape
        if self._dtype is not None and shape is not None:
            self.size = math.prod(shape) * self._dtype.itemsize

    @classmethod
    def from_str(cls, text: str) -> Array:
        """Of what stands behind "ndarray:", such as "int16:3,3".

        Raises:
            ValueError: It is no type, or no shape.
        """
        dtype, colon, dims = text.partition(":")
        try:
            shape = tuple(int(dim) for dim in dims.split(",")) if colon else None
        except ValueError:
            raise ValueError(f"arrays have no shape {dims!r}: it is numbers of at least 1 behind a dtype.") from None
        return cls(dtype or None, shape)

    def encode(self, obj: Any) -> bytes:
        array = expect(obj, np.ndarray)
        code = _DTYPE_CODES.get(array.dtype.name)
        if code is None:
            raise ValueError(f"Unsupported dtype: {array.dtype.name}.")
        if self._name is not None and array.dtype.name != self._name:
            raise ValueError(f"Wrong dtype: expected {self._name}, got {array.dtype.name}.")
        if array.size == 0:
            raise ValueError("Attempting to encode a numpy array with 0 elements.")
        if self._shape is not None and array.shape != self._shape:
            raise ValueError(f"Wrong shape: expected {self._shape}, got {array.shape}.")
        head = b"" if self._dtype is not None else bytes([code])
        if self._shape is None:
            head += _encode_shape(array.shape)
        values: bytes = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        return head + values

    def decode(self, data: bytes) -> np.ndarray:
        """The array. It can't be written to, and shares memory with the bytes where its values are aligned there.

        Raises:
            ValueError: The bytes are no array of this encoding.
        """
        at, dtype, shape = 0, self._dtype, self._shape
        if dtype is None:
            dtype = _DTYPES.get(data[0]) if data else None
            if dtype is None:
                raise ValueError("an array does not begin with the code of a type.")
            at = 1
        if shape is None:
            at, shape = _decode_shape(data, at)
        if len(data) - at != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"an array of {dtype.name} of shape {shape} has {len(data) - at} bytes.")
        values = np.frombuffer(data, dtype, offset=at) if at % dtype.itemsize == 0 else np.frombuffer(data[at:], dtype)
        return values if len(shape) == 1 else values.reshape(shape)


def _encode_shape(shape: tuple[int, ...]) -> bytes:
    """One byte of ndim and a code for the narrowest width that holds the largest dimension, then the dimensions."""
    if not shape:
        raise ValueError("Attempting to encode a scalar with NDArray encoding. Please use a scalar encoding.")
    if len(shape) > _MOST_DIMS:
        raise ValueError(f"Array has too many axes: maximum {_MOST_DIMS}, got {len(shape)}.")
    code = next(code for code in range(4) if max(shape) < 1 << (8 << code) or code == 3)
    return bytes([len(shape) << 2 | code]) + np.array(shape, f"<u{1 << code}").tobytes()


def _decode_shape(data: bytes, at: int) -> tuple[int, tuple[int, ...]]:
    """Where the values begin, and the shape."""
    num_dims, width = (data[at] >> 2, 1 << (data[at] & 3)) if at < len(data) else (0, 1)
    begin, end = at + 1, at + 1 + num_dims * width
    if num_dims == 0 or end > len(data):
        raise ValueError("an array has no shape.")
    return end, tuple(int.from_bytes(data[i : i + width], "little") for i in range(begin, end, width))
