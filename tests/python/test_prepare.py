"""Raw data to token shards: every format and kind, in any number of processes, through any interruption."""

from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import stoker
from preparing import CHAT, contents, samples_of, write_lines
from stoker.preparation import examples, sources
from stoker.preparation.examples import IGNORE_LABEL, Targets, stitch
from stoker.preparation.sample_maker import cut_text
from stoker.preparation.sources import Reading, Row, find_parts, read_rows
from stoker.preparation.sources.files import size_of
from stoker.preparation.sources.json_files import Json, JsonLines
from stoker.preparation.tokenizer import TextTokenizer
from texts import BEGIN, END, TEXTS, ids_of


# ---------------------------------------------------------------- sources
def as_jsonl(path: Path, texts: list[str]) -> Path:
    return write_lines(path / "a.jsonl", [{"text": t, "other": 1} for t in texts])


def as_zst(path: Path, texts: list[str]) -> Path:
    raw = as_jsonl(path, texts).read_bytes()
    frames = [zstandard.compress(raw[:40]), zstandard.compress(raw[40:])]  # several frames, cut in a line
    (path / "a.jsonl").unlink()
    (path / "a.jsonl.zst").write_bytes(b"".join(frames))
    return path / "a.jsonl.zst"


def as_gz(path: Path, texts: list[str]) -> Path:
    raw = as_jsonl(path, texts).read_bytes()
    (path / "a.json.gz").write_bytes(gzip.compress(raw))
    return path / "a.json.gz"


def as_array(path: Path, texts: list[str]) -> Path:
    (path / "a.json").write_text(json.dumps([{"text": t} for t in texts], indent=1), encoding="utf-8")
    return path / "a.json"


def as_csv(path: Path, texts: list[str]) -> Path:
    with (path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([["id", "text"], *([i, t] for i, t in enumerate(texts))])
    return path / "a.csv"


def as_parquet(path: Path, texts: list[str]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": texts}), path / "a.parquet", row_group_size=2)
    return path / "a.parquet"


def as_folder(path: Path, texts: list[str]) -> Path:
    (path / "inner").mkdir()
    for i, text in enumerate(texts):
        (path / "inner" / f"{i:03}.txt").write_bytes(text.encode())
    (path / "inner" / "ignored.bin").write_bytes(b"\0")
    return path


def as_mds(path: Path, texts: list[str], compression: str | None = None) -> Path:
    columns = {"text": "str", "id": "int", "meta": "json", "raw": "bytes", "x": "float32", "ids": "ndarray:uint8"}
    with stoker.MDSWriter(columns=columns, out=path / "mds", size_limit=400, compression=compression) as out:
        for i, text in enumerate(texts):
            out.write(
                {"text": text, "id": -i, "meta": {"n": [i]}, "raw": b"", "x": 0.5, "ids": np.array([i], np.uint8)}
            )
    return path


def as_mds_zstd(path: Path, texts: list[str]) -> Path:
    return as_mds(path, texts, "zstd") / "mds"


@pytest.mark.parametrize(
    "write", [as_mds, as_mds_zstd, as_jsonl, as_zst, as_gz, as_array, as_csv, as_parquet, as_folder]
)
def test_every_format_gives_one_sample_a_document_in_order(
    write: Callable[[Path, list[str]], Path], tokenizer: Path, tmp_path: Path
) -> None:
    (tmp_path / "raw").mkdir()
    source = write(tmp_path / "raw", TEXTS)
    counts = stoker.prepare(source, tmp_path / "out", tokenizer, processes=1)
    end = ids_of(tokenizer, END)
    assert [sample["tokens"] for sample in samples_of(tmp_path / "out")] == [ids_of(tokenizer, t) + end for t in TEXTS]
    assert counts.samples == len(TEXTS) and not counts.bad
    assert counts.tokens == counts.loss_tokens == sum(len(ids_of(tokenizer, t)) + 1 for t in TEXTS)
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["stoker"]["tokenizer"]["eos_token_id"] == end[0]
    assert sum(index["stoker"]["tokens"]) == counts.tokens
    assert index["shards"][0]["column_encodings"] == ["ndarray:uint16"]


@given(
    st.lists(st.text(max_size=30), max_size=20), st.integers(1, 60), st.sampled_from([None, "zst", "gz"]), st.booleans()
)
def test_pieces_of_lines_hold_each_line_once(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], size: int, compression: str | None, ends: bool
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    raw = "\n".join(json.dumps({"text": t}) for t in texts).encode() + (b"\n" if ends else b"")
    if compression:
        path = path.with_name(f"a.jsonl.{compression}")
    path.write_bytes({None: bytes, "zst": zstandard.compress, "gz": gzip.compress}[compression](raw))
    pieces = JsonLines().cut(str(path), len(raw), size, Reading())
    rows = [row for piece in pieces for row in read_rows(piece)]
    assert [row.values["text"] if isinstance(row, Row) else row for row in rows] == texts
    for number, row in enumerate(rows, 1):
        assert isinstance(row, Row) and row.where == f"{path}, line {number}"


@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers() | st.none())), st.integers(0, 2)
)
def test_an_array_is_read_object_by_object(
    tmp_path_factory: pytest.TempPathFactory, objects: list[dict[str, Any]], indent: int
) -> None:
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_text(json.dumps(objects, indent=indent or None, ensure_ascii=False), encoding="utf-8")
    (piece,) = Json().cut(str(path), path.stat().st_size, 1, Reading())
    assert [row.values for row in read_rows(piece) if isinstance(row, Row)] == objects


