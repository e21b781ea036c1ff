"""A preparation into a place that holds something: what is replaced, what goes on, and what is left alone."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import stoker
from preparing import contents, samples_of, write_lines, write_tokenizer
from stoker.preparation import Job, sources

pytest.importorskip("tokenizers")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer.json")


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two files, each a part."""
    monkeypatch.setattr(sources, "_LEAST_PART", 1)
    for name in "ab":
        write_lines(tmp_path / "raw" / f"{name}.jsonl", [{"text": f"w{i} w{i + 1}"} for i in range(5)])
    return tmp_path / "raw"


def tree(directory: Path) -> set[str]:
    """All that is below."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def never(job: Job, numbers: Sequence[int]) -> Iterator[int]:
    """An engine that is interrupted at once."""
    raise KeyboardInterrupt
    yield 0


def first_only(job: Job, numbers: Sequence[int]) -> Iterator[int]:
    """One that is interrupted behind the first part."""
    job.write_part(numbers[0])
    yield numbers[0]
    raise KeyboardInterrupt


# ---------------------------------------------------------------- overwriting
def test_overwriting_removes_what_the_index_lists_and_nothing_else(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stoker.prepare(raw, out / "one", tokenizer, processes=1)
    stoker.prepare(raw, out / "two", tokenizer, processes=1, bos_text="w9")
    stoker.merge(out)
    (out / "stoker.json").write_text("{}")
    (out / "notes.txt").write_text("mine")
    (out / "one" / "more").mkdir()
    (out / "one" / "index.json").unlink()
    (out / "two" / "index.json").unlink()
    stoker.prepare(raw, out, tokenizer, processes=1, overwrite=True)
    stoker.prepare(raw, tmp_path / "fresh", tokenizer, processes=1)
    assert tree(out) == {"notes.txt", "one", "one/more", *tree(tmp_path / "fresh")}  # `two` was empty
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("suffix", ["", ".zstd", ".gz"])
def test_the_beginning_of_a_data_set_is_overwritten_with_shards_that_were_moved(
    suffix: str, raw: Path, tokenizer: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        stoker.prepare(raw, out, tokenizer, engine=first_only)
    (out / f"shard.00007.mds{suffix}").write_bytes(b"moved")
    stoker.prepare(raw, out, tokenizer, processes=1, eos_text="w9", overwrite=True)
    stoker.prepare(raw, tmp_path / "fresh", tokenizer, processes=1, eos_text="w9")
    assert contents(out) == contents(tmp_path / "fresh")


def test_an_index_of_something_else_is_never_replaced(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "app.js").write_text("mine")
    for content in ('{"pages": []}', "[1]", "nothing", '{"shards": [{}], "version": 2}'):
        (out / "index.json").write_text(content)
        for overwrite in (False, True):
            with pytest.raises((FileExistsError, ValueError), match=r"index.json|holds a data set of other sources"):
                stoker.prepare(raw, out, tokenizer, processes=1, overwrite=overwrite)
            assert {path.name: path.read_text() for path in out.iterdir()} == {"app.js": "mine", "index.json": content}


def test_a_scratch_that_holds_something_is_left_alone(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "thesis.doc").touch()
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="scratch is not empty: choose another scratch"):
            stoker.prepare(
                raw, "memory://again/out", tokenizer, scratch=tmp_path / "scratch", processes=1, overwrite=overwrite
            )
    assert tree(tmp_path / "scratch") == {"thesis.doc"}


def test_what_is_no_data_set_is_not_offered_to_be_overwritten(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.doc").touch()
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=r"out is not empty: choose another directory\.$"):
            stoker.prepare(raw, tmp_path / "out", tokenizer, processes=1, overwrite=overwrite)


@pytest.mark.parametrize(
    ("source", "out"),
    [
        ("raw", "raw"),
        ("raw", "raw/out"),
        ("raw/a.jsonl", "raw"),
        ("link", "raw/out"),
        ("raw", "link/out"),
        ("folder", "raw"),  # by a link in it
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_source_and_the_output_do_not_overlap(
    source: str, out: str, overwrite: bool, raw: Path, tokenizer: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(raw)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "in").symlink_to(raw)
    before = tree(raw)
    with pytest.raises(ValueError, match=r"and the output .* lie one within the other: choose another output"):
        stoker.prepare(tmp_path / source, tmp_path / out, tokenizer, processes=1, overwrite=overwrite)
    assert tree(raw) == before
    with pytest.raises(ValueError, match="lie one within the other"):
        stoker.prepare(
            [f"x={tmp_path / source}"], tmp_path / out, tokenizer, mix={"x": 1}, processes=1, overwrite=overwrite
        )


# ---------------------------------------------------------------- other plans
def test_a_beginning_without_a_part_gives_way_to_another_plan(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        stoker.prepare(raw, tmp_path / "out", tokenizer, engine=never)
    (tmp_path / "out" / ".parts" / "000000.abcd.0").mkdir()  # of a process that was killed
    stoker.prepare(raw, tmp_path / "out", tokenizer, processes=1, eos_text="w9")
    stoker.prepare(raw, tmp_path / "fresh", tokenizer, processes=1, eos_text="w9")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_beginning_that_somebody_is_writing_does_not_give_way(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    def run(job: Job, numbers: Sequence[int]) -> Iterator[int]:
        with pytest.raises(FileExistsError, match="holds the beginning of a data set of other sources or arguments"):
            stoker.prepare(raw, tmp_path / "out", tokenizer, processes=1, eos_text="w9")
        for number in numbers:
            job.write_part(number)
            yield number

    stoker.prepare(raw, tmp_path / "out", tokenizer, engine=run)
    assert samples_of(tmp_path / "out")[0] == {"tokens": [2, 3, 0]}


def test_what_has_changed_is_told(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extra = write_lines(tmp_path / "c.jsonl", [{"text": "w1"}])

    def told(given: Any = raw, **arguments: Any) -> str:
        with pytest.raises(FileExistsError) as error:
            stoker.prepare(given, out, tokenizer, processes=1, **arguments)
        return str(error.value)

    for is_finished in (False, True):
        if is_finished:
            stoker.prepare(raw, out, tokenizer, processes=1)
        else:
            with pytest.raises(KeyboardInterrupt):
                stoker.prepare(raw, out, tokenizer, engine=first_only)
        what = "a data set" if is_finished else "the beginning of a data set"
        assert told(eos_text="") == (
            f"{out} holds {what} of other sources or arguments (eos_text is '', and was None): choose another "
            "directory, or overwrite it."
        )
        assert "(target_responses is 'last', and was 'all')" in told(target_responses="last")
        assert "(token_dtype is 'int32', and was None)" in told(token_dtype="int32")
        assert "(c.jsonl is among the files)" in told([raw, extra])
        assert "(b.jsonl is no longer among the files)" in told(raw / "a.jsonl")
        assert "(the files are given in another order, or not as often)" in told([raw / "b.jsonl", raw / "a.jsonl"])
        many = told(eos_text="", bos_text="w1", concat=8, compression=None)
        assert "; bos_text is 'w1', and was None; " in many or "(bos_text is 'w1', and was None; " in many
        assert ", and 1 more)" in many
    content = tokenizer.read_text()
    tokenizer.write_text(content.replace("w999", "x999"))
    assert "(the tokenizer is another one)" in told()
    tokenizer.write_text(content)
    os.utime(raw / "b.jsonl", ns=(0, 0))
    assert "(b.jsonl has changed)" in told()
    index = json.loads((out / "index.json").read_text())
    index["prepared"]["plan"]["version"] = 1
    (out / "index.json").write_text(json.dumps(index))
    assert "(another version of stoker began it)" in told()
    del index["prepared"]
    (out / "index.json").write_text(json.dumps(index))
    assert "(it was not prepared by stoker)" in told()


def test_bad_rows_that_ended_a_run_are_skipped_by_the_next_one(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    with (raw / "b.jsonl").open("a") as file:
        file.write("no row\n")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"b.jsonl, line 6"):
        stoker.prepare(raw, out, tokenizer, processes=1)
    done = {path: path.stat().st_mtime_ns for path in (out / ".parts").glob("000000/*")}
    assert done
    kept: dict[Path, int] = {}

    def look(*_: object) -> None:
        kept.update({path: path.stat().st_mtime_ns for path in done})

    counts = stoker.prepare(raw, out, tokenizer, processes=1, on_error="skip", progress=look)
    assert counts.bad == {"BadRow": 1} and counts.samples == 10 and kept == done
    stoker.prepare(raw, tmp_path / "fresh", tokenizer, processes=1, on_error="skip")
    assert contents(out) == contents(tmp_path / "fresh")
    with pytest.raises(FileExistsError, match="on_error is 'raise', and was 'skip'"):
        stoker.prepare(raw, out, tokenizer, processes=1)


def test_a_data_set_without_bad_rows_is_that_of_a_run_that_skips_them(
    raw: Path, tokenizer: Path, tmp_path: Path
) -> None:
    counts = stoker.prepare(raw, tmp_path / "out", tokenizer, processes=1)
    before = contents(tmp_path / "out")
    assert stoker.prepare(raw, tmp_path / "out", tokenizer, processes=1, on_error="skip") == counts
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"compression": "lzma"}, "stoker writes zstd"),
        ({"columns": {"txt": "a"}}, "columns names 'txt'"),
        ({"mix": {"raw": 1}, "mix_tokens": 0}, "mix_tokens is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"max_seq_len": 0, "kind": "finetuning"}, "max_seq_len is 0"),
    ],
)
def test_arguments_are_looked_at_before_anything_is_written(
    arguments: dict[str, Any], message: str, raw: Path, tokenizer: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        stoker.prepare(raw, tmp_path / "out", tokenizer, processes=1, **arguments)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- two runs at once
@pytest.mark.parametrize("place", ["parts", "assembly"])
def test_a_run_that_another_one_overtakes_returns_what_has_come_out(
    place: str, raw: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a part that it writes, or when it puts them together."""
    out, done = tmp_path / "out", []

    def overtake() -> None:
        done.append(stoker.prepare(raw, out, tokenizer, processes=1))

    def run(job: Job, numbers: Sequence[int]) -> Iterator[int]:
        for number in numbers:
            if place == "parts" and number == 1:
                overtake()
            job.write_part(number)
            yield number

    if place == "assembly":
        real = stoker.preparation.assembly.Assembly.finish

        def finish(self: Any, counts: Any) -> Any:
            if threading.current_thread() is threading.main_thread() and not done:
                done.append(None)
                overtake()
            return real(self, counts)

        monkeypatch.setattr(stoker.preparation.assembly.Assembly, "finish", finish)
    assert stoker.prepare(raw, out, tokenizer, engine=run) == done[-1]
    stoker.prepare(raw, tmp_path / "fresh", tokenizer, processes=1)
    assert contents(out) == contents(tmp_path / "fresh") and tree(out) == tree(tmp_path / "fresh")


# ---------------------------------------------------------------- nothing
@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([{"text": ""}] * 2, {}, r"all rows were left out \(EmptyText: 2\), the first: .*a.jsonl, line 1: its text is"),
        (
            [{"text": 1}],
            {"on_error": "skip"},
            r"all rows were left out \(BadExample: 1\), the first: .*a.jsonl",
        ),
        ([], {"kind": "text"}, "the sources have no row"),
        ([], {}, "the sources have no row"),
        ([{"text": "w1"}], {"concat": 64}, "concat is 64, and all documents have fewer tokens together: take fewer"),
    ],
)
def test_nothing_is_no_data_set(
    rows: list[Any], arguments: dict[str, Any], message: str, tokenizer: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    source = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match=message):
        stoker.prepare(source, tmp_path / "out", tokenizer, processes=1, **arguments)
    assert not (tmp_path / "out" / "index.json").exists()
    write_lines(source, [{"text": "w1 w2"}])
    stoker.prepare(source, tmp_path / "out", tokenizer, processes=1, overwrite="concat" in arguments)
    assert samples_of(tmp_path / "out") == [{"tokens": [3, 4, 0]}]
