"""Raw streams: tokenized while the run goes on, by the rules of `stoker prepare`, an entry a sample."""

from __future__ import annotations

import itertools
import json
import logging
import operator
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stoker
from stoker.foundry.errors import InvalidRoleError
from stoker.helpers import HelperDiedError, Helpers
from stoker.locks import lock_byte
from stoker.preparation.sources import BadRowError
from stoker.tokenization import RawShards, make_shard
from stoker.totals import count_tokens
from texts import END, TEXTS, ids_of

DOCUMENTS = [text * (1 + number % 7) for number, text in enumerate(TEXTS * 12)]
KINDS: dict[str, tuple[dict[str, str], list[dict[str, Any]]]] = {
    "text": ({"text": "str"}, [{"text": text} for text in DOCUMENTS]),
    "prompts": (
        {"prompt": "str", "response": "str"},
        [{"prompt": one, "response": other} for one, other in itertools.pairwise(DOCUMENTS)],
    ),
    "messages": (
        {"messages": "json"},
        [
            {"messages": [{"role": "user", "content": one}, {"role": "assistant", "content": other}]}
            for one, other in itertools.pairwise(DOCUMENTS)
        ],
    ),
    "turns": (
        {"turns": "json"},
        [
            {"turns": [{"input_ids": [5, 6, 7 + n], "labels": [8]}, {"input_ids": [9], "labels": [n, 3]}]}
            for n in range(50)
        ],
    ),
}


def write_raw(out: Path, columns: dict[str, str], rows: list[dict[str, Any]], **options: Any) -> Path:
    """Some shards."""
    with stoker.MDSWriter(columns=columns, out=out, size_limit=1500, **options) as writer:
        for row in rows:
            writer.write(row)
    return out


def num_samples(directory: Path) -> list[int]:
    return [entry["samples"] for entry in json.loads((directory / "index.json").read_text())["shards"]]


def write_tokens(out: Path, raw: Path, loader: stoker.DataLoader) -> Path:
    """The token shards that a loader makes of raw ones, as a data set of their own."""
    out.mkdir()
    entries = []
    for shard, samples in enumerate(num_samples(raw)):
        read = [loader.dataset.read(raw.name, shard, sample) for sample in range(samples)]
        columns = {{"tokens": "input_ids"}.get(n, n): f"ndarray:{v.dtype}" for n, v in read[0].items()}
        part = out / f"part{shard}"
        with stoker.MDSWriter(columns=columns, out=part, size_limit=None) as writer:
            for sample in read:
                writer.write({{"tokens": "input_ids"}.get(n, n): v for n, v in sample.items()})
        (entry,) = json.loads((part / "index.json").read_text())["shards"]
        entry["raw_data"]["basename"] = f"part{shard}/shard.00000.mds"
        entries.append(entry)
    (out / "index.json").write_text(json.dumps({"version": 2, "shards": entries}))
    return out


def arrays(batches: Iterator[dict[str, Any]], number: int) -> list[list[Any]]:
    return [[np.asarray(values).tolist() for values in batch.values()] for batch in itertools.islice(batches, number)]


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_those_that_prepare_makes(
    kind: str,
    compression: str | None,
    tokenizer: Path,
    tmp_path: Path,
) -> None:
    raw = write_raw(tmp_path / "raw", *KINDS[kind], compression=compression)
    stoker.prepare(raw, tmp_path / "prepared", tokenizer, processes=1)
    prepared = stoker.Stream(local=tmp_path / "prepared")
    with (
        stoker.DataLoader(prepared, seq_len=8, batch_size=1, layout="pad") as expected,
        stoker.DataLoader(
            stoker.Stream(local=raw), seq_len=8, batch_size=1, layout="pad", tokenizer=tokenizer
        ) as loader,
    ):
        assert len(num_samples(raw)) > 1
        assert loader.dataset.kinds == expected.dataset.kinds
        places = [(shard, s) for shard, samples in enumerate(num_samples(raw)) for s in range(samples)]
        for number, (shard, sample) in enumerate(places):
            got = loader.dataset.read("raw", shard, sample)
            want = expected.dataset.read("prepared", 0, number)
            assert {n: (v.tolist(), v.dtype) for n, v in got.items()} == {
                n: (v.tolist(), v.dtype) for n, v in want.items()
            }