def test_mds_shards_of_turns_are_read_and_broken_ones_are_told(tokenizer: Path, tmp_path: Path) -> None:
    turns = [{"input_ids": [20, 21], "labels": [22]}]
    with stoker.MDSWriter(columns={"turns": "json"}, out=tmp_path / "turns") as out:
        for _ in range(5):
            out.write({"turns": turns})
    stoker.prepare(tmp_path / "turns", tmp_path / "out", tokenizer, processes=1)
    assert samples_of(tmp_path / "out")[4]["tokens"][:3] == [20, 21, 22]
    (shard,) = (tmp_path / "turns").glob("shard*")
    content = shard.read_bytes()
    for broken in (content[:-9], content[:40], b"\xff" + content[1:]):
        shard.write_bytes(broken)
        with pytest.raises(ValueError, match=r"shard.00000.mds is not the shard that its index.json describes"):
            stoker.prepare(tmp_path / "turns", tmp_path / "broken", tokenizer, kind="finetuning", processes=1)
    shard.write_bytes(content[:-9] + b"}" * 9)
    with pytest.raises(ValueError, match=r"shard.00000.mds, sample 4: "):
        stoker.prepare(tmp_path / "turns", tmp_path / "broken", tokenizer, kind="finetuning", processes=1)
    (tmp_path / "turns" / "index.json").write_text('{"shards": [{"format": "xsv"}]}')
    with pytest.raises(ValueError, match="is not the index of a data set of MDS shards"):
        stoker.prepare(tmp_path / "turns", tmp_path / "broken", tokenizer, processes=1)


