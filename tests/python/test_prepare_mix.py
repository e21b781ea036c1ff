"""Sources mixed into one data set, and text as finetuning data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import stoker
from preparing import BEGIN, END, contents, samples_of, write_lines, write_tokenizer
from stoker.inspection import inspect
from stoker.preparation import destination, sources
from stoker.preparation.mixing import find_targets, name_sources

pytest.importorskip("tokenizers")

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer.json")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Three sources, whose documents begin with the source's word: a (3,000 tokens), b (2,100), c (420)."""
    for word, (name, num_documents, length) in enumerate((("a", 300, 10), ("b", 300, 7), ("c", 20, 21))):
        texts = (
            " ".join([f"w{word}", *(f"w{10 + (i * k) % 900}" for k in range(length - 2))]) for i in range(num_documents)
        )
        write_lines(tmp_path / "raw" / f"{name}.jsonl", ({"text": text} for text in texts))
    return tmp_path / "raw"


def of_sources(directory: Path) -> Counter[str]:
    """Samples of each source."""
    return Counter("abc"[sample["tokens"][0] - 2] for sample in samples_of(directory))


# ---------------------------------------------------------------- shares
def test_a_mixture_has_the_shares_of_all_tokens_that_the_sources_can_pay_for(
    raw: Path, tokenizer: Path, tmp_path: Path
) -> None:
    counts = stoker.prepare(raw_files(raw), tmp_path / "out", tokenizer, mix={"a": 0.6, "b": 0.3, "c": 0.1})
    assert counts.mixed == {"a": [252, 2520], "b": [180, 1260], "c": [20, 420]}  # c whole
    assert of_sources(tmp_path / "out") == {"a": 252, "b": 180, "c": 20}
    assert (counts.samples, counts.tokens, counts.loss_tokens) == (452, 4200, 4200)
    assert stoker.prepare(raw_files(raw), tmp_path / "out", tokenizer, mix={"c": 0.1, "a": 0.6, "b": 0.3}) == counts
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert sum(index["stoker"]["tokens"]) == 4200 and index["stoker"]["tokenizer"]["eos_token_id"] == END
    assert index["prepared"]["plan"]["rules"]["mix"] == [["a", 0.6], ["b", 0.3], ["c", 0.1]]
    assert inspect(tmp_path / "out").num_hashed == 1


def raw_files(raw: Path, names: str = "abc") -> list[Path]:
    return [raw / f"{name}.jsonl" for name in names]


