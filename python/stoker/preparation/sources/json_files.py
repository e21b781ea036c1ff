"""JSON: an object a line, or one array of objects, or one object."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import msgspec

from stoker.preparation.sources.files import line_number, open_file, skip
from stoker.preparation.sources.pieces import BadRowError, Format, Piece, Reading, Row, cut_evenly

_WHITE = b"\xef\xbb\xbf \t\r\n"


class JsonLines(Format):
    """Pieces are ranges of bytes of the decompressed file: the lines that begin there."""

    name = "lines"
    suffixes = (".jsonl", ".ndjson")

    def cut(self, path: str, size_bytes: int, piece_bytes: int, reading: Reading) -> list[Piece]:
        return cut_evenly(path, self.name, size_bytes, piece_bytes, reading)

    def read(self, piece: Piece) -> Iterator[Row | BadRowError]:
        decode = msgspec.json.Decoder().decode
        with open_file(piece.path) as file:
            at = 0
            if piece.begin > 0:  # the line that goes on there is of the piece before
                skip(file, piece.begin - 1)
                at = piece.begin - 1 + len(file.readline())
            first, first_number, num_lines = at, 0, 0  # its number is counted when a line is broken
            while at < piece.end:
                line = file.readline()
                if not line:
                    return
                begin, at = at, at + len(line)
                num_lines += 1
                if line.isspace():
                    continue
                try:
                    values = decode(line)
                    if not isinstance(values, dict):
                        raise ValueError(f"a line must hold an object, not {type(values).__name__}")
                except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
                    first_number = first_number or line_number(piece.path, first)
                    yield BadRowError(f"{piece.path}, line {first_number + num_lines - 1}: {error}")
                    continue
                yield Row(values, piece.path, "byte", begin)


class Json(Format):
    """One piece: an array of objects, or one object. A file of lines may have this name, too."""

    name = "json"
    suffixes = (".json",)

    def cut(self, path: str, size_bytes: int, piece_bytes: int, reading: Reading) -> list[Piece]:
        cut = JsonLines().cut if _is_lines(path) else super().cut
        return cut(path, size_bytes, piece_bytes, reading)

    def read(self, piece: Piece) -> Iterator[Row | BadRowError]:
        """Through a window that holds one object at a time."""
        decoder = json.JSONDecoder()
        path = piece.path
        with io.TextIOWrapper(open_file(path), encoding="utf-8") as file:
            window, number = file.read(1 << 20).lstrip("\ufeff \t\r\n"), 0
            is_array = window.startswith("[")
            at = 1 if is_array else 0
            while True:
                while at < len(window) and window[at] in " \t\r\n,":
                    at += 1
                if at == len(window):
                    window, at = file.read(1 << 20), 0
                    if not window and is_array:
                        raise BadRowError(f"{path}: its array does not end behind {number} objects. Write it again.")
                    if not window:
                        return
                    continue
                if is_array and window[at] == "]":
                    return
                try:
                    values, at = decoder.raw_decode(window, at)
                except json.JSONDecodeError as error:
                    more = file.read(max(1 << 20, len(window)))
                    if not more:
                        raise BadRowError(f"{path}, object {number}: {error}") from None
                    window, at = window[at:] + more, 0
                    continue
                if isinstance(values, dict):
                    yield Row(values, path, "object", number)
                else:
                    yield BadRowError(f"{path}, object {number}: it is no object.")
                number += 1


def _is_lines(path: str) -> bool:
    """Whether a .json file has an object a line: its first line is one. An array may be one long line, which is not
    read for that."""
    with open_file(path) as file:
        while line := file.readline(1 << 16):
            if line.strip(_WHITE):
                break
        if line and not line.lstrip(_WHITE).startswith(b"{"):
            return False
        if line and not line.endswith(b"\n"):
            line += file.readline()
    try:
        return not line or isinstance(json.loads(line), dict)
    except ValueError:
        return False