def test_small_files_are_done_together_and_large_ones_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_LEAST_PART", 100)
    for i in range(50):
        (tmp_path / f"{i:03}.txt").write_text("x" * 30)
    write_lines(tmp_path / "z.jsonl", [{"text": "y" * 50}] * 20)
    parts = find_parts([tmp_path])
    names = [Path(piece.path).name for part in parts for piece in part]
    assert names == sorted(names)
    assert all(sum(p.size_bytes for p in part) >= 100 for part in parts[:-1]) and len(parts) > 10


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl, line 2"),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', "line 2: a line must hold an object, not list"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": "\xff"}\n', "a.jsonl, line 3"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', "line 2: column text holds int, not text"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}\n', "line 2: there is no column text or content among txt"),
        ("a.json", b'[{"text": "x"}, {"text": ]', "a.json, object 1"),
        ("a.json", b'[{"text": "x"}, {"text": "y"},\n', "a.json: its array does not end behind 2 objects"),
        ("a.json", b'[{"text": "\xff"}]', "a.json contains chars that cannot be utf-8 decoded"),
        ("a.csv", b"text\n\xff\n", "a.csv contains chars that cannot be utf-8 decoded"),
        ("a.csv", b"text,id\nx,1\ny\n", "a.csv, line 3: it has other columns"),
        ("a.txt", b"\xff\xfe", "a.txt contains chars that cannot be utf-8 decoded"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(
    name: str, content: bytes, message: str, tokenizer: Path, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        stoker.prepare(path, tmp_path / "out", tokenizer, kind="text", processes=1)


@pytest.mark.parametrize("compress", [zstandard.compress, gzip.compress])
def test_a_compressed_file_that_is_cut_is_refused(
    compress: Callable[[bytes], bytes], tokenizer: Path, tmp_path: Path
) -> None:
    lines = "".join(json.dumps({"text": str(i)}) + "\n" for i in range(5000)).encode()
    path = tmp_path / f"a.jsonl.{'zst' if compress is zstandard.compress else 'gz'}"
    whole = compress(lines)
    for content in (whole[: len(whole) // 2], whole + whole[:9], b"no such file"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a.jsonl.(zst|gz) is cut or damaged"):
            stoker.prepare(path, tmp_path / "out", tokenizer, processes=1)
    path.write_bytes(whole + whole)
    assert size_of(path) == 2 * len(lines)


def test_bad_rows_are_left_out_and_counted_where_that_is_asked_for(tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x"}\n{"text": \n{"text": 3}\n{"text": ""}\n{"text": "y"}\n')
    counts = stoker.prepare(path, tmp_path / "out", tokenizer, on_error="skip", processes=1)
    assert counts.samples == 2 and counts.bad == {"BadRow": 1, "BadExample": 1, "EmptyText": 1}
    assert [shown.split(":")[0] for shown in counts.shown] == [f"{path}, line {number}" for number in (2, 3, 4)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sources": "missing.jsonl"}, "there is no file or folder missing.jsonl"),
        ({"sources": "{}/data.xyz"}, "is of no known format: its name must end in .idx, .jsonl"),
        ({"sources": "{}/empty"}, "holds no file that can be read"),
        ({"tokenizer": "{}/missing.json"}, "there is no tokenizer at"),
        ({"tokenizer": "{}/empty"}, "has no tokenizer.json"),
        ({"tokenizer": "{}/data.bin"}, "is not a tokenizer"),
        ({"kind": "chat"}, "kind is 'chat'"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
        ({"target_prompts": "some"}, "target_prompts is 'some'"),
        ({"target_responses": "first"}, "target_responses is 'first'"),
        ({"compression": "gzip"}, "stoker writes zstd"),
        ({"columns": {"text": "body"}, "sources": "{}/strange.jsonl"}, "columns names body, but the first row"),
        ({"columns": {"txt": "body"}}, "columns names 'txt': it may name completion, input_ids, labels, messages"),
        ({"wrap": False}, "wrap=False is for the rows of concat"),
        ({"mix": {"a": 1}, "mix_tokens": 0}, "mix_tokens is 0: it must be a whole number from 1"),
        ({"sources": ["{}/a.jsonl", "{0}/../{0.name}/a.jsonl"]}, "a.jsonl is among the sources twice: leave one out"),
        ({"sources": "{}/strange.jsonl"}, "say which of them is the text"),
    ],
)
def test_what_can_not_be_is_refused(arguments: dict[str, Any], message: str, tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("data.bin", "data.xyz"):
        (tmp_path / name).write_text("{}")
    write_lines(tmp_path / "strange.jsonl", [{"a": 1}])
    source = write_lines(tmp_path / "a.jsonl", [{"text": "x"}])
    given_ = {"sources": source, "out": tmp_path / "out", "tokenizer": tokenizer, "processes": 1}
    for name, value in arguments.items():
        as_list = [text.format(tmp_path) for text in value] if isinstance(value, list) else value
        given_[name] = value.format(tmp_path) if isinstance(value, str) else as_list
    with pytest.raises((ValueError, OSError), match=message):
        stoker.prepare(**given_)


# ---------------------------------------------------------------- text
def test_what_stands_around_a_document(tokenizer: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"body": "x"}])
    ids = {text: ids_of(tokenizer, text) for text in ("x", END, BEGIN, "\n")}
    for i, (arguments, want) in enumerate(
        [
            ({}, ids["x"] + ids[END]),
            ({"eos_text": ""}, ids["x"]),
            ({"eos_text": "\n", "bos_text": BEGIN}, ids[BEGIN] + ids["x"] + ids["\n"]),
        ]
    ):
        stoker.prepare(source, tmp_path / str(i), tokenizer, columns={"text": "body"}, processes=1, **arguments)
        assert samples_of(tmp_path / str(i)) == [{"tokens": want}]


def test_the_tokens_that_a_tokenizer_puts_around_a_document(tokenizer: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, processors

    made = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    begin, end = made.token_to_id(BEGIN), made.token_to_id(END)
    made.post_processor = processors.TemplateProcessing(
        f"{BEGIN} $A {END}", special_tokens=[(BEGIN, begin), (END, end)]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    source = write_lines(tmp_path / "a.jsonl", [{"text": "x"}])
    x = ids_of(tokenizer, "x")
    stoker.prepare(source, tmp_path / "with", tmp_path / "tokenizer.json", processes=1)
    assert samples_of(tmp_path / "with") == [{"tokens": [begin, *x, end]}]  # one end, not two
    stoker.prepare(source, tmp_path / "without", tmp_path / "tokenizer.json", add_special_tokens=False, processes=1)
    assert samples_of(tmp_path / "without") == [{"tokens": [*x, end]}]


@given(st.text(st.sampled_from("ab \n\t.,é"), max_size=300), st.integers(1, 40))
def test_a_long_document_is_cut_where_its_tokens_do_not_change(tokenizer: Path, text: str, most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stoker.preparation.sample_maker.BATCH_CHARS", most)
        parts = list(cut_text(text))
    assert "".join(parts) == text
    made = TextTokenizer(tokenizer)
    assert [i for ids in made.encode(parts) for i in ids] == made.encode([text])[0]


# ---------------------------------------------------------------- concatenated text
@pytest.fixture(scope="session")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer whose tokens are numbers between spaces; 2 ends a document."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({str(i): i for i in range(40)}, unk_token="0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path_factory.mktemp("numbers")
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "2"}))
    return folder


@pytest.mark.parametrize(
    ("wrap", "rows"),
    [
        (True, [[5, 6, 7, 2], [8, 2, 10, 11], [12, 13, 14, 15], [16, 17, 18, 19], [20, 2, 30, 31]]),
        (False, [[5, 6, 7, 2], [8, 2, 10, 11]]),
    ],
)
def test_concatenated_rows_are_llm_foundrys(wrap: bool, rows: list[list[int]], numbers: Path, tmp_path: Path) -> None:
    texts = ["5 6 7", "8", " ".join(map(str, range(10, 21))), "30 31"]
    source = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    arguments: dict[str, Any] = {"concat": 4, "wrap": wrap, "foundry_compatible": True, "processes": 1}
    counts = stoker.prepare(source, tmp_path / "out", numbers, **arguments)
    assert [sample["tokens"] for sample in samples_of(tmp_path / "out")] == rows
    assert counts.samples == len(rows) and counts.tokens == 4 * len(rows)
    assert stoker.prepare(source, tmp_path / "out", numbers, **arguments) == counts
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["shards"][0]["column_encodings"] == ["ndarray:int32"]
    for message, changes in (
        ("does not insert an EOS nor BOS token", {"eos_text": ""}),
        ("concat=4 is for text", {"columns": {"prompt": "text", "response": "text"}}),
        ("concat is 0", {"concat": 0}),
    ):
        with pytest.raises(ValueError, match=message):
            stoker.prepare(source, tmp_path / "not", numbers, **{**arguments, **changes})


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 6), st.booleans())
def test_rows_are_those_of_a_buffer_that_is_emptied_as_it_fills(lengths: list[int], length: int, wrap: bool) -> None:
    from stoker.preparation.concatenation import concatenate

    documents = [np.arange(n, dtype=np.uint16) + 10 * i for i, n in enumerate(lengths)]
    buffer: list[int] = []
    want = []
    for document in documents:  # spec of ConcatTokensDataset
        buffer += document.tolist()
        while len(buffer) >= length:
            want.append(buffer[:length])
            buffer = buffer[length:] if wrap else []
    assert [row.tolist() for row in concatenate(documents, length, wrap=wrap)] == want


def test_concatenated_rows_do_not_depend_on_processes(
    many: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_LEAST_PART", 5000)
    for processes in (1, 2):
        stoker.prepare(many, tmp_path / str(processes), tokenizer, concat=64, processes=processes)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    tokens = [t for sample in samples_of(tmp_path / "1") for t in sample["tokens"]]
    texts = [json.loads(line)["text"] for path in sorted(many.iterdir()) for line in path.read_text().splitlines()]
    line = [t for text in texts for t in ids_of(tokenizer, text) + ids_of(tokenizer, END)]
    assert tokens == line[: len(line) // 64 * 64]


# ---------------------------------------------------------------- finetuning
@pytest.mark.parametrize(
    ("targets", "labels"),
    [
        (Targets("none", "all"), [-100, -100, 22, 2, -100, 24, 25, 2]),
        (Targets("none", "last"), [-100, -100, -100, -100, -100, 24, 25, 2]),
        (Targets("all", "all"), [20, 21, 22, 2, 23, 24, 25, 2]),
        (Targets("length>=2", "all"), [20, 21, 22, 2, -100, 24, 25, 2]),
        (Targets("length>=3", "all"), [-100, -100, 22, 2, -100, 24, 25, 2]),
    ],
)
def test_turns_are_put_together_as_llm_foundry_does(targets: Targets, labels: list[int]) -> None:
    turns = [([20, 21], [22, 2]), ([23], [24, 25])]
    assert stitch(turns, targets, 2) == ([20, 21, 22, 2, 23, 24, 25, 2], labels)
    assert stitch([([10, 11, 12], [13, 14])], Targets(), 2)[1] == [-100, -100, -100, 13, 14, 2]
    assert stitch([([10], [13, 2])], Targets(), 2)[0] == [10, 13, 2]  # one end, not two


def test_prompts_and_responses(tokenizer: Path, tmp_path: Path) -> None:
    rows = [{"instruction": "1 + 1 = ", "output": "2", "id": 3}, {"instruction": "x", "output": "yes"}]
    source = write_lines(tmp_path / "a.jsonl", rows)
    columns = {"prompt": "instruction", "response": "output"}
    counts = stoker.prepare(source, tmp_path / "out", tokenizer, columns=columns, processes=1)
    end = ids_of(tokenizer, END)
    for sample, row in zip(samples_of(tmp_path / "out"), rows, strict=True):
        prompt, response = ids_of(tokenizer, str(row["instruction"])), ids_of(tokenizer, str(row["output"]))
        assert sample["tokens"] == prompt + response + end
        assert sample["labels"] == [IGNORE_LABEL] * len(prompt) + response + end
    assert counts.loss_tokens == sum(len(ids_of(tokenizer, str(row["output"]))) + 1 for row in rows)


@pytest.mark.parametrize("responses", ["all", "last"])
def test_conversations_have_loss_on_what_the_assistant_says(responses: str, tokenizer: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"messages": CHAT}])
    stoker.prepare(source, tmp_path / "out", tokenizer, target_responses=responses, processes=1)
    (sample,) = samples_of(tmp_path / "out")
    made = TextTokenizer(tokenizer)
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in CHAT)
    assert made.decode(sample["tokens"]) == text + END
    answers = [made.decode([t for t in run if t >= 0]) for run in _runs(sample["labels"])]
    assert answers == (["Hello.<|im_end|>\n"] if responses == "all" else []) + [f"Goodbye.<|im_end|>\n{END}"]


def _runs(labels: list[int]) -> list[list[int]]:
    """What lies between labels of -100."""
    runs: list[list[int]] = [[]]
    for label in labels:
        if label == IGNORE_LABEL:
            runs.append([])
        else:
            runs[-1].append(label)
    return [run for run in runs if run]


USER, ASSISTANT = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}


