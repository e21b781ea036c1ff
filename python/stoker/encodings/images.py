"""Encodings of images, by Pillow."""

from __future__ import annotations

import contextlib
import struct
from io import BytesIO
from typing import Any

from stoker.encodings.base import Encoding, expect

_WORD_BYTES = 4  # of sizes and counts, u32
_HEAD = struct.Struct("<III")  # width, height, bytes of the mode


def _pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise ModuleNotFoundError('columns of images need Pillow: pip install "stoker[images]".') from None
    return Image


class Pil(Encoding):
    """An image as its pixels: width, height and the length of the name of the mode, that name, the pixels."""

    def encode(self, obj: Any) -> bytes:
        image = expect(obj, _pillow().Image)
        mode = image.mode.encode()
        return b"".join([_HEAD.pack(*image.size, len(mode)), mode, image.tobytes()])

    def decode(self, data: bytes) -> Any:
        if len(data) < _HEAD.size:
            raise ValueError(f"an image has {len(data)} bytes.")
        width, height, mode_bytes = _HEAD.unpack_from(data)
        end = _HEAD.size + mode_bytes
        return _pillow().frombytes(data[_HEAD.size : end].decode(), (width, height), data[end:])


class Png(Encoding):
    """An image as PNG. What is decoded is read when it is first looked at."""

    _format = "PNG"

    def encode(self, obj: Any) -> bytes:
        out = BytesIO()
        expect(obj, _pillow().Image).save(out, format=self._format)
        return out.getvalue()

    def decode(self, data: bytes) -> Any:
        return _pillow().open(BytesIO(data))


class Jpeg(Png):
    """An image as JPEG: the bytes of its file, where it was read from one that is still there."""

    _format = "JPEG"

    def encode(self, obj: Any) -> bytes:
        expect(obj, _pillow().Image)
        from PIL.JpegImagePlugin import JpegImageFile

        path = obj.filename if isinstance(obj, JpegImageFile) else ""
        if path:
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
                return file.read()
        return super().encode(obj)


class JpegArray(Encoding):
    """Files of JPEG, given as bytes: their number and sizes, then they. They are not looked into."""

    def encode(self, obj: Any) -> bytes:
        return _join(list(obj))

    def decode(self, data: bytes) -> list[Any]:
        parts = _cut(data)
        if not parts:
            raise ValueError("an array of images holds none.")
        return [Jpeg().decode(part) for part in parts]


class ImageList(Encoding):
    """A list of images of one encoding: four bytes that mean nothing, their number and sizes, then they."""

    def __init__(self, of: Encoding) -> None:
        self._of = of

    def encode(self, obj: Any) -> bytes:
        return bytes(_WORD_BYTES) + _join([self._of.encode(image) for image in expect(obj, list)])

    def decode(self, data: bytes) -> list[Any]:
        return [self._of.decode(part) for part in _cut(data[_WORD_BYTES:])]


def _join(parts: list[bytes]) -> bytes:
    return b"".join([struct.pack(f"<{1 + len(parts)}I", len(parts), *map(len, parts)), *parts])


def _cut(data: bytes) -> list[bytes]:
    """
    Raises:
        ValueError: They are not as long as they say.
    """
    number = int.from_bytes(data[:_WORD_BYTES], "little")
    at = _WORD_BYTES * (1 + number)
    if len(data) < max(at, _WORD_BYTES):
        raise ValueError(f"a list of {number} images has {len(data)} bytes.")
    parts = []
    for size in struct.unpack_from(f"<{number}I", data, _WORD_BYTES):
        parts.append(data[at : at + size])
        at += size
    if at != len(data):
        raise ValueError(f"a list of {number} images, of {at} bytes by its sizes, has {len(data)}.")
    return parts
