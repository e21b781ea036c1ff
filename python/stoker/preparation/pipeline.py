"""From raw data to token shards: parts are tokenized one by one, in any process, and put together in their order.

`OUT/.parts` holds the plan (plan.json) and a directory of shards for each part that is done; at the end the shards
move to OUT, and index.json is written. A part is done when its index.json is there, and the whole when OUT's is:
whoever is killed in between goes on there. What comes out does not depend on who does which part.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stoker.files import write_atomically
from stoker.options import check_index
from stoker.preparation.concatenation import concatenate, documents_of
from stoker.preparation.examples import Targets
from stoker.preparation.part_writer import COUNTS_FILE, EXAMPLE_KEYS, TEXT_KEYS, Counts, PartWriter, Rules, end_of
from stoker.preparation.sources import Part, Row, find_parts, read_rows
from stoker.preparation.tokenizer import TextTokenizer
from stoker.writer import MDSWriter

VERSION = 1  # of what comes out
_PARTS, _PLAN, _INDEX = ".parts", "plan.json", "index.json"

Progress = Callable[[Part, Counts], None]


def prepare(
    sources: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    out: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str],
    *,
    kind: str = "auto",
    columns: Mapping[str, str] | None = None,
    add_special_tokens: bool = True,
    bos_text: str | None = None,
    eos_text: str | None = None,
    target_prompts: str = "none",
    target_responses: str = "all",
    concat: int | None = None,
    wrap: bool = True,
    foundry_compatible: bool = False,
    compression: str | None = "zstd",
    on_error: str = "raise",
    processes: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Counts:
    """Tokenizes raw data into a directory of token shards, which a loader reads as a stream.

    The output depends on the sources and the arguments, but not on the number of processes. A run that was interrupted,
    in any way, goes on where it stood; one that is finished is left alone.

    Args:
        sources: Files and folders: JSON (an object a line, or an array), CSV, Parquet, text (a document a file); JSON,
            CSV and text also as .zst or .gz.
        out: A directory, empty or absent, or one of an earlier run with the same sources and arguments.
        tokenizer: A tokenizer.json, a folder with one, or a name on the Hugging Face hub.
        kind: "text": one sample a document, column `text` or `content`. "finetuning": `messages`, `turns`, or `prompt`
            and `response` or `completion`; loss on what is answered. "auto": as the first row's columns say.
        columns: Columns of the sources by what they are, such as {"prompt": "instruction", "response": "output"} or
            {"text": "body"}.
        add_special_tokens: Of text: the tokens that the tokenizer puts around a document.
        bos_text, eos_text: Of text: what stands before and behind each document. Default: nothing, and the tokenizer's
            end-of-sequence token, if it has one. "" for the end: nothing.
        target_prompts: Which prompts have loss: "none", "all" or "length>=N".
        target_responses: Which answers of a conversation have loss: "all" or "last".
        concat: Of text: instead of documents rows of so many tokens, cut from all documents one behind the other, as
            LLM Foundry's scripts make them with --concat_tokens. The loader's layout `concat` cuts documents itself,
            for any seq_len.
        wrap: False: what does not fit into a row of `concat` is dropped, and the next document begins a new one.
        foundry_compatible: int32 in all columns, as LLM Foundry's scripts write.
        compression: Of the shards: "zstd", "zstd:LEVEL" or None.
        on_error: "raise" ends at the first bad row, and says where it is; "skip" leaves bad rows out and counts them.
        processes: That tokenize. Default: as many as this process may use CPUs.
        overwrite: Remove the data set that `out` holds, or the beginning of one, and begin anew.
        progress: Called with each part that is done and what became of its rows.

    Returns:
        What became of all rows.

    Raises:
        FileNotFoundError: A source or the tokenizer is not there.
        FileExistsError: `out` holds something else.
        BadRowError, BadExampleError: A row is bad; the message says where and why. Both are ValueErrors.
        ValueError: An argument breaks its rule, or a source is of no known format.
        ModuleNotFoundError: A package is missing; the message says which.
        OSError: Something can't be read or written.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {on_error!r}: it must be 'raise' or 'skip'.")
    if kind not in ("auto", "text", "finetuning"):
        raise ValueError(f"kind is {kind!r}: it must be 'auto', 'text' or 'finetuning'.")
    paths = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    parts = find_parts(paths)
    text_tokenizer = TextTokenizer(tokenizer)
    rules = Rules(
        tokenizer=os.fspath(tokenizer),
        kind=_kind_of(parts, columns or {}) if kind == "auto" else kind,
        columns=tuple((columns or {}).items()),
        add_special_tokens=add_special_tokens,
        bos_text=bos_text,
        eos_text=eos_text,
        targets=Targets(target_prompts, target_responses),
        concat=None if concat is None else check_index("concat", concat, 1, 1 << 31),
        wrap=wrap,
        foundry_compatible=foundry_compatible,
        compression=compression,
        skip_errors=on_error == "skip",
    )
    if rules.concat:
        _check_concat(rules, text_tokenizer)
    plan = _make_plan(rules, parts, text_tokenizer)
    directory = Path(out)
    if not _begin(directory, plan, overwrite=overwrite):
        return _counts_of_finished(directory)
    done = _run(rules, parts, directory / _PARTS, processes or len(os.sched_getaffinity(0)), progress)
    directories = [_directory(directory / _PARTS, number) for number in range(len(parts))]
    if rules.concat:
        directories = [_concatenate(rules, directories, done, text_tokenizer.vocab_size)]
    _merge(directory, directories, done, plan)
    return done


