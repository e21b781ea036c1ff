"""Encodings by their names, as `columns` of a writer and `column_encodings` of an index give them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from stoker.encodings import images, values
from stoker.encodings.arrays import Array
from stoker.encodings.base import Encoding

_UNSAFE = frozenset({"pkl"})  # whose reading may run any code


def _scalar(dtype: str) -> Callable[[], Encoding]:
    return lambda: values.Scalar(dtype)


# What makes each encoding: a class, or a function. Users add theirs, for the whole process: a shard names its encodings
# wherever it is read, so there is no other place to look them up.
_ENCODINGS: dict[str, Callable[[], Encoding]] = {
    "bytes": values.Bytes,
    "str": values.Str,
    "int": values.Int,
    "ndarray": Array,
    **{dtype: _scalar(dtype) for dtype in values.SCALARS},
    "str_int": values.StrInt,
    "str_float": values.StrFloat,
    "str_decimal": values.StrDecimal,
    "pil": images.Pil,
    "jpeg": images.Jpeg,
    "jpeg_array": images.JpegArray,
    "jpegarray": images.JpegArray,
    "png": images.Png,
    "list[pil]": lambda: images.ImageList(images.Pil()),
    "list[jpeg]": lambda: images.ImageList(images.Jpeg()),
    "list[png]": lambda: images.ImageList(images.Png()),
    "pkl": values.Pickle,
    "json": values.Json,
}


def register_encoding(name: str, encoding: type[Encoding]) -> None:
    """Adds an encoding of one's own, or replaces one, for this process.

    A process that is not forked from this one, such as a DataLoader's worker that is spawned, has to do the same: call
    it in the module that defines the class. Shards with such columns are read by whoever has registered the same.

    Args:
        name: Without a colon.
        encoding: A class that is made without arguments. If it has a class method `from_str(text)`, "name:text" is
            what that makes of the text.

    Raises:
        ValueError: The name has a colon.
        TypeError: It is no class of `Encoding`.
    """
    if not name or ":" in name:
        raise ValueError(f"an encoding can't be called {name!r}: what stands behind a colon are its arguments.")
    if not isinstance(encoding, type) or not issubclass(encoding, Encoding):
        raise TypeError(f"{encoding!r} is no class of stoker.encodings.Encoding.")
    _ENCODINGS[name] = encoding
    parse_encoding.cache_clear()


@functools.lru_cache(maxsize=1024)
def parse_encoding(name: str) -> Encoding:
    """Looks an encoding up, such as "int", "str" or "ndarray:int16:3,3".

    Raises:
        ValueError: There is no such encoding.
    """
    base, colon, text = name.partition(":")
    make = _ENCODINGS.get(base)
    if make is None:
        raise ValueError(f"there is no encoding {name!r}: known are {', '.join(sorted(_ENCODINGS))}.")
    if not colon:
        return make()
    from_str = getattr(make, "from_str", None)
    if from_str is None:
        raise ValueError(f"encoding {name!r} has arguments behind a colon, which {base!r} does not take.")
    made: Encoding = from_str(text)
    return made


def get_mds_encodings() -> set[str]:
    """The names of all encodings."""
    return set(_ENCODINGS)


def is_mds_encoding(encoding: str) -> bool:
    """Whether there is such an encoding."""
    try:
        parse_encoding(encoding)
    except ValueError:
        return False
    return True


def is_mds_encoding_safe(encoding: str) -> bool:
    """Whether reading it can't run code that stands in the data."""
    return encoding.partition(":")[0] not in _UNSAFE


def get_mds_encoded_size(encoding: str) -> int | None:
    """Bytes of every value; None where it varies.

    Raises:
        ValueError: There is no such encoding.
    """
    return _find(encoding).size


def mds_encode(encoding: str, obj: Any) -> bytes:
    """From a value to bytes. What is bytes already stays as it is, whatever the encoding.

    Raises:
        ValueError: There is no such encoding, or it can't hold the value.
        AttributeError, OverflowError: See `Encoding.encode`.
    """
    return obj if isinstance(obj, bytes) else _find(encoding).encode(obj)


def mds_decode(encoding: str, data: bytes) -> Any:
    """From bytes to the value. Pickles, too: `is_mds_encoding_safe` tells them.

    Raises:
        ValueError: There is no such encoding, or these are not its bytes.
    """
    return _find(encoding).decode(data)


def _find(encoding: str) -> Encoding:
    try:
        return parse_encoding(encoding)
    except ValueError as error:
        raise ValueError(f"Unsupported encoding: {encoding}. {error}") from None