def test_no_sample_is_taken_twice(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    stoker.prepare(raw_files(raw, "ab"), tmp_path / "out", tokenizer, mix={"a": 1, "b": 1})
    taken = Counter(tuple(sample["tokens"]) for sample in samples_of(tmp_path / "out"))
    stoker.prepare(raw_files(raw, "ab"), tmp_path / "apart", tokenizer)
    assert taken <= Counter(tuple(sample["tokens"]) for sample in samples_of(tmp_path / "apart"))


def test_shares_are_relative(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    for name, mix in (("one", {"a": 0.7, "b": 0.3}), ("ten", {"a": 7, "b": 3})):
        stoker.prepare(raw_files(raw, "ab"), tmp_path / name, tokenizer, mix=mix)
    assert samples_of(tmp_path / "one") == samples_of(tmp_path / "ten")


def test_a_tiny_share_does_not_vanish(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    counts = stoker.prepare(raw_files(raw, "ac"), tmp_path / "out", tokenizer, mix={"a": 1, "c": 1e-9})
    assert counts.mixed == {"a": [300, 3000], "c": [1, 21]}


def test_fewer_tokens_are_taken_where_that_is_asked_for(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    mix = {"a": 1.0, "b": 1.0}
    counts = stoker.prepare(raw_files(raw, "ab"), tmp_path / "out", tokenizer, mix=mix, mix_tokens="1.4k")
    assert counts.mixed == {"a": [70, 700], "b": [100, 700]}
    with pytest.raises(ValueError, match="mix_tokens=100 is for a mix"):
        stoker.prepare(raw_files(raw, "ab"), tmp_path / "no", tokenizer, mix_tokens=100)


def test_another_mix_of_the_same_sources_does_not_tokenize_them_again(
    raw: Path, tokenizer: Path, tmp_path: Path
) -> None:
    mix: dict[str, float] = {"a": 1, "b": 1}
    arguments: dict[str, Any] = {"concat": 16, "processes": 1}
    with pytest.raises(ValueError, match=r"mix_tokens is 4,201, but 4,200 are the most: 'b' has 2,100 tokens, and its"):
        stoker.prepare(raw_files(raw, "ab"), tmp_path / "out", tokenizer, mix=mix, mix_tokens=4201, **arguments)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / ".parts").glob("0*/*")}
    assert before

    finish = destination.Joining.finish

    def interrupt_at_the_end(joining: destination.Joining, **more: Any) -> None:
        if more:
            raise KeyboardInterrupt  # the mixture and its rows are written
        finish(joining)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(destination.Joining, "finish", interrupt_at_the_end)
        stoker.prepare(raw_files(raw, "ab"), tmp_path / "out", tokenizer, mix=mix, seed=1, **arguments)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    stoker.prepare(raw_files(raw, "ab"), tmp_path / "out", tokenizer, mix={"a": 2, "b": 1}, **arguments)
    stoker.prepare(raw_files(raw, "ab"), tmp_path / "fresh", tokenizer, mix={"a": 2, "b": 1}, **arguments)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    with pytest.raises(FileExistsError, match="other sources or arguments"):
        stoker.prepare(raw_files(raw, "ab"), tmp_path / "out", tokenizer, mix=mix, **arguments)


def test_targets_are_exact() -> None:
    targets = find_targets({"a": 0.1, "b": 0.2}, {"a": 10**15 + 1, "b": 10**18}, None)
    assert targets["a"] == 10**15 + 1 and float(targets["b"] / targets["a"]) == 2
    assert sum(find_targets({"a": 3, "b": 4}, {"a": 50, "b": 60}, 70).values()) == 70


@pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")
def test_shares_of_real_text_are_exact_to_within_half_a_document(tmp_path: Path) -> None:
    shares = {"docs": 0.6, "multilingual": 0.4}
    paths = [DATA / "pretrain" / f"{name}.jsonl.zst" for name in shares]
    tokenizer = DATA / "tokenizer" / "gpt-neox-20b-olmo" / "tokenizer.json"
    counts = stoker.prepare(paths, tmp_path / "out", tokenizer, mix=shares)
    documents: Counter[tuple[int, ...]] = Counter()
    longest = {}
    for name, path in zip(shares, paths):
        stoker.prepare(path, tmp_path / name, tokenizer)
        found = inspect(tmp_path / name, check_hashes=False)
        longest[name] = found.lengths[3]
        if name == "multilingual":
            assert counts.mixed[name] == [found.samples, found.tokens]  # the scarce one
            all_tokens = found.tokens / shares[name]
        documents += Counter(tuple(sample["tokens"]) for sample in samples_of(tmp_path / name))
    for name, share in shares.items():
        assert abs(counts.mixed[name][1] - share * all_tokens) <= longest[name] / 2 + 1
    assert Counter(tuple(sample["tokens"]) for sample in samples_of(tmp_path / "out")) <= documents


# ---------------------------------------------------------------- order
def test_the_order_is_that_of_a_loader_of_the_same_sources(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    counts = stoker.prepare(raw_files(raw), tmp_path / "out", tokenizer, mix={"a": 5, "b": 3, "c": 1}, seed=7)
    for path in raw_files(raw):
        stoker.prepare(path, tmp_path / "apart" / path.stem, tokenizer)
    streams = [stoker.Stream(local=tmp_path / "apart" / name, choose=counts.mixed[name][0]) for name in ("c", "a", "b")]
    with stoker.DataLoader(
        streams, seq_len=30, batch_size=1, layout="pad", seed=7, fields=["input_ids", "attention_mask"]
    ) as loader:
        rows = [batch["input_ids"][batch["attention_mask"] == 1].tolist() for batch in loader]
    assert [sample["tokens"] for sample in samples_of(tmp_path / "out")] == rows


def test_the_seed_makes_the_order(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        stoker.prepare(raw_files(raw, "ab"), tmp_path / str(seed), tokenizer, mix={"a": 10, "b": 7}, seed=seed)
    orders = [[tuple(sample["tokens"]) for sample in samples_of(tmp_path / seed)] for seed in ("0", "1")]
    assert orders[0] != orders[1] and Counter(orders[0]) == Counter(orders[1])  # both whole
    with pytest.raises(ValueError, match="seed is -1"):
        stoker.prepare(raw_files(raw, "ab"), tmp_path / "no", tokenizer, mix={"a": 10, "b": 7}, seed=-1)


def test_a_mixture_does_not_depend_on_processes(
    raw: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_LEAST_PART", 5000)
    for processes in (1, 2, 3):
        stoker.prepare(
            raw_files(raw), tmp_path / str(processes), tokenizer, mix={"a": 2, "b": 1, "c": 1}, processes=processes
        )
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3")


def test_a_run_that_is_killed_goes_on_and_gives_the_same_bytes(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    script = write_script(tmp_path / "run.py")

    def run(out: str, processes: int, end_at: str = "") -> int:
        arguments = [str(raw), str(tmp_path / out), str(tokenizer), str(processes), end_at]
        return subprocess.run([sys.executable, str(script), *arguments]).returncode

    assert run("whole", 1) == 0
    # While parts are written, by one process or helpers; when those of a source are joined; in the middle of the
    # mixture, and at its end.
    for processes, end_at in (
        (1, "*/000002"),
        (2, "progress"),
        (1, "*/source.0/index.json"),
        (2, "*/mixed.*/shard.00003.mds.zstd"),
        (1, "*/mixed.*/index.json"),
        (1, "*/killed/shard.00002.mds.zstd"),
    ):
        assert run("killed", processes, end_at) == -signal.SIGKILL, end_at
    assert run("killed", 1) == 0
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")


def write_script(path: Path) -> Path:
    """A run whose parts and shards are small, and which is killed where it is about to write a certain file, or when
    some part is done."""
    path.write_text(
        "import fnmatch, functools, os, signal, sys, stoker\n"
        "from stoker import writer\n"
        "from stoker.preparation import mixing, sources\n"
        "sources._LEAST_PART = 5000\n"
        "mixing.MDSWriter = functools.partial(stoker.MDSWriter, size_limit=1000)\n"
        "raw, out, tokenizer, processes, end_at = sys.argv[1:]\n"
        "def kill(*_):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "def killing(function, place):\n"
        "    def call(*arguments):\n"
        "        if fnmatch.fnmatch(str(arguments[place]), end_at):\n"
        "            kill()\n"
        "        return function(*arguments)\n"
        "    return call\n"
        "os.replace, os.rename = killing(os.replace, 1), killing(os.rename, 1)\n"
        "writer.write_durably = killing(writer.write_durably, 0)\n"
        "names = [f'{raw}/{name}.jsonl' for name in 'abc']\n"
        "mix = {'a': 1, 'b': 0.7, 'c': 0.14}\n"
        "progress = kill if end_at == 'progress' else None\n"
        "stoker.prepare(names, out, tokenizer, mix=mix, processes=int(processes), progress=progress)\n"
    )
    return path


def test_what_is_interrupted_in_the_last_stage_goes_on(
    raw: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every file that is put in its place."""
    monkeypatch.setattr(sources, "_LEAST_PART", 5000)
    arguments: dict[str, Any] = {"mix": {"a": 1, "c": 1}, "processes": 1}
    whole = stoker.prepare(raw_files(raw, "ac"), tmp_path / "whole", tokenizer, **arguments)
    real, num_interrupts, moved = os.replace, 0, set()

    def replace(source: str, target: str) -> None:
        if "out/.parts/0" not in str(target) and Path(target).name not in moved:  # once at each
            moved.add(Path(target).name)
            raise KeyboardInterrupt
        real(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stoker.preparation.pipeline.os.replace", replace)
        while True:
            try:
                counts = stoker.prepare(raw_files(raw, "ac"), tmp_path / "out", tokenizer, **arguments)
                break
            except KeyboardInterrupt:
                num_interrupts += 1
    assert num_interrupts > 3 and counts == whole
    assert contents(tmp_path / "whole") == contents(tmp_path / "out")


# ---------------------------------------------------------------- names
def test_sources_are_named_by_the_user_or_their_paths(tmp_path: Path) -> None:
    (tmp_path / "year=2024.v1").mkdir()
    given = ["web=x/1.jsonl", tmp_path / "code.jsonl.zst", "web=y", tmp_path / "year=2024.v1", "hf:of/Set-2.5"]
    assert name_sources(given, {"web": 1, "code": 1, "year=2024.v1": 1, "Set-2.5": 1}) == {
        "Set-2.5": ["hf:of/Set-2.5"],
        "code": [tmp_path / "code.jsonl.zst"],
        "web": ["x/1.jsonl", "y"],
        "year=2024.v1": [tmp_path / "year=2024.v1"],
    }


@pytest.mark.parametrize(
    ("names", "mix", "message"),
    [
        ("ab", {"a": 1}, "mix has shares of 'a', but the sources are named 'a', 'b': give each source a share"),
        ("a", {"a": 1, "web": 1}, "mix has shares of 'a', 'web', but the sources are named 'a'"),
        ("a", {}, "mix has shares of nothing"),
        ("ab", {"a": 1, "b": 0}, "mix gives 'b' the share 0: it must be a number above 0"),
        ("ab", {"a": 1, "b": float("nan")}, "mix gives 'b' the share nan"),
        ("ab", {"a": 1, "b": "x"}, "mix gives 'b' the share 'x'"),
        ("ad", {"a": 1, "d": 1}, "source 'd' has no token: leave it out of the mix"),
    ],
)
def test_a_mix_that_can_not_be_is_refused(
    names: str, mix: dict[str, Any], message: str, raw: Path, tokenizer: Path, tmp_path: Path
) -> None:
    write_lines(raw / "d.jsonl", [{"text": ""}])
    with pytest.raises(ValueError, match=message):
        stoker.prepare(raw_files(raw, names), tmp_path / "out", tokenizer, mix=mix)


def test_the_command_mixes(raw: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from stoker.cli import main

    common = [
        "prepare",
        f"x={raw / 'a.jsonl'}",
        f"x={raw / 'b.jsonl'}",
        str(raw / "c.jsonl"),
        "--tokenizer",
        str(tokenizer),
    ]
    more = ["--mix", "x=0.9,c=0.1", "--mix-tokens", "2100", "--seed", "3", "--processes", "1"]
    assert main([*common, *more, "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert " 90.0% x: " in told and " 10.0% c: 10 samples, 210 tokens" in told
    assert main([*common, "--mix", "x=1", "--out", str(tmp_path / "no")]) == 1
    assert "stoker: mix has shares of 'x', but the sources are named 'c', 'x'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*common, "--mix", "x=much", "--out", str(tmp_path / "no")])
    assert "'x=much' is not NAME=NUMBER" in capsys.readouterr().err


# ---------------------------------------------------------------- kinds
PROMPT = {"prompt": "w1 w2", "response": "w3"}
TEXT = {"text": "w4 w5 w6"}
AS_EXAMPLE = {"tokens": [3, 4, 5, END], "labels": [-100, -100, 5, END]}
AS_TEXT = {"tokens": [6, 7, 8, END], "labels": [6, 7, 8, END]}


def test_text_is_finetuning_data_with_loss_on_every_token(tokenizer: Path, tmp_path: Path) -> None:
    rows = [TEXT, PROMPT, {"content": "w4 w5 w6"}, TEXT, PROMPT]
    source = write_lines(tmp_path / "a.jsonl", rows)
    counts = stoker.prepare(source, tmp_path / "out", tokenizer, kind="finetuning")
    assert samples_of(tmp_path / "out") == [AS_TEXT, AS_EXAMPLE, AS_TEXT, AS_TEXT, AS_EXAMPLE]
    assert (counts.samples, counts.tokens, counts.loss_tokens) == (5, 20, 16)
    found = inspect(tmp_path / "out")
    assert found.kind == "finetuning" and found.loss_tokens == 16


def test_text_among_finetuning_data_has_what_stands_around_a_document(tokenizer: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [TEXT, PROMPT])
    stoker.prepare(source, tmp_path / "out", tokenizer, kind="finetuning", bos_text="<s>", eos_text="w9")
    text = [BEGIN, 6, 7, 8, 11]
    assert samples_of(tmp_path / "out") == [{"tokens": text, "labels": text}, AS_EXAMPLE]
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["stoker"]["tokenizer"]["eos_token_id"] == END


def test_sources_of_both_kinds_are_finetuning_data(tokenizer: Path, tmp_path: Path) -> None:
    text, chat = (
        write_lines(tmp_path / f"{name}.jsonl", rows) for name, rows in (("text", [TEXT] * 9), ("chat", [PROMPT]))
    )
    stoker.prepare([text, chat], tmp_path / "apart", tokenizer)
    assert samples_of(tmp_path / "apart") == [AS_TEXT] * 9 + [AS_EXAMPLE]
    counts = stoker.prepare([text, chat], tmp_path / "mixed", tokenizer, mix={"text": 1, "chat": 1})
    assert sorted(map(str, samples_of(tmp_path / "mixed"))) == sorted(map(str, [AS_TEXT, AS_EXAMPLE]))
    assert counts.loss_tokens == 6 and inspect(tmp_path / "mixed").loss_tokens == 6
    with pytest.raises(ValueError, match=r"chat.jsonl, line 1: there is no column text"):
        stoker.prepare([text, chat], tmp_path / "no", tokenizer, kind="text")


def test_named_columns_tell_both_kinds_apart(tokenizer: Path, tmp_path: Path) -> None:
    rows = [{"q": "w1 w2", "a": "w3", "text": "w9"}, {"body": "w4 w5 w6", "text": "w9"}]
    source = write_lines(tmp_path / "a.jsonl", rows)
    columns = {"prompt": "q", "response": "a", "text": "body"}
    stoker.prepare(source, tmp_path / "out", tokenizer, columns=columns)
    assert samples_of(tmp_path / "out") == [AS_EXAMPLE, AS_TEXT]
    source = write_lines(tmp_path / "b.jsonl", [{"body": "w4 w5 w6", **PROMPT}])
    stoker.prepare(source, tmp_path / "text", tokenizer, columns={"text": "body"})
    assert samples_of(tmp_path / "text") == [{"tokens": AS_TEXT["tokens"]}]


def test_rows_are_cut_from_a_mixture(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"mix": {"a": 3, "b": 1}, "seed": 5}
    stoker.prepare(raw_files(raw, "ab"), tmp_path / "documents", tokenizer, **arguments)
    counts = stoker.prepare(raw_files(raw, "ab"), tmp_path / "rows", tokenizer, concat=64, **arguments)
    line = [token for sample in samples_of(tmp_path / "documents") for token in sample["tokens"]]
    assert [t for sample in samples_of(tmp_path / "rows") for t in sample["tokens"]] == line[: len(line) // 64 * 64]
    assert counts.samples == len(line) // 64 and counts.mixed["a"] == [300, 3000]
    chat = write_lines(tmp_path / "chat.jsonl", [PROMPT])
    with pytest.raises(ValueError, match="concat=64 is for text"):
        stoker.prepare([raw / "a.jsonl", chat], tmp_path / "no", tokenizer, mix={"a": 1, "chat": 1}, concat=64)