def _kind_of(parts: Sequence[Part], columns: Mapping[str, str]) -> str:
    if columns:
        return "text" if "text" in columns else "finetuning"
    first = next((r for part in parts for piece in part for r in read_rows(piece) if isinstance(r, Row)), None)
    if first is None:
        raise ValueError("the sources have no row.")
    if any(all(key in first.values for key in keys) for keys in EXAMPLE_KEYS):
        return "finetuning"
    if any(key in first.values for key in TEXT_KEYS):
        return "text"
    raise ValueError(
        f"{first.where} has the columns {', '.join(first.values)}: say which of them is the text, or prompt and "
        'response, by columns={"text": NAME} or {"prompt": NAME, "response": NAME}.'
    )


def _check_concat(rules: Rules, tokenizer: TextTokenizer) -> None:
    """What is concatenated must be told apart afterwards."""
    if rules.kind != "text":
        raise ValueError(f"concat={rules.concat} is for text: finetuning data is packed by the loader.")
    around = (tokenizer.before or tokenizer.behind) if rules.add_special_tokens else []
    if not (around or rules.bos_text or end_of(rules, tokenizer)):
        raise ValueError(
            "This tokenizer does not insert an EOS nor BOS token. Concatenating with this tokenizer will result in "
            "sequences being attached without a separating token. Please use another tokenizer, such as "
            "facebook/opt-125m, or specify EOS/BOS text with e.g. eos_text='<|endoftext|>'."
        )


# ---------------------------------------------------------------- the plan
def _make_plan(rules: Rules, parts: Sequence[Part], tokenizer: TextTokenizer) -> dict[str, Any]:
    """All that the output depends on, as JSON has it."""
    end = end_of(rules, tokenizer)
    files = {piece.path: os.stat(piece.path) for part in parts for piece in part}
    plan = {
        "version": VERSION,
        "rules": {**asdict(rules), "tokenizer": tokenizer.sha256},
        "parts": [[[Path(p.path).name, p.begin, p.end] for p in part] for part in parts],
        "files": [[Path(path).name, stat.st_size, stat.st_mtime_ns] for path, stat in files.items()],
        "chat_template": tokenizer.chat_template.text if rules.kind == "finetuning" else None,
        "tokenizer": {**tokenizer.identity, "eos_token_id": end[0] if len(end) == 1 else None},
    }
    plan_as_json: dict[str, Any] = json.loads(json.dumps(plan))
    return plan_as_json