@pytest.mark.parametrize(
    ("example", "error", "message"),
    [
        ([1], examples.InvalidExampleTypeError, "Expected example to be a `Mapping`"),
        ({"prompt": "x", "answer": "y"}, examples.UnknownExampleTypeError, "Unknown example type"),
        ({"prompt": 1, "response": "y"}, examples.InvalidPromptTypeError, "Expected prompt to be a string"),
        ({"prompt": "x", "response": None}, examples.InvalidResponseTypeError, "Expected response to be a string"),
        ({"messages": "x"}, examples.InvalidMessageTypeError, "Expected message to be an `Iterable`"),
        ({"messages": [ASSISTANT]}, examples.NotEnoughChatDataError, "at least two messages"),
        ({"messages": [ASSISTANT, USER]}, examples.InvalidLastChatMessageRoleError, "Invalid last message role: user"),
        ({"messages": [{"role": "user"}, ASSISTANT]}, examples.UnknownExampleTypeError, "of a message"),
        ({"messages": ["x", ASSISTANT]}, examples.InvalidExampleTypeError, "to be a `Mapping`"),
        ({"messages": [{**USER, "n": 1}, ASSISTANT]}, examples.IncorrectMessageKeyQuantityError, "but found 3"),
        ({"messages": [{**USER, "role": "bot"}, ASSISTANT]}, examples.InvalidRoleError, "but found: bot"),
        ({"messages": [{**USER, "content": 1}, ASSISTANT]}, examples.InvalidContentTypeError, "content to be a string"),
        ({"messages": [USER, USER, ASSISTANT]}, examples.ConsecutiveRepeatedChatRolesError, "found user repeated"),
    ],
)
def test_an_example_that_breaks_a_rule_is_told_by_llm_foundrys_errors(
    example: Any, error: type[Exception], message: str, tokenizer: Path
) -> None:
    with pytest.raises(error, match=message):
        examples.read_example(example, TextTokenizer(tokenizer).chat_template)