@pytest.mark.parametrize("layout", ["pad", "pack"])
def test_batches_are_those_of_token_shards_for_any_threads_processes_and_resume(
    layout: str,
    tokenizer: Path,
    tmp_path: Path,
) -> None:
    roots = [write_raw(tmp_path / kind, *KINDS[kind]) for kind in ("text", "messages")]
    options: dict[str, Any] = {"seq_len": 64, "batch_size": 4, "layout": layout, "shuffle_block": 16, "seed": 3}
    with stoker.DataLoader([stoker.Stream(local=r) for r in roots], tokenizer=tokenizer, **options) as loader:
        made = [write_tokens(tmp_path / f"{r.name}-tokens", r, loader) for r in roots]
    tokens = [stoker.Stream(local=m, name=r.name) for m, r in zip(made, roots, strict=True)]
    for stream in tokens:
        count_tokens(stream.directory)
    with stoker.DataLoader(tokens, **options) as loader:
        want = arrays(itertools.chain(loader, loader), 9)
    for workers, processes in ((0, 1), (1, 2), (3, 3)):
        cache = tmp_path / f"cache{workers}"
        ways = {"tokenizer": tokenizer, "num_workers": workers, "tokenizer_processes": processes, "cache_dir": cache}
        with stoker.DataLoader([stoker.Stream(local=r) for r in roots], **options, **ways) as loader:
            batches = itertools.chain(loader, loader)
            assert arrays(batches, 5) == want[:5]
            state = loader.state_dict()
            assert [[s[:3] for s in row] for row in loader.order(0)]
        with stoker.DataLoader([stoker.Stream(local=r) for r in roots], **options, **ways) as loader:
            loader.load_state_dict(state)
            assert arrays(itertools.chain(loader, loader), 4) == want[5:]


