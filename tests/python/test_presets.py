"""Presets: rows of public data sets become the examples that LLM Foundry makes of them; and examples without loss."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stoker
from preparing import END, samples_of, write_lines, write_tokenizer
from stoker.foundry.errors import UnableToProcessPromptResponseError
from stoker.preparation.presets import PRESETS, find_preset

HEAD = "Below is an instruction that describes a task"
TAIL = "Write a response that appropriately completes the request.\n\n### Instruction:\n"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer.json")


def said(*contents: str, system: str | None = None) -> dict[str, Any]:
    roles = [*(["system"] if system else []), *["user", "assistant"] * 2]
    texts = [*([system] if system else []), *contents]
    return {"messages": [{"role": r, "content": c} for r, c in zip(roles, texts, strict=False)]}


@pytest.mark.parametrize(
    ("name", "row", "example"),
    [
        (
            "alpaca",
            {"instruction": "i", "input": "", "output": "o", "text": "head\n\n### Response:\no"},
            {"prompt": "head\n\n### Response:", "response": "\no"},
        ),
        (
            "yahma/alpaca-cleaned",
            {"instruction": "i", "input": "", "output": "o"},
            {"prompt": f"{HEAD}. {TAIL}i\n\n### Response:", "response": "\no"},
        ),
        (
            "alpaca",
            {"instruction": "i", "input": "given", "output": "o"},
            {
                "prompt": f"{HEAD}, paired with an input that provides further context. {TAIL}i\n\n"
                "### Input:\ngiven\n\n### Response:",
                "response": "\no",
            },
        ),
        (
            "HuggingFaceH4/databricks_dolly_15k",
            {"instruction": "i", "input": "given", "output": "o"},
            {"prompt": f"{HEAD}. {TAIL}i\ngiven\n\n### Response:\n", "response": "o"},
        ),
        (
            "dolly",
            {"instruction": "i", "context": "", "response": "o"},
            {"prompt": f"{HEAD}. {TAIL}i\n\n### Response:\n", "response": "o"},
        ),
        ("bigscience/P3", {"inputs": "a", "targets": "b"}, {"prompt": "a:", "response": "b"}),
        ("Muennighoff/flan", {"inputs": "a", "targets": "b"}, {"prompt": "a", "response": " b"}),
        ("flan", {"inputs": "a\n", "targets": "b"}, {"prompt": "a\n", "response": "b"}),
        (
            "teknium/OpenHermes-2.5",
            {"conversations": [{"from": f, "value": v} for f, v in (("system", "s"), ("human", "a"), ("gpt", "b"))]},
            said("a", "b", system="s"),
        ),
        ("orca", {"system_prompt": "s", "question": "a", "response": "b", "id": 1}, said("a", "b", system="s")),
        ("orca", {"system_prompt": "", "question": "a", "response": "b"}, said("a", "b")),
        ("messages", {"messages": [{"role": "user", "content": "a", "n": 1}]}, said("a")),
        ("gsm8k", {"question": "a", "answer": "b"}, said("a", "b")),
        ("math-ai/StackMathQA", {"Q": "a", "A": "b"}, said("a", "b")),
        ("metamath", {"query": "a", "response": "b"}, said("a", "b")),
    ],
)
def test_a_row_becomes_an_example(name: str, row: dict[str, Any], example: dict[str, Any]) -> None:
    assert find_preset(name)(row) == example


@pytest.mark.parametrize("name", PRESETS)
def test_a_row_of_another_data_set_is_told(name: str) -> None:
    with pytest.raises(
        UnableToProcessPromptResponseError, match=f"Unable to extract .*preset '{name}', .*Error"
    ) as told:
        find_preset(name)({"other": "x" * 1000})
    assert len(str(told.value)) < 400


def test_presets_are_prepared_and_bad_rows_counted(tokenizer: Path, tmp_path: Path) -> None:
    rows = [{"query": "w1 w2", "response": "w3"}, {"query": "w1"}, {"query": "w4", "response": "w5"}]
    source = write_lines(tmp_path / "a.jsonl", rows)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] == 'user' and 'w10 ' or 'w20 ' }}{{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}w20 {% endif %}"
    )
    counts = stoker.prepare(source, tmp_path / "out", tmp_path, preset="metamath", processes=1, on_error="skip")
    assert counts.bad == {"UnableToProcessPromptResponse": 1}
    assert "a.jsonl, line 2: Unable to extract prompt/response from {'query': 'w1'}" in counts.shown[0]
    assert samples_of(tmp_path / "out") == [
        {"tokens": [12, 3, 4, 22, 5, END], "labels": [-100, -100, -100, -100, 5, END]},
        {"tokens": [12, 6, 22, 7, END], "labels": [-100, -100, -100, 7, END]},
    ]


def test_a_function_of_the_users_is_a_preset_of_the_command(tokenizer: Path, tmp_path: Path) -> None:
    """Found in the directory where the command is given, and in its helpers."""
    (tmp_path / "mine.py").write_text("def make(row):\n    return {'prompt': row['a'], 'response': row['b']}\n")
    write_lines(tmp_path / "a.jsonl", [{"a": "w1", "b": "w2"}])
    command = [str(Path(sys.executable).with_name("stoker")), "prepare", "a.jsonl", "--out", "out"]
    command += ["--tokenizer", "tokenizer.json", "--preset", "mine:make", "--processes", "2"]
    subprocess.run(command, cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": ""})
    assert samples_of(tmp_path / "out") == [{"tokens": [3, 4, END], "labels": [-100, 4, END]}]


def test_a_stream_is_tokenized_on_the_fly_by_a_preset(tokenizer: Path, tmp_path: Path) -> None:
    with stoker.MDSWriter(columns={"inputs": "str", "targets": "str"}, out=tmp_path / "raw") as out:
        out.write({"inputs": "w1", "targets": "w2"})
    stream = stoker.Stream(local=tmp_path / "raw", prepare={"preset": "flan", "max_seq_len": 8})
    with stoker.DataLoader(
        stream, seq_len=4, batch_size=1, layout="pad", tokenizer=tokenizer, cache_dir=tmp_path / "cache"
    ) as loader:
        batch = next(iter(loader))
    assert batch["input_ids"].tolist() == [[3, 4, END, 0]] and batch["labels"].tolist() == [[-100, 4, END, -100]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "nothing"}, "there is no preset 'nothing': known are alpaca, dolly"),
        ({"preset": "json:nothing"}, "preset 'json:nothing' is no function that can be imported"),
        ({"preset": "flan", "columns": {"prompt": "a", "response": "b"}}, "columns and preset both say what rows are"),
        ({"preset": "flan", "kind": "text"}, "preset='flan' is for finetuning data, and this is text"),
        ({"max_seq_len": 4, "kind": "text"}, "max_seq_len=4 is for finetuning data, and this is text"),
        ({"max_seq_len": 0, "kind": "finetuning"}, "max_seq_len is 0: it must be a whole number from 1"),
        ({"foundry_compatible": True, "kind": "finetuning", "mix": {"a": 1}}, "can't be mixed ahead"),
    ],
)
def test_what_can_not_be_is_refused(arguments: dict[str, Any], message: str, tokenizer: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"inputs": "w1", "targets": "w2"}])
    with pytest.raises(ValueError, match=message):
        stoker.prepare(source, tmp_path / "out", tokenizer, processes=1, **arguments)


def test_examples_whose_loss_would_be_cut_off_are_left_out(tokenizer: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "w1 w2 w3", "response": "w4"}, {"prompt": "w1 w2 w3 w4", "response": "w5"}]
    source = write_lines(tmp_path / "a.jsonl", rows)
    counts = stoker.prepare(source, tmp_path / "out", tokenizer, max_seq_len=4, processes=1)
    assert counts.bad == {"NoLoss": 1} and "of its 6 tokens none of the first 4 has loss" in counts.shown[0]
    assert samples_of(tmp_path / "out") == [{"tokens": [3, 4, 5, 6, END], "labels": [-100] * 3 + [6, END]}]  # uncut


def test_what_llm_foundry_reads_are_turns(tokenizer: Path, tmp_path: Path) -> None:
    """As its script writes them: prompts and answers apart, without an end; and stoker reads them again."""
    turns = [{"input_ids": [2, 3], "labels": [4]}, {"input_ids": [5], "labels": [6, 7]}]
    source = write_lines(tmp_path / "a.jsonl", [{"turns": turns}, {"prompt": "w1 w2", "response": "w3"}])
    counts = stoker.prepare(source, tmp_path / "out", tokenizer, foundry_compatible=True, compression=None, processes=1)
    assert (counts.samples, counts.tokens, counts.loss_tokens) == (2, 9, 4)
    (entry,) = json.loads((tmp_path / "out" / "index.json").read_text())["shards"]
    assert (entry["column_names"], entry["column_encodings"]) == (["turns"], ["json"])
    raw = (tmp_path / "out" / entry["raw_data"]["basename"]).read_bytes()
    offsets = np.frombuffer(raw, "<u4", 3, 4)
    texts = [raw[begin + 4 : end] for begin, end in itertools.pairwise(offsets)]
    assert [json.loads(text) for text in texts] == [turns, [{"input_ids": [3, 4], "labels": [5]}]]

    stoker.prepare(tmp_path / "out", tmp_path / "again", tokenizer, processes=1)
    stoker.prepare(source, tmp_path / "here", tokenizer, processes=1)
    assert samples_of(tmp_path / "again") == samples_of(tmp_path / "here")
    other = tmp_path / "other.json"
    other.write_text(tokenizer.read_text() + "\n")
    for made in ("out", "again"):
        with pytest.raises(ValueError, match=f"{made}/index.json lists token ids of another tokenizer"):
            stoker.prepare(tmp_path / made, tmp_path / "wrong", other, processes=1)
    with pytest.raises(ValueError, match="foundry_compatible writes turns, which text and token ids are not"):
        text = write_lines(tmp_path / "text.jsonl", [{"text": "w1"}])
        stoker.prepare([source, text], tmp_path / "mixed", tokenizer, foundry_compatible=True, processes=1)
