"""Input that is not as it should be: read where its meaning is clear, else told in a sentence that names the place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import stoker
from preparing import write_tokenizer
from stoker.preparation.sources import BadRowError, Row, find_parts, json_files, read_rows

pytest.importorskip("tokenizers")

BOM = b"\xef\xbb\xbf"
DEEP = "[" * 100_000


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A folder with a tokenizer of words."""
    (tmp_path / "tokenizer").mkdir()
    write_tokenizer(tmp_path / "tokenizer" / "tokenizer.json")
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return tmp_path / "tokenizer"


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    return path


def rows_of(path: Path) -> Iterator[Row | BadRowError]:
    return (row for part in find_parts([path]) for piece in part for row in read_rows(piece))


def values_of(path: Path) -> list[dict[str, Any]]:
    """Of all rows, none of which is bad."""
    rows = list(rows_of(path))
    assert all(isinstance(row, Row) for row in rows)
    return [row.values for row in rows if isinstance(row, Row)]


# ---------------------------------------------------------------- what is read
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"text": "w1"}\n{"text": "w2"}\n'),
        ("a.json", b'{"text": "w1"}\n{"text": "w2"}\n'),
        ("a.json", b'[{"text": "w1"}, {"text": "w2"}]'),
        ("a.csv", b"text\nw1\nw2\n"),
    ],
)
def test_a_byte_order_mark_at_the_beginning_is_none_of_the_data(name: str, content: bytes, tmp_path: Path) -> None:
    assert values_of(write(tmp_path / name, BOM + content)) == [{"text": "w1"}, {"text": "w2"}]


def test_a_text_file_begins_behind_its_byte_order_mark(tmp_path: Path) -> None:
    assert values_of(write(tmp_path / "a.txt", BOM + b"w1 \xef\xbb\xbf")) == [{"text": "w1 \ufeff"}]


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", '"\\ud800"'])
def test_lines_that_only_the_json_module_takes_are_taken(number: str, tmp_path: Path) -> None:
    content = f'{{"text": "w1", "more": {number}}}\n{{"text": "w2"}}\n'
    for name in ("a.jsonl", "a.json"):
        assert [values["text"] for values in values_of(write(tmp_path / name, content))] == ["w1", "w2"]


def test_tabs_are_told_by_the_last_suffix(tmp_path: Path) -> None:
    assert values_of(write(tmp_path / "a.tsv.old.csv", b"text,id\nw1,2\n")) == [{"text": "w1", "id": "2"}]
    assert values_of(write(tmp_path / "a.csv.tsv", b"text\tid\nw1\t2\n")) == [{"text": "w1", "id": "2"}]


def test_an_array_is_read_through_a_small_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which ends at every place of an object once."""
    objects = [{"text": "w1 \u6570 \\", "n": -12.5e-3, "is": True, "of": [None, {"x": "\U0001f642"}]}] * 3
    path = write(tmp_path / "a.json", json.dumps(objects))
    for chunk in range(1, 90):
        monkeypatch.setattr(json_files, "_CHUNK", chunk)
        assert values_of(path) == objects


# ---------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[{"text": "w1"}] []', "a.json: there is more behind its array of 1 objects"),
        ("a.json", b'[{"text": "w1"}]]', "a.json: there is more behind its array of 1 objects"),
        ("a.json", b'{"text":\n "w1"}\n{"text":\n "w2"}', "a.json: there is more behind its object"),
        ("a.json", b'{"text":\n "w1"} \xef\xbb\xbf', "a.json: there is more behind its object"),
        ("a.json", b'[{"text": "w1"} {"text": "w2"}]', "a.json: no comma stands behind its first 1 objects"),
        ("a.json", b'[{"text": "w1"}', "a.json: its array does not end behind 1 objects"),
        ("a.json", f'[{{"text": {DEEP}', "a.json, object 0: it is nested too deeply"),
        ("a.json", f'[{{"text": {"1" * 5000}}}]', "a.json, object 0: Exceeds the limit"),
        ("a.json", f'{{"text": {DEEP}', "a.json, line 1: it is nested too deeply"),
        ("a.jsonl", f'{{"text": {DEEP}\n', "a.jsonl, line 1: it is nested too deeply"),
        ("a.jsonl", f'{{"text": {"1" * 5000}}}\n', "a.jsonl, line 1: Integer value out of range"),
        ("a.csv", b"text,id,text\nw1,2,w3\n", "a.csv, line 1: 2 columns are named text"),
        ("a.csv", b'te"xt\nw1\n"w2"\n', "a.csv"),
    ],
)
def test_a_file_that_breaks_its_format_is_named(
    name: str, content: bytes | str, message: str, tokenizer: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message):
        stoker.prepare(path, tmp_path / "out", tokenizer, kind="text", processes=1)


def test_the_rest_of_an_array_behind_a_broken_object_is_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "_CHUNK", 1000)
    path = write(tmp_path / "a.json", '[{"text": }' + ', {"text": "w1"}' * 10_000 + "]")
    windows: list[int] = []
    decode = json_files._DECODER.raw_decode
    monkeypatch.setattr(
        json_files._DECODER, "raw_decode", lambda text, at: windows.append(len(text)) or decode(text, at)
    )
    with pytest.raises(BadRowError, match=r"a.json, object 0: Expecting value"):
        list(rows_of(path))
    assert windows == [1000]
