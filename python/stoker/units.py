"""Numbers with suffixes, as MosaicML Streaming's configurations write them."""

from __future__ import annotations

import operator
from typing import Any

_BYTES = {"b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40, "pb": 1 << 50}
_COUNTS = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def parse_bytes(value: int | str) -> int:
    """Parses a size in bytes: 1024, "100b", "64mb", "1.5GB" (1024-based).

    Raises:
        ValueError: `value` is negative or has no known suffix.
    """
    return _parse(value, _BYTES, "a size in bytes")


def parse_count(value: int | str) -> int:
    """Parses a count: 1000, "100k", "1.5m", "2b", "1t" (1000-based).

    Raises:
        ValueError: `value` is negative or has no known suffix.
    """
    return _parse(value, _COUNTS, "a count")


def _parse(value: int | str, suffixes: dict[str, int], what: str) -> int:
    number: Any = value
    if isinstance(value, str):
        digits = value.strip().lower().rstrip("abcdefghijklmnopqrstuvwxyz")
        suffix = value.strip().lower()[len(digits) :]
        try:
            number = int(float(digits) * suffixes[suffix]) if suffix else int(digits)
        except (KeyError, ValueError, OverflowError):
            known = ", ".join(suffixes)
            raise ValueError(f"{value!r} is not {what}: write a number with one of the suffixes {known}.") from None
    try:
        number = operator.index(number)
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(f"{value!r} is not {what}: it must be a whole number of at least 0.")
    return int(number)