def test_examples_without_loss_or_with_an_empty_turn_are_left_out_and_counted(tokenizer: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "x", "response": "y"}, {"prompt": "", "response": "y"}, {"prompt": "x", "response": ""}]
    source = write_lines(tmp_path / "a.jsonl", rows)
    counts = stoker.prepare(source, tmp_path / "out", tokenizer, processes=1)
    assert counts.samples == 1 and counts.bad == {"NoLoss": 2}
    assert counts.shown[0].endswith("a.jsonl, line 2: turn 0 of the example has an empty prompt.")


def test_turns_of_ids_are_taken_as_they_are(tokenizer: Path, tmp_path: Path) -> None:
    turns = [{"input_ids": [20, 21], "labels": [22]}, {"input_ids": [23], "labels": [24]}]
    source = write_lines(tmp_path / "a.jsonl", [{"turns": turns}])
    stoker.prepare(source, tmp_path / "out", tokenizer, processes=1)
    (end,) = ids_of(tokenizer, END)
    assert samples_of(tmp_path / "out") == [
        {"tokens": [20, 21, 22, 23, 24, end], "labels": [-100, -100, 22, -100, 24, end]}
    ]
    for wrong in (
        [{"input_ids": [1 << 20], "labels": [1]}],
        [{"input_ids": [1]}],
        [{"input_ids": ["x"], "labels": [1]}],
    ):
        source = write_lines(tmp_path / "b.jsonl", [{"turns": wrong}])
        with pytest.raises(examples.BadExampleError, match=r"b.jsonl, line 1"):
            stoker.prepare(source, tmp_path / "b", tokenizer, processes=1, overwrite=True)


