"""Input that is not as it should be: read where its meaning is clear, else told in a sentence that names the place."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import stoker
from preparing import END, samples_of, write_lines, write_tokenizer
from stoker.foundry.errors import UnableToProcessPromptResponseError
from stoker.preparation import examples
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


# ---------------------------------------------------------------- bad rows
USER, ASSISTANT = {"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}
NESTED = "[" * 2000 + "]" * 2000
BAD_ROWS: list[tuple[str, str, str]] = [  # of a JSON file: a row, the error, and what it says
    ('{"messages": [{"role": "user", "content": ["w1"]}, %s]}', "ChatTemplate", "refuses the messages: can only conc"),
    ('{"turns": null}', "InvalidTurn", "Expected turns to be a list, but found <class 'NoneType'>"),
    ('{"turns": 5}', "InvalidTurn", "Expected turns to be a list, but found <class 'int'>"),
    ('{"turns": [null]}', "InvalidTurn", "Expected a turn to have input_ids and labels"),
    ('{"turns": [{"input_ids": null, "labels": [3]}]}', "InvalidTurn", "of a turn to be token ids"),
    ('{"turns": [{"input_ids": [3], "labels": 5}]}', "InvalidTurn", "of a turn to be token ids"),
    ('{"turns": [{"input_ids": "w1", "labels": [3]}]}', "InvalidTurn", "of a turn to be token ids"),
    ('{"input_ids": null}', "BadExample", "column input_ids holds NoneType, not a list of token ids"),
    ('{"input_ids": 5}', "BadExample", "column input_ids holds int, not a list of token ids"),
    ('{"input_ids": [3], "labels": null}', "BadExample", "column labels holds NoneType"),
    ('{"prompt": "w1 \\ud800", "response": "w2"}', "BadExample", r"its text has '\\ud800', which is one half of a"),
    ('{"text": "\\udc00"}', "BadExample", r"its text has '\\udc00', which is one half of a character"),
    ('{"messages": [{"role": "w\\ud800", "content": "w1"}, %s]}', "InvalidRole", r"but found: w\\ud800"),
    ('{"messages": 5}', "InvalidMessageType", "Expected message to be an `Iterable`"),
    ('{"messages": [5, 6]}', "InvalidExampleType", "Expected example to be a `Mapping`"),
    ('{"prompt": null, "response": "w1"}', "InvalidPromptType", "Expected prompt to be a string"),
]


@pytest.mark.parametrize(("row", "reason", "message"), BAD_ROWS, ids=[row for row, *_ in BAD_ROWS])
def test_a_row_that_is_no_example_is_told_and_can_be_left_out(
    row: str, reason: str, message: str, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ahead of time, of lines and of an array, and on the fly."""
    from stoker.cli import main

    good = '{"prompt": "w1", "response": "w2"}'
    row = row.replace("%s", json.dumps(ASSISTANT))
    for name, content in (("a.jsonl", f"{good}\n{row}\n"), ("a.json", f"[{good}, {row}]")):
        path = write(tmp_path / name, content)
        with pytest.raises(examples.BadExampleError, match=message) as told:
            stoker.prepare(path, tmp_path / "out", tokenizer, kind="finetuning", processes=1)
        assert str(told.value).startswith(str(path)) and type(told.value).__name__ == f"{reason}Error"
        command = ["prepare", str(path), "--out", str(tmp_path / f"{name}.out"), "--tokenizer", str(tokenizer)]
        assert main([*command, "--kind", "finetuning", "--on-error", "skip", "--processes", "2"]) == 0
        assert f"left out: 1 rows, {reason}" in capsys.readouterr().out

    values = json.loads(row)
    columns = dict.fromkeys(values, "json")
    if values.keys() & {"input_ids", "text", "prompt"}:
        return  # token shards are not made on the fly, and texts are columns of UTF-8
    with stoker.MDSWriter(columns=columns, out=tmp_path / "raw") as out:
        out.write(values)
    for on_error in ("raise", "skip"):
        stream = stoker.Stream(local=tmp_path / "raw", prepare={"on_error": on_error})
        with stoker.DataLoader(stream, seq_len=8, batch_size=1, layout="pad", tokenizer=tokenizer) as loader:
            if on_error == "skip":
                assert len(loader.dataset.read("raw", 0, 0)["tokens"]) == 0
                continue
            with pytest.raises(examples.BadExampleError, match=message):
                loader.dataset.read("raw", 0, 0)


