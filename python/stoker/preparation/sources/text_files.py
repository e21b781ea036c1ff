"""Text: a file is one document."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stoker.preparation.boundaries import FARTHEST, is_boundary
from stoker.preparation.sources.files import open_file, skip
from stoker.preparation.sources.pieces import BadRowError, Format, Piece, Reading, Row, cut_evenly

_MOST_WHOLE = 32 << 20  # bytes of a document that is not cut
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
        context = min(piece.begin, _CONTEXT)
        nominal_end = context + piece.end - piece.begin
        most = nominal_end + FARTHEST + _CONTEXT
        with open_file(piece.path) as file:
            skip(file, piece.begin - context)
            data = file.read(most)
        begin = _find_cut(data, context) if piece.begin > 0 else 0
        end = _find_cut(data, nominal_end)
        if begin == end and piece.begin > 0:  # no white space in it: it belongs to the piece before
            return
        try:
            text = data[begin:end].decode("utf-8")
        except UnicodeDecodeError as error:
            at = piece.begin - context + begin + error.start
            raise BadRowError(
                f"{piece.path} contains chars that cannot be utf-8 decoded: byte {at} of it, {error.reason}"
            ) from None
        is_end = end == len(data) < most
        yield Row({"text": text}, piece.path, "", 0, is_begin=piece.begin == 0, is_end=is_end)


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