# ---------------------------------------------------------------- processes and interruptions
@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Documents of several parts."""
    (tmp_path / "raw").mkdir()
    for i in range(6):
        rows = [{"text": f"{text} {i} {j}"} for j in range(40) for text in TEXTS]
        write_lines(tmp_path / "raw" / f"{i}.jsonl", rows)
    return tmp_path / "raw"


def test_the_output_does_not_depend_on_processes(
    many: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_LEAST_PART", 5000)
    seen = []
    one = stoker.prepare(many, tmp_path / "one", tokenizer, processes=1)
    three = stoker.prepare(
        many,
        tmp_path / "three",
        tokenizer,
        processes=3,
        progress=lambda part, counts, total: seen.append(counts.samples),
    )
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert one == three and sum(seen) == one.samples == 6 * 40 * len(TEXTS) and len(seen) > 10


def test_a_run_that_is_killed_goes_on_and_gives_the_same_bytes(many: Path, tokenizer: Path, tmp_path: Path) -> None:
    """With all its helpers, whatever they are writing when the third part of a run is done."""
    command = """
        import itertools, os, signal, sys, stoker
        from stoker.preparation import sources
        sources._LEAST_PART = 5000
        raw, out, tokenizer, processes, end_after = sys.argv[1:]
        calls = itertools.count(1)
        def progress(*_):
            if next(calls) == int(end_after):
                os.killpg(0, signal.SIGKILL)
        stoker.prepare(raw, out, tokenizer, processes=int(processes), progress=progress)
    """
    script = tmp_path / "run.py"
    script.write_text("\n".join(line[8:] for line in command.splitlines()))

    def run(out: str, processes: int, end_after: int = 0) -> int:
        arguments = [str(many), str(tmp_path / out), str(tokenizer), str(processes), str(end_after)]
        return subprocess.run([sys.executable, str(script), *arguments], start_new_session=True).returncode

    assert run("whole", 1) == 0
    for number, processes in enumerate((1, 2, 1, 2), 1):
        assert run("killed", processes, 3 * number) == -signal.SIGKILL  # what is done already counts
    assert run("killed", 1) == 0
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")


def test_shards_that_were_moved_before_the_end_stay(
    many: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted at every step of the last stage."""
    monkeypatch.setattr(sources, "_LEAST_PART", 5000)
    stoker.prepare(many, tmp_path / "whole", tokenizer, processes=1)
    real = os.replace
    num_interrupts = 0
    for _ in range(50):
        left = 3

        def replace(source: str, target: str) -> None:
            nonlocal left
            if ".parts" not in str(target):
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt
            real(source, target)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("stoker.preparation.pipeline.os.replace", replace)
            try:
                stoker.prepare(many, tmp_path / "out", tokenizer, processes=1)
                break
            except KeyboardInterrupt:
                num_interrupts += 1
    assert num_interrupts > 3
    stoker.prepare(many, tmp_path / "out", tokenizer, processes=1)
    assert contents(tmp_path / "whole") == contents(tmp_path / "out")