def test_text_and_raw_and_token_streams_mix(tokenizer: Path, tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", *KINDS["messages"])
    stoker.prepare(write_raw(tmp_path / "documents", *KINDS["text"]), tmp_path / "tokens", tokenizer, processes=1)
    streams = [stoker.Stream(local=raw, proportion=0.5), stoker.Stream(local=tmp_path / "tokens", proportion=0.5)]
    with stoker.DataLoader(
        streams, seq_len=128, batch_size=8, layout="pack", weights_in="tokens", tokenizer=tokenizer
    ) as loader:
        for _ in loader:
            pass
        of_streams = loader.stats()["streams"]
    assert of_streams["raw"]["asked"] == pytest.approx(0.5)
    assert of_streams["raw"]["achieved"] == pytest.approx(0.5, abs=0.2)
    (tmp_path / "other").mkdir()
    changed = (tokenizer / "tokenizer.json").read_text().replace('"[UNK]"', '"[unk]"') + "\n"
    (tmp_path / "other" / "tokenizer.json").write_text(changed)
    prepared = {"foundry_compatible": True, "processes": 1}
    stoker.prepare(write_raw(tmp_path / "chat", *KINDS["messages"]), tmp_path / "turns", tokenizer, **prepared)
    for of in (streams, streams[1], stoker.Stream(local=tmp_path / "turns")):
        with pytest.raises(
            ValueError, match=r"stream '(tokens|turns)' has token ids of another tokenizer than `tokeniz"
        ):
            stoker.DataLoader(of, seq_len=8, batch_size=1, layout="pad", tokenizer=tmp_path / "other")
    turns = stoker.Stream(local=tmp_path / "turns")
    stoker.DataLoader(turns, seq_len=8, batch_size=1, layout="pad", tokenizer=tokenizer).close()


def test_the_first_batch_waits_for_the_shards_that_come_soon_alone(tokenizer: Path, tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", *KINDS["text"])
    with stoker.DataLoader(
        stoker.Stream(local=raw), seq_len=8, batch_size=1, layout="pad", shuffle_block=4, tokenizer=tokenizer
    ) as loader:
        next(iter(loader))
        loader._stop_feed()
        made = list((tmp_path / "cache").glob("raw-*/*.mds"))
    assert 1 <= len(made) < len(num_samples(raw)) / 2


def test_a_cache_serves_the_same_content_tokenizer_and_rules(tokenizer: Path, tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", *KINDS["text"])

    def made(**prepare: Any) -> set[tuple[str, int]]:
        stream = stoker.Stream(local=raw, prepare=prepare)
        with stoker.DataLoader(
            stream, seq_len=8, batch_size=1, layout="pad", drop_last=False, tokenizer=tokenizer
        ) as loader:
            assert sum(1 for _ in loader) == len(DOCUMENTS)
        return {(str(path), path.stat().st_mtime_ns) for path in (tmp_path / "cache").glob("raw-*/*.mds")}

    first = made()
    assert len(first) == len(num_samples(raw))
    assert made() == first
    both = made(eos_text="x")
    assert both > first and len(both) == 2 * len(first)
    shard = raw / "shard.00001.mds"
    shard.write_bytes(shard.read_bytes())  # written anew
    assert len(made()) == len(both) + 1


def test_empty_samples_keep_their_places_and_are_counted(
    tokenizer: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    raw = write_raw(tmp_path / "text", {"text": "str"}, [{"text": t} for t in ("a", "", "b")])
    answers = write_raw(
        tmp_path / "answers",
        {"prompt": "str", "response": "str"},
        [{"prompt": "p", "response": r} for r in ("", "r", "")],
    )
    streams = [stoker.Stream(local=raw), stoker.Stream(local=answers)]
    with (
        caplog.at_level(logging.WARNING, "stoker"),
        stoker.DataLoader(streams, seq_len=8, batch_size=6, layout="pad", tokenizer=tokenizer) as loader,
    ):
        sizes = [[len(loader.dataset.read(s.name, 0, i)["tokens"]) for i in range(3)] for s in streams]
        assert [[size > 0 for size in of] for of in sizes] == [[True, False, True], [False, True, False]]
        next(iter(loader))
        of_streams = loader.stats()["streams"]
    assert of_streams["text"]["left_out"] == {"EmptyText": 1} and of_streams["text"]["empty_samples"] == 1
    assert of_streams["answers"]["left_out"] == {"NoLoss": 2}
    assert "stream 'answers': 2 samples of shard 0 are empty (NoLoss: 2)" in caplog.text


BAD = [{"role": "bot", "content": "x"}, {"role": "assistant", "content": "y"}]


def test_a_bad_sample_is_an_error_in_its_place_that_names_it(tokenizer: Path, tmp_path: Path) -> None:
    rows = list(KINDS["messages"][1])
    rows[30] = {"messages": BAD}
    raw = write_raw(tmp_path / "raw", {"messages": "json"}, rows)
    begins = [0, *itertools.accumulate(num_samples(raw))]
    shard = next(i for i, end in enumerate(begins[1:]) if end > 30)
    options: dict[str, Any] = {"seq_len": 8, "batch_size": 1, "layout": "pad", "shuffle": False, "tokenizer": tokenizer}
    with stoker.DataLoader(stoker.Stream(local=raw), **options, shuffle_block=1) as loader:
        batches = iter(loader)
        for _ in range(begins[shard]):
            next(batches)
        for _ in range(2):
            with pytest.raises(
                InvalidRoleError, match=rf"shard.{shard:05}.mds, sample {30 - begins[shard]}: Expected role"
            ):
                next(batches)
    with stoker.DataLoader(stoker.Stream(local=raw, prepare={"on_error": "skip"}), **options) as loader:
        assert sum(1 for _ in loader) == len(rows)
        assert loader.stats()["streams"]["raw"]["left_out"] == {"InvalidRole": 1}


def test_a_damaged_or_missing_raw_shard_is_an_error_that_names_it(tokenizer: Path, tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", *KINDS["text"])
    options: dict[str, Any] = {"seq_len": 8, "batch_size": 1, "layout": "pad", "tokenizer": tokenizer}
    (raw / "shard.00001.mds").write_bytes((raw / "shard.00001.mds").read_bytes()[:-5])
    (raw / "shard.00002.mds").unlink()
    with stoker.DataLoader(stoker.Stream(local=raw), **options) as loader:
        with pytest.raises(BadRowError, match=r"shard.00001.mds is not the shard that its index.json describes"):
            loader.dataset.read("raw", 1, 0)
        with pytest.raises(FileNotFoundError, match=r"shard.00002.mds"):
            loader.dataset.read("raw", 2, 0)
        with pytest.raises((BadRowError, FileNotFoundError)):
            for _ in loader:
                pass


def test_what_can_not_be_tokenized_on_the_fly_is_refused_in_sentences(tokenizer: Path, tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", *KINDS["text"])
    other = write_raw(tmp_path / "other", {"a": "str", "b": "int"}, [{"a": "x", "b": 1}])

    def loader(local: Path, layout: str = "pad", **options: Any) -> stoker.DataLoader:
        stream = stoker.Stream(local=local, prepare=options.pop("prepare", None))
        return stoker.DataLoader(stream, seq_len=8, batch_size=1, layout=layout, **options)

    with pytest.raises(ValueError, match="Give the loader a `tokenizer`, or tokenize the data set first"):
        loader(raw)
    with pytest.raises(ValueError, match="layout 'concat' must know the tokens of every shard before"):
        loader(raw, "concat", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="prepare of stream 'raw' has eos: it may have add_special_tokens, bos_text,"):
        loader(raw, tokenizer=tokenizer, prepare={"eos": "x"})
    with pytest.raises(ValueError, match="on_error is 'ignore': it must be 'raise' or 'skip'"):
        loader(raw, tokenizer=tokenizer, prepare={"on_error": "ignore"})
    with pytest.raises(ValueError, match="stream 'other' has the columns a, b: say which of them is the text"):
        loader(other, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="tokenizer_processes"):
        loader(raw, tokenizer=tokenizer, tokenizer_processes=0)
    with pytest.raises(FileNotFoundError, match="there is no tokenizer at"):
        loader(raw, tokenizer=tmp_path / "nowhere" / "tokenizer.json")
    with loader(other, tokenizer=tokenizer, prepare={"columns": {"text": "a"}}) as named:
        assert named.dataset.read("other", 0, 0)["tokens"].tolist() == ids_of(tokenizer, "x" + END)


# ---------------------------------------------------------------- processes
def raw_stream(loader: stoker.DataLoader) -> RawShards:
    (raw,) = loader.dataset._raw
    assert raw is not None
    return raw.shards


def test_a_shard_that_another_process_makes_is_waited_for_and_named(tokenizer: Path, tmp_path: Path) -> None:
    stream = stoker.Stream(local=write_raw(tmp_path / "raw", *KINDS["text"]))
    options: dict[str, Any] = {"seq_len": 8, "batch_size": 1, "layout": "pad", "tokenizer": tokenizer}
    with stoker.DataLoader(stream, shuffle=False, timeout=1, **options) as loader:
        raw = raw_stream(loader)
        os.makedirs(raw.cache)
        with lock_byte(os.path.join(raw.cache, "lock"), 0):
            with pytest.raises(TimeoutError, match='it needs shard 0 of stream "raw", which is being prepared'):
                next(iter(loader))
    with stoker.DataLoader(stream, **options) as loader:  # helpers take a while to start
        assert len(list(loader)) > 0


def test_who_comes_second_leaves_a_shard_alone_and_what_was_killed_is_cleaned_up(
    tokenizer: Path,
    tmp_path: Path,
) -> None:
    local = write_raw(tmp_path / "raw", *KINDS["text"])
    loader = stoker.DataLoader(stoker.Stream(local=local), seq_len=8, batch_size=1, layout="pad", tokenizer=tokenizer)
    raw = raw_stream(loader)
    path = Path(raw.made_path(0))
    left = path.parent / "000000-left.tmp"
    left.mkdir(parents=True)
    (left / "shard.00000.mds").write_bytes(b"half")
    with Helpers(1) as helpers:
        with lock_byte(str(path.parent / "lock"), 0):
            second = helpers.submit(make_shard, raw, 0, str(path))
            path.write_bytes(b"the first one's")
        second.result()
    assert path.read_bytes() == b"the first one's"
    path.unlink()
    make_shard(raw, 0, str(path))
    assert path.stat().st_size > 100
    assert sorted(p.name for p in path.parent.iterdir()) == sorted({"lock", path.name, f"{path.stem}.json"})


def test_a_loader_can_be_closed_dropped_pickled_and_not_used_in_a_fork(tokenizer: Path, tmp_path: Path) -> None:
    local = write_raw(tmp_path / "raw", *KINDS["text"])

    def make() -> stoker.DataLoader:
        return stoker.DataLoader(
            stoker.Stream(local=local), seq_len=8, batch_size=2, layout="pack", tokenizer=tokenizer, num_workers=1
        )

    loader = make()
    want = arrays(iter(loader), 3)
    if (child := os.fork()) == 0:
        try:
            loader.order(0)
        except stoker.LoaderClosedError:
            loader.close()
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    dataset = loader.dataset
    assert dataset._materializer is not None and dataset._tokenization is not None
    threads, helpers = dataset._materializer._threads, dataset._tokenization._helpers
    assert threads and helpers is not None
    del loader, dataset
    assert not any(thread.is_alive() for thread in threads) and not helpers._processes
    with pickle.loads(pickle.dumps(make())) as again:
        assert arrays(iter(again), 3) == want


def test_helpers_pass_results_and_errors_and_say_when_they_die() -> None:
    with Helpers(2) as helpers:
        assert [helpers.submit(operator.add, n, 1).result() for n in range(5)] == [1, 2, 3, 4, 5]
        assert helpers.submit(print, "not into the protocol").result() is None
        with pytest.raises(ZeroDivisionError):
            helpers.submit(operator.truediv, 1, 0).result()
        with pytest.raises(HelperDiedError, match="ended with status 3"):
            helpers.submit(os._exit, 3).result()
        with pytest.raises(HelperDiedError, match="was killed by SIGKILL"):
            helpers.submit(signal.raise_signal, signal.SIGKILL).result()
        assert helpers.submit(operator.add, 1, 1).result() == 2
        sleeping = helpers.submit(time.sleep, 1000)
    assert sleeping.cancelled() or isinstance(sleeping.exception(), HelperDiedError)


def test_helpers_end_without_a_word_when_their_process_is_killed(tmp_path: Path) -> None:
    """The one that waits, and the one that has an answer for nobody."""
    os.mkfifo(tmp_path / "fifo")
    script = (
        "import os, pathlib, sys; from stoker.helpers import Helpers\n"
        "helpers = Helpers(2)\n"
        "helpers.submit(pathlib.Path(sys.argv[1]).read_bytes)\n"
        "print(helpers.submit(os.getpid).result(), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "fifo")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as parent:
        assert parent.stdout is not None and parent.stderr is not None
        helper = int(parent.stdout.readline())
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        while Path(f"/proc/{helper}").exists() and " Z " not in Path(f"/proc/{helper}/stat").read_text():
            time.sleep(0.01)
        (tmp_path / "fifo").write_bytes(b"")
        assert parent.stderr.read() == ""  # which ends with the last helper


def test_a_cache_that_is_removed_is_made_again(tokenizer: Path, tmp_path: Path) -> None:
    local = write_raw(tmp_path / "raw", *KINDS["text"])
    options: dict[str, Any] = {"seq_len": 8, "batch_size": 1, "layout": "pad", "tokenizer": tokenizer}
    with stoker.DataLoader(stoker.Stream(local=local), **options) as loader:
        want = arrays(iter(loader), 20)
        shutil.rmtree(tmp_path / "cache")
        loader.set_epoch(0)
        assert arrays(iter(loader), 20) == want