def test_halves_of_characters_and_deep_values_of_mds_are_told(tokenizer: Path, tmp_path: Path) -> None:
    contents = [b'{"x": "w1"}', b'[{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "w2"}]']
    contents += [NESTED.encode(), b"[" * 100_000, b"1" * 5000]
    with stoker.MDSWriter(columns={"messages": "json"}, out=tmp_path / "raw") as out:
        for content in contents:
            out.write({"messages": content})
        out.write({"messages": [USER, ASSISTANT]})
    counts = stoker.prepare(tmp_path / "raw", tmp_path / "out", tokenizer, on_error="skip", processes=1)
    assert counts.samples == 1 and sum(counts.bad.values()) == 5
    assert [shown.split(":")[0] for shown in counts.shown] == [
        f"{tmp_path}/raw/shard.00000.mds, sample {number}" for number in range(5)
    ]
    stream = stoker.Stream(local=tmp_path / "raw", prepare={"on_error": "skip"})
    with stoker.DataLoader(stream, seq_len=8, batch_size=1, layout="pad", tokenizer=tokenizer) as loader:
        sizes = [len(loader.dataset.read("raw", 0, number)["tokens"]) for number in range(6)]
    assert sizes[:5] == [0] * 5 and sizes[5] > 0


def test_a_deep_value_that_can_be_read_is_no_example(tokenizer: Path, tmp_path: Path) -> None:
    """Wherever it is too deep: for a template, or for what is said of it."""
    rows = [f'{{"messages": [{{"role": "user", "content": {"[" * n}{"]" * n}}}, %s]}}' for n in range(100, 1000, 50)]
    content = "\n".join(row.replace("%s", json.dumps(ASSISTANT)) for row in rows)
    path = write(tmp_path / "a.jsonl", f"{content}\n{json.dumps({'messages': [USER, ASSISTANT]})}\n")
    counts = stoker.prepare(path, tmp_path / "out", tokenizer, on_error="skip", processes=1)
    assert counts.samples == 1 and sum(counts.bad.values()) == len(rows)