def test_what_is_finished_is_left_alone_unless_it_is_to_be_overwritten(tokenizer: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"text": "x"}])
    out = tmp_path / "out"
    first = stoker.prepare(source, out, tokenizer, processes=1)
    before = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    assert stoker.prepare(source, out, tokenizer, processes=1) == first
    assert {p: p.stat().st_mtime_ns for p in out.iterdir()} == before
    with pytest.raises(FileExistsError, match="holds a data set of other sources or arguments"):
        stoker.prepare(source, out, tokenizer, processes=1, eos_text="")
    stoker.prepare(source, out, tokenizer, processes=1, eos_text="", overwrite=True)
    write_lines(source, [{"text": "y"}])
    with pytest.raises(FileExistsError, match="other sources"):
        stoker.prepare(source, out, tokenizer, processes=1, eos_text="")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.doc").touch()
    for overwrite in (False, True):  # what is no data set is never removed
        with pytest.raises(FileExistsError, match="is not empty"):
            stoker.prepare(source, tmp_path / "other", tokenizer, processes=1, overwrite=overwrite)
    assert (tmp_path / "other" / "thesis.doc").exists()


# ---------------------------------------------------------------- the command, and the loader
def test_streams_of_different_tokenizers_are_refused(tokenizer: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    made.add_tokens(["another"])
    made.save(str(tmp_path / "other.json"))
    source = write_lines(tmp_path / "a.jsonl", [{"text": "x"}])
    for name, which in (("a", tokenizer), ("b", tokenizer), ("c", tmp_path / "other.json")):
        stoker.prepare(source, tmp_path / name, which, processes=1)
    (end,) = ids_of(tokenizer, END)

    def load(*names: str, **arguments: Any) -> None:
        streams = [stoker.Stream(local=tmp_path / name) for name in names]
        stoker.DataLoader(streams, seq_len=2, batch_size=1, layout="pad", **arguments).close()

    load("a", "b", vocab_size=512, eos_token_id=end)
    for names, arguments, message in (
        (("a", "b", "c"), {}, "streams 'a' and 'c' were tokenized by different tokenizers"),
        (("a",), {"vocab_size": 300}, "vocab_size is 300, but stream 'a' was tokenized with a vocabulary of"),
        (("a",), {"eos_token_id": end + 1}, f"eos_token_id is {end + 1}, but {end} in stream 'a'"),
    ):
        with pytest.raises(ValueError, match=message):
            load(*names, **arguments)


def test_the_command_prepares_what_a_loader_mixes(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from stoker.cli import main

    text = as_jsonl(tmp_path, TEXTS * 4)
    chat = write_lines(tmp_path / "chat.jsonl", [{"messages": CHAT}] * 5 + [{"messages": []}])
    common = ["--tokenizer", str(tokenizer), "--processes", "1"]
    assert main(["prepare", str(text), "--out", str(tmp_path / "text"), *common]) == 0
    assert main(["prepare", str(chat), "--out", str(tmp_path / "bad"), *common]) == 1
    assert "chat.jsonl, line 6: Chat example must have at least two messages" in capsys.readouterr().err
    skip = ["--on-error", "skip", "--target-responses", "last", "--compression", "none"]
    assert main(["prepare", str(chat), "--out", str(tmp_path / "chat"), *common, *skip]) == 0
    out = capsys.readouterr().out
    assert "5 samples" in out and "left out: 1 rows, NotEnoughChatData" in out
    streams = [stoker.Stream(local=tmp_path / name, proportion=0.5) for name in ("text", "chat")]
    with stoker.DataLoader(streams, seq_len=64, batch_size=2, layout="pack", vocab_size=400) as loader:
        assert loader.dataset.kinds == ["finetuning", "text"]
        assert all(n > 0 for n in map(sum, zip(*(loader.batch_info["tokens"].values() for _ in loader))))


def test_a_command_that_is_interrupted_says_what_to_do(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stoker.cli import main, preparing

    def prepare(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(preparing, "prepare", prepare)
    assert main(["prepare", "a.jsonl", "--out", str(tmp_path / "out"), "--tokenizer", str(tokenizer)]) == 130
    assert capsys.readouterr().err == "stoker: prepare was interrupted: give the same command again.\n"
