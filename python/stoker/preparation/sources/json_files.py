"""JSON: an object a line, or one array of objects, or one object."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

import msgspec

from stoker.preparation.sources.files import BYTE_ORDER_MARK, line_number, open_file, skip
from stoker.preparation.sources.pieces import BadRowError, Format, Piece, Reading, Row, cut_evenly

_WHITE = BYTE_ORDER_MARK + b" \t\r\n"
_NOT_WHITE = re.compile(r"[^ \t\r\n]")
_DECODER = json.JSONDecoder()
_CHUNK = 1 << 20  # characters that are read at once
_LONGEST_WORD = 16  # characters within which a value that is cut is taken for a wrong one: "-Infinity", "\ud83d\ude42"


class JsonLines(Format):
    """Pieces are ranges of bytes of the decompressed file: the lines that begin there."""

    name = "lines"
    suffixes = (".jsonl", ".ndjson")

    def cut(self, path: str, size_bytes: int, piece_bytes: int, reading: Reading) -> list[Piece]:
        return cut_evenly(path, self.name, size_bytes, piece_bytes, reading)

    def read(self, piece: Piece) -> Iterator[Row | BadRowError]:
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
                line = line.removeprefix(BYTE_ORDER_MARK) if begin == 0 else line
                if not line or line.isspace():
                    continue
                try:
                    values = _decode(line)
                    if not isinstance(values, dict):
                        raise ValueError(f"a line must hold an object, not {type(values).__name__}")
                except ValueError as error:
                    first_number = first_number or line_number(piece.path, first)
                    yield BadRowError(f"{piece.path}, line {first_number + num_lines - 1}: {error}")
                    continue
                yield Row(values, piece.path, "byte", begin)


def _decode(line: bytes) -> Any:
    """A value. msgspec is fast; the json module also takes NaN, 1e999 and halves of characters.

    Raises:
        ValueError: It is none.
    """
    try:
        try:
            return msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            try:
                return json.loads(line.decode())
            except ValueError:
                raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class Json(Format):
    """One piece: an array of objects, or one object. A file of lines may have this name, too."""

    name = "json"
    suffixes = (".json",)

    def cut(self, path: str, size_bytes: int, piece_bytes: int, reading: Reading) -> list[Piece]:
        cut = JsonLines().cut if _is_lines(path) else super().cut
        return cut(path, size_bytes, piece_bytes, reading)

    def read(self, piece: Piece) -> Iterator[Row | BadRowError]:
        path = piece.path
        with io.TextIOWrapper(open_file(path), encoding="utf-8-sig") as file:
            window, number = _Window(file), 0
            is_array = window.take("[")
            is_over = is_array and window.take("]")
            while not is_over:
                if is_array and not window.peek():
                    raise BadRowError(f"{path}: its array does not end behind {number} objects. Write it again.")
                try:
                    values = window.decode()
                except ValueError as error:
                    told = error.msg if isinstance(error, json.JSONDecodeError) else error  # not where in the window
                    raise BadRowError(f"{path}, object {number}: {told}") from None
                if isinstance(values, dict):
                    yield Row(values, path, "object", number)
                else:
                    yield BadRowError(f"{path}, object {number}: it is no object.")
                number += 1
                has_comma = is_array and window.take(",")
                is_over = not is_array or window.take("]")
                if not is_over and not has_comma and window.peek():
                    raise BadRowError(f"{path}: no comma stands behind its first {number} objects. Write it again.")
            if window.peek():
                what = f"array of {number} objects" if is_array else "object"
                raise BadRowError(f"{path}: there is more behind its {what}. Make it an array, or give it a line each.")


class _Window:
    """A file of JSON, of which no more is in memory than a value needs."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text, self._at = "", 0

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            if found := _NOT_WHITE.search(self._text, self._at):
                self._at = found.start()
                return found.group()
            self._text, self._at = self._file.read(_CHUNK), 0
            if not self._text:
                return ""

    def take(self, character: str) -> bool:
        """Goes on behind the next character that is no white space, if it is this one. Returns whether it is."""
        is_there = self.peek() == character
        self._at += is_there
        return is_there

    def decode(self) -> Any:
        """The value that begins here. Goes on behind it.

        Raises:
            ValueError: It is none, or cut.
        """
        while True:
            try:
                value, self._at = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                is_cut = error.pos + _LONGEST_WORD > len(self._text) or error.msg.startswith("Unterminated string")
                more = self._file.read(max(_CHUNK, len(self._text))) if is_cut else ""
                if not more:
                    raise
                self._text, self._at = self._text[self._at :] + more, 0
            except RecursionError:
                raise ValueError("it is nested too deeply") from None
            else:
                return value


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
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    except (ValueError, RecursionError):  # an object for all that
        return True
