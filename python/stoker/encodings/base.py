"""What an encoding of MDS columns is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class Encoding(ABC):
    """From a value to bytes and back. Has no state that changes, so one serves all threads.

    Users write their own, see `register_encoding`: a class without arguments, or with a class method `from_str(text)`
    that makes one of what stands behind the colon of its name.

    Attributes:
        size: Bytes of every value; None where it varies.
    """

    size: int | None = None

    @abstractmethod
    def encode(self, obj: Any) -> bytes:
        """From a value to its bytes.

        Raises:
            AttributeError: The value is of another type.
            ValueError, OverflowError: The encoding can't hold it.
        """

    @abstractmethod
    def decode(self, data: bytes) -> Any:
        """From the bytes to the value.

        Raises:
            ValueError: They are none that the encoding writes.
        """


def expect(value: Any, type_: type) -> Any:
    """The value, if it is of a type.

    Raises:
        AttributeError: It is not.
    """
    if not isinstance(value, type_):
        raise AttributeError(f"data should be of type {type_}, but instead, found as {type(value)}")
    return value