def test_a_preset_that_returns_no_mapping_finds_no_example(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("def make(row):\n    return row['made']\n")
    monkeypatch.syspath_prepend(tmp_path)
    made: list[Any] = [None, "w1", [["prompt", "w1"]], {"prompt": "w1", "response": "w2"}]
    source = write_lines(tmp_path / "a.jsonl", [{"made": one} for one in made])
    with pytest.raises(UnableToProcessPromptResponseError, match="it returns NoneType, not a mapping"):
        stoker.prepare(source, tmp_path / "out", tokenizer, preset="mine:make", processes=1)
    counts = stoker.prepare(source, tmp_path / "out", tokenizer, preset="mine:make", on_error="skip", processes=1)
    assert counts.samples == 1 and counts.bad == {"UnableToProcessPromptResponse": 3}


# ---------------------------------------------------------------- whole files
@pytest.mark.parametrize(
    ("name", "content", "good", "message"),
    [
        ("b.txt", b"w1 \xe9", 0, "b.txt contains chars that cannot be utf-8 decoded"),
        ("b.csv", b"text\nw1\n" + b"w2\n" * 5000 + b"\xe9\n", None, "b.csv contains chars that cannot be utf-8"),
        ("b.json", b'[{"text": "w1"}, {"text": "w2"', 1, "b.json, object 1: Expecting ',' delimiter"),
        ("b.json", b'[{"text": "w1"}] []', 1, "b.json: there is more behind its array"),
        ("b.json", b'[{"text": ' + b"1" * 5000 + b"}]", 0, "b.json, object 0: Exceeds the limit"),
        ("b.jsonl", b'{"text": ' + b"1" * 5000 + b'}\n{"text": "w1"}\n', 1, "b.jsonl, line 1: Integer value out of"),
        ("b.csv", b"text,text\nw1,w2\n", 0, "b.csv, line 1: 2 columns are named text"),
        ("b.csv.gz", gzip.compress(b"text\n" + b"w1\n" * 50, mtime=0)[:-9], 0, "b.csv.gz is cut or damaged"),
        ("b.parquet", b"PAR1", 0, "b.parquet is no Parquet file, or is cut"),
    ],
)
def test_the_rest_of_a_file_that_is_broken_is_left_out_as_one_row(
    name: str, content: bytes, good: int | None, message: str, tokenizer: Path, tmp_path: Path
) -> None:
    (tmp_path / "raw").mkdir()
    write(tmp_path / "raw" / name, content)
    write_lines(tmp_path / "raw" / "c.jsonl", [{"text": "w7"}])
    for number, before in enumerate(([{"text": "w5"}], [])):  # it may be the first file
        write_lines(tmp_path / "raw" / "a.jsonl", before)
        with pytest.raises(ValueError, match=message):
            stoker.prepare(tmp_path / "raw", tmp_path / f"raise{number}", tokenizer, processes=1)
        counts = stoker.prepare(tmp_path / "raw", tmp_path / f"{number}", tokenizer, on_error="skip", processes=1)
        assert counts.bad == {"BadRow": 1} and message in counts.shown[0]
        tokens = [sample["tokens"] for sample in samples_of(tmp_path / f"{number}")]
        assert tokens[-1] == [9, END] and tokens[: len(before)] == [[7, END]] * len(before)
        assert good is None or tokens[len(before) : -1] == [[3, END]] * good


def test_a_broken_shard_is_an_error_on_the_fly_whatever_is_to_be_left_out(tokenizer: Path, tmp_path: Path) -> None:
    """Its samples could not keep their places."""
    with stoker.MDSWriter(columns={"text": "str"}, out=tmp_path / "raw") as out:
        out.write({"text": "w1"})
    path = tmp_path / "raw" / "shard.00000.mds"
    path.write_bytes(path.read_bytes()[:-1])
    stream = stoker.Stream(local=tmp_path / "raw", prepare={"on_error": "skip"})
    with stoker.DataLoader(stream, seq_len=8, batch_size=1, layout="pad", tokenizer=tokenizer) as loader:
        with pytest.raises(BadRowError, match=r"shard.00000.mds is not the shard that its index.json describes"):
            loader.dataset.read("raw", 0, 0)
    with pytest.raises(ValueError, match=r"nothing is left of the sources: all rows were left out \(BadRow: 1\)"):
        stoker.prepare(tmp_path / "raw", tmp_path / "out", tokenizer, kind="text", on_error="skip", processes=1)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_where_all_first_rows_are_bad_the_first_error_is_told(on_error: str, tokenizer: Path, tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.jsonl", "no row\n" * 3), write(tmp_path / "b.txt", b"\xff")
    with pytest.raises(BadRowError, match=r"a.jsonl, line 1: "):
        stoker.prepare([one, other], tmp_path / "out", tokenizer, on_error=on_error, processes=1)


@pytest.mark.parametrize("kind", ["auto", "text"])
def test_columns_that_no_source_has_are_refused(kind: str, tokenizer: Path, tmp_path: Path) -> None:
    """Also where the rows could be read by the usual names."""
    source = write_lines(tmp_path / "a.jsonl", [{"text": "w1", "body": "w2"}])
    with pytest.raises(ValueError, match=r"names boddy, but the first row .* has any .*line 1 has text, body\."):
        stoker.prepare(source, tmp_path / "out", tokenizer, processes=1, kind=kind, columns={"text": "boddy"})
    stoker.prepare(source, tmp_path / "out", tokenizer, processes=1, kind=kind, columns={"text": "body"})
    assert samples_of(tmp_path / "out") == [{"tokens": [4, END]}]


# ---------------------------------------------------------------- settings of tokenizers
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer_config.json", "[1]", "tokenizer_config.json holds list, not an object"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is no JSON: "),
        ("tokenizer_config.json", DEEP, "tokenizer_config.json is no JSON: "),
        ("special_tokens_map.json", "null", "special_tokens_map.json holds NoneType, not an object"),
        ("special_tokens_map.json", b"{\xff}", "special_tokens_map.json is not UTF-8"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja is not UTF-8"),
        ("tokenizer.json", b"\xff", "tokenizer.json is not a tokenizer: "),
        ("tokenizer_config.json", '{"eos_token": "<end>"}', "say that its eos_token is '<end>', which is not"),
        ("tokenizer_config.json", '{"bos_token": {"content": "<b>"}}', "say that its bos_token is '<b>', which is not"),
        ("special_tokens_map.json", '{"pad_token": "<p>"}', "say that its pad_token is '<p>', which is not"),
    ],
)
def test_settings_of_a_tokenizer_that_are_none_are_named(
    name: str, content: str | bytes, message: str, tokenizer: Path, tmp_path: Path
) -> None:
    write(tokenizer / name, content)
    source = write_lines(tmp_path / "a.jsonl", [{"text": "w1"}])
    with pytest.raises(ValueError, match=message):
        stoker.prepare(source, tmp_path / "out", tokenizer, processes=1)