def _begin(directory: Path, plan: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Makes the directory of parts, or finds it. Returns whether there is something to do.

    Raises:
        FileExistsError: The directory holds something else.
    """
    index, parts = directory / _INDEX, directory / _PARTS
    if overwrite and (index.is_file() or parts.is_dir()):  # never what is no data set
        shutil.rmtree(directory)
    if index.is_file():
        if json.loads(index.read_text()).get("prepared", {}).get("plan") != plan:
            raise FileExistsError(
                f"{directory} holds a data set of other sources or arguments: choose another directory, or overwrite "
                "it."
            )
        shutil.rmtree(parts, ignore_errors=True)
        return False
    if (parts / _PLAN).is_file():
        if json.loads((parts / _PLAN).read_text()) != plan:
            raise FileExistsError(
                f"{directory} holds the beginning of a data set of other sources or arguments: choose another "
                "directory, or overwrite it."
            )
        return True
    if directory.exists() and any(p.name != _PARTS for p in directory.iterdir()):
        raise FileExistsError(f"{directory} is not empty: choose another directory, or overwrite it.")
    parts.mkdir(parents=True, exist_ok=True)
    write_atomically(str(parts / _PLAN), json.dumps(plan).encode())
    return True


# ---------------------------------------------------------------- the parts
_writer: PartWriter  # of a process that tokenizes


def _start_process(rules: Rules) -> None:
    global _writer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are what runs in parallel
    _writer = PartWriter(rules)


def _write_part(part: Part, directory: Path) -> Counts:
    return _writer.write(part, directory)


def _run(rules: Rules, parts: Sequence[Part], directory: Path, processes: int, progress: Progress | None) -> Counts:
    """Writes the parts that are not there yet. Returns the counts of all, in their order."""
    counts: list[Counts | None] = [_read_counts(_directory(directory, number)) for number in range(len(parts))]
    waiting = [number for number, known in enumerate(counts) if known is None]
    for number, known in enumerate(counts):
        if known is not None and progress is not None:
            progress(parts[number], known)
    if processes == 1 or len(waiting) <= 1:
        writer = PartWriter(rules)
        results: Generator[tuple[int, Counts], None, None] = (
            (number, writer.write(parts[number], _directory(directory, number))) for number in waiting
        )
    else:
        results = _in_processes(rules, parts, directory, waiting, processes)
    with contextlib.closing(results):
        for number, written in results:
            counts[number] = written
            if progress is not None:
                progress(parts[number], written)
    total = Counts()
    for written_or_known in counts:
        assert written_or_known is not None
        total.add(written_or_known)
    return total


def _in_processes(
    rules: Rules, parts: Sequence[Part], directory: Path, waiting: Sequence[int], processes: int
) -> Generator[tuple[int, Counts], None, None]:
    context = multiprocessing.get_context("spawn")  # threads of the tokenizer do not survive a fork
    numbers = iter(waiting)
    with ProcessPoolExecutor(min(processes, len(waiting)), context, _start_process, (rules,)) as pool:
        running: dict[Future[Counts], int] = {}
        try:
            while True:
                while len(running) < 2 * processes and (number := next(numbers, None)) is not None:
                    running[pool.submit(_write_part, parts[number], _directory(directory, number))] = number
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool:
            raise OSError(
                "a process that tokenizes has died, maybe for want of memory: run this again, with fewer processes. It "
                "goes on where it stands."
            ) from None
        finally:
            for future in running:
                future.cancel()


def _directory(parts: Path, number: int) -> Path:
    return parts / f"{number:06}"


def _read_counts(part: Path) -> Counts | None:
    """What became of a part's rows; None where it is not done."""
    if not (part / _INDEX).is_file():
        return None
    return Counts(**json.loads((part / COUNTS_FILE).read_text()))


# ---------------------------------------------------------------- the whole
def _concatenate(rules: Rules, parts: Sequence[Path], counts: Counts, vocab_size: int) -> Path:
    """Writes the rows of all parts into a directory beside them, unless it is there. Corrects the counts."""
    assert rules.concat is not None
    directory = parts[0].parent / "rows"
    if not (directory / _INDEX).is_file():
        columns = rules.columns_of(vocab_size)
        with MDSWriter(
            columns=columns, out=directory, compression=rules.compression, hashes=["sha256"], exist_ok=True
        ) as out:
            for row in concatenate(documents_of(parts), rules.concat, wrap=rules.wrap):
                out.write({"tokens": row})
    counts.samples = sum(entry["samples"] for entry in json.loads((directory / _INDEX).read_text())["shards"])
    counts.tokens = counts.loss_tokens = counts.samples * rules.concat
    return directory


def _merge(directory: Path, parts: Sequence[Path], counts: Counts, plan: Mapping[str, Any]) -> None:
    """Moves the shards of all parts to `directory` under consecutive names, then writes its index. May be interrupted
    anywhere, and called again."""
    entries: list[dict[str, Any]] = []
    totals: dict[str, list[int]] = {"tokens": [], "loss_tokens": [], "longest_sample": []}
    rest: dict[str, Any] = {}
    for part in parts:
        index = json.loads((part / _INDEX).read_text())
        for entry in index["shards"]:
            for data in (entry["raw_data"], entry["zip_data"]):
                if data is None:
                    continue
                was, suffix = data["basename"], data["basename"].split(".mds")[1]
                data["basename"] = f"shard.{len(entries):05}.mds{suffix}"
                if (part / was).exists():
                    os.replace(part / was, directory / data["basename"])
            entries.append(entry)
        rest = index["stoker"]
        for name, of_all in totals.items():
            of_all += rest[name]
    index = {
        "shards": entries,
        "version": 2,
        "stoker": {**rest, **totals, "tokenizer": plan["tokenizer"]},
        "prepared": {"plan": plan, "counts": asdict(counts)},
    }
    write_atomically(str(directory / _INDEX), json.dumps(index, sort_keys=True).encode())
    shutil.rmtree(directory / _PARTS)


def _counts_of_finished(directory: Path) -> Counts:
    return Counts(**json.loads((directory / _INDEX).read_text())["prepared"]["counts"])
