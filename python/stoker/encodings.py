"""Encodings of MDS columns: from a value to bytes, as MosaicML Streaming writes them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

_SCALARS = (
    *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64"),
)
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
# An empty array of one dimension, where the encoding names the type: ndim << 2, its size in a byte. MosaicML Streaming
# reads it, but refuses to write it.
EMPTY_ARRAY = b"\x04\x00"


@dataclass(frozen=True)
class Encoding:
    """How one column is written.

    Attributes:
        name: As in `column_encodings` of index.json.
        size: Bytes of every value; None where it varies.
        encode: From a value to its bytes. Raises AttributeError for a value of another type, ValueError for one that
            the encoding can't hold.
    """

    name: str
    size: int | None
    encode: Callable[[Any], bytes]


def parse_encoding(name: str) -> Encoding:
    """Looks an encoding up: "bytes", "str", "int", "json", a numpy scalar type, or "ndarray[:dtype[:shape]]".

    Raises:
        ValueError: There is no such encoding, or stoker does not write it.
    """
    if name == "bytes":
        return Encoding(name, None, lambda value: bytes(_expect(value, bytes)))
    if name == "str":
        return Encoding(name, None, lambda value: str(_expect(value, str)).encode())
    if name == "int":
        return Encoding(name, 8, lambda value: np.int64(_expect(value, int)).tobytes())
    if name == "json":
        return Encoding(name, None, _encode_json)
    if name in _SCALARS:
        scalar = np.dtype(name).type
        return Encoding(name, np.dtype(name).itemsize, lambda value: scalar(value).tobytes())
    if name == "ndarray" or name.startswith("ndarray:"):
        return _parse_ndarray(name)
    raise ValueError(
        f"there is no encoding {name!r} here: known are bytes, str, int, json, {', '.join(_SCALARS)} and "
        "ndarray[:dtype[:shape]]."
    )


def _expect(value: Any, type_: type) -> Any:
    if not isinstance(value, type_):
        raise AttributeError(f"data should be of type {type_}, but instead, found as {type(value)}")
    return value


def _encode_json(value: Any) -> bytes:
    return json.dumps(value.tolist() if isinstance(value, np.ndarray) else value).encode()


def _parse_ndarray(name: str) -> Encoding:
    _, _, rest = name.partition(":")
    dtype, _, dims = rest.partition(":")
    if dtype and dtype not in _DTYPE_CODES:
        raise ValueError(f"encoding {name!r} has the dtype {dtype!r}: arrays may be of {', '.join(_DTYPE_CODES)}.")
    try:
        shape = tuple(int(dim) for dim in dims.split(",")) if dims else None
    except ValueError:
        shape = (0,)
    if shape is not None and (not dtype or min(shape) < 1):
        raise ValueError(f"encoding {name!r} has the shape {dims!r}: it is numbers of at least 1 behind a dtype.")
    size = None if shape is None else int(np.prod(shape)) * np.dtype(dtype).itemsize

    def encode(value: Any) -> bytes:
        array = _expect(value, np.ndarray)
        if dtype and array.dtype.name != dtype:
            raise ValueError(f"Wrong dtype: expected {dtype}, got {array.dtype.name}.")
        if array.size == 0:
            raise ValueError("Attempting to encode a numpy array with 0 elements.")
        if array.ndim == 0:
            raise ValueError("Attempting to encode a scalar with NDArray encoding. Please use a scalar encoding.")
        if array.ndim > 63:
            raise ValueError(f"an array of {array.ndim} dimensions can't be encoded: 63 is the limit.")
        if shape is not None and array.shape != shape:
            raise ValueError(f"Wrong shape: expected {shape}, got {array.shape}.")
        head = b"" if dtype else bytes([_dtype_code(array.dtype)])
        if shape is None:
            head += _encode_shape(array.shape)
        values: bytes = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        return head + values

    return Encoding(name, size, encode)


def decode_array(name: str, data: bytes) -> np.ndarray:
    """The array that an "ndarray[:dtype[:shape]]" encoding made bytes of. It shares their memory.

    Raises:
        ValueError: The bytes are no array of this encoding.
    """
    _, dtype, dims = [*name.split(":"), "", ""][:3]
    at = 0
    if not dtype:
        names = {code: name for name, code in _DTYPE_CODES.items()}
        if not data or data[0] not in names:
            raise ValueError("an array does not begin with the code of a type.")
        dtype, at = names[data[0]], 1
    shape = [int(dim) for dim in dims.split(",")] if dims else None
    if shape is None:
        num_dims, width = (data[at] >> 2, 1 << (data[at] & 3)) if at < len(data) else (0, 1)
        at += 1
        if num_dims == 0 or len(data) - at < num_dims * width:
            raise ValueError("an array has no shape.")
        shape = np.frombuffer(data, f"<u{width}", num_dims, at).tolist()
        at += num_dims * width
    values = np.dtype(dtype).newbyteorder("<")
    if len(data) - at != math.prod(shape) * values.itemsize:
        raise ValueError(f"an array of {dtype} of shape {shape} has {len(data) - at} bytes.")
    return np.frombuffer(data, values, offset=at).reshape(shape)


def _dtype_code(dtype: np.dtype[Any]) -> int:
    if dtype.name not in _DTYPE_CODES:
        raise ValueError(f"Unsupported dtype: {dtype.name}.")
    return _DTYPE_CODES[dtype.name]


def _encode_shape(shape: tuple[int, ...]) -> bytes:
    """One byte of ndim and a code for the narrowest width that holds the largest dimension, then the dimensions."""
    code = next(code for code in range(4) if max(shape) < 1 << (8 << code) or code == 3)
    return bytes([len(shape) << 2 | code]) + np.array(shape, f"<u{1 << code}").tobytes()
