"""Text: a file is one document."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stoker.preparation.boundaries import FARTHEST, is_boundary
from stoker.preparation.sources.files import open_file, skip
from stoker.preparation.sources.pieces import BadRowError, Format, Piece, Reading, Row, cut_evenly

_MOST_WHOLE = 32 << 20  # bytes of a document that is not cut
_MOST_AT_ONCE = 32 << 20  # bytes of a piece that become one row; those of compressed files may be longer
_CONTEXT = 4  # bytes around a place that hold the characters there
_WHITE_SPACE = re.compile(rb"[ \t\n\v\f\r]+")


class Text(Format):
    """A long one is cut in pieces of bytes, each from where white space begins at or behind its `begin` to where it
    does behind its `end`."""

    name = "text"
    suffixes = (".txt", ".md")

    def cut(self, path: str, size_bytes: int, piece_bytes: int, reading: Reading) -> list[Piece]:
        if size_bytes <= _MOST_WHOLE:
            return super().cut(path, size_bytes, piece_bytes, reading)
        return cut_evenly(path, self.name, size_bytes, piece_bytes, reading)

    def read(self, piece: Piece) -> Iterator[Row]:
        """Some rows, where it is longer than what is read at once."""
        with open_file(piece.path) as file:
            context = min(piece.begin, _CONTEXT)
            skip(file, piece.begin - context)
            data = b""  # from `context` bytes before `nominal_begin` on
            for nominal_begin in range(piece.begin, max(piece.end, piece.begin + 1), _MOST_AT_ONCE):
                nominal_end = min(nominal_begin + _MOST_AT_ONCE, piece.end)
                rest = context + nominal_end - nominal_begin
                most = rest + FARTHEST + _CONTEXT
                data += file.read(most - len(data))
                begin = _find_cut(data, context) if nominal_begin > 0 else 0
                end = _find_cut(data, rest)
                if begin < end or nominal_begin == 0:  # else there is no white space: it belongs to the row before
                    text = _decode(data[begin:end], piece.path, nominal_begin - context + begin)
                    is_end = end == len(data) < most
                    yield Row({"text": text}, piece.path, "", 0, is_begin=nominal_begin == 0, is_end=is_end)
                context = min(nominal_end, _CONTEXT)
                data = data[rest - context :]


def _decode(data: bytes, path: str, begin: int) -> str:
    """Text from a byte of a file on.

    Raises:
        BadRowError: It is not UTF-8.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRowError(
            f"{path} contains chars that cannot be utf-8 decoded: byte {begin + error.start} of it, {error.reason}"
        ) from None
    return text.removeprefix("\ufeff") if begin == 0 else text


def _find_cut(data: bytes, begin: int) -> int:
    """As `find_boundary` does in text, before ASCII white space."""
    for found in _WHITE_SPACE.finditer(data, begin, begin + FARTHEST):
        at = found.start()
        before = data[max(0, at - _CONTEXT) : at].decode("utf-8", "ignore")[-1:]
        if is_boundary(before, chr(data[at])):
            return at
    if begin + FARTHEST >= len(data):
        return len(data)
    starts = (at for at in range(begin, begin + _CONTEXT - 1) if data[at] & 0xC0 != 0x80)  # of a character
    return next(starts, begin)
