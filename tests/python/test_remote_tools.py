"""Commands and writers for remote data sets: fetch, verify, index, uploads, preparation into a store."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stoker
from mds import write_dataset
from preparing import contents, write_lines, write_tokenizer
from servers import Fault, Proxy, file_server
from stoker import downloads
from stoker.cli import main
from stoker.fetching import fetch
from stoker.preparation import sources
from stoker.totals import count_tokens
from stoker.uploads import Uploader
from stoker.verification import verify

fsspec = pytest.importorskip("fsspec")
LENGTHS = [[50 + (7 * k + i) % 9 for i in range(40)] for k in range(6)]
_NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_FIRST_PAUSE_S", 0.01)


@pytest.fixture
def bucket() -> str:
    """An empty place in a store in memory."""
    return f"memory://bucket{next(_NUMBERS)}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Proxy, str]]:
    (tmp_path / "remote").mkdir()
    with file_server(tmp_path / "remote") as upstream:
        proxy = Proxy(upstream)
        with proxy.running() as url:
            yield proxy, url


def files_in(url: str) -> dict[str, bytes]:
    """What a store in memory holds."""
    system, root = fsspec.core.url_to_fs(url)
    return {path.rpartition("/")[2]: system.cat_file(path) for path in system.find(root)}


# ---------------------------------------------------------------- fetch
def test_fetch_makes_a_copy_that_a_loader_reads(
    server: tuple[Proxy, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy, url = server
    web = write_dataset(tmp_path / "remote", "web", LENGTHS)
    assert main(["fetch", f"{url}/web", "--local", str(tmp_path / "copy")]) == 0
    assert f"6 shards in {tmp_path / 'copy'}, 6 of them fetched now" in capsys.readouterr().out
    assert main(["fetch", f"{url}/web", "--local", str(tmp_path / "copy")]) == 0
    assert "0 of them fetched now" in capsys.readouterr().out
    proxy.fault = lambda path, number: Fault("503") if "shard" in path else None
    stream = stoker.Stream(remote=f"{url}/web", local=tmp_path / "copy", name="web")
    with stoker.DataLoader(stream, seq_len=64, batch_size=4) as ours:
        with stoker.DataLoader(stoker.Stream(local=web), seq_len=64, batch_size=4) as theirs:
            for one, other in zip(ours, theirs, strict=True):
                assert one["input_ids"].equal(other["input_ids"])


def test_fetch_tells_what_it_does_and_what_it_can_not(server: tuple[Proxy, str], tmp_path: Path) -> None:
    proxy, url = server
    web = write_dataset(tmp_path / "remote", "web", LENGTHS)
    seen: list[tuple[int, int]] = []
    (done,) = fetch(stoker.Stream(remote=f"{url}/web"), progress=lambda size, total: seen.append((size, total)))
    size = sum(p.stat().st_size for p in web.rglob("shard.*"))
    assert sum(n for n, _ in seen) == size and {total for _, total in seen} == {size}
    assert (done.shards, done.fetched, done.downloaded_bytes >= size) == (6, 6, True)
    with pytest.raises(ValueError, match="has no remote: there is nothing to fetch"):
        fetch(stoker.Stream(local=web))
    proxy.fault = lambda path, number: Fault("404") if "/3/shard" in path else None
    with pytest.raises(stoker.MissingShardError, match="shard 3 can't be had"):
        fetch(stoker.Stream(remote=f"{url}/web", local=tmp_path / "other"))


def test_fetch_keeps_no_file_open(tmp_path: Path) -> None:
    """Of what is there while others come, and when it is interrupted."""
    web = write_dataset(tmp_path, "web", [[64]] * 40)
    stream = stoker.Stream(remote=str(web), local=tmp_path / "copy")

    def num_open() -> int:
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return sum(os.path.exists(link) and "/copy/" in os.readlink(link) for link in links)

    def interrupt(size: int, total: int) -> None:
        deadline = time.monotonic() + 20
        while len(list((tmp_path / "copy").rglob("shard.*"))) < 40 and time.monotonic() < deadline:
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(stream, progress=interrupt)
    assert num_open() == 0


# ---------------------------------------------------------------- verify
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_verify_finds_what_is_wrong(
    tmp_path: Path, compression: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = {"input_ids": "ndarray:uint16", "labels": "ndarray:int32"}
    hashes = ["sha1", "xxh64"]
    with stoker.MDSWriter(
        columns=columns, out=tmp_path / "web", compression=compression, hashes=hashes, size_limit=2000
    ) as out:
        for i in range(40):
            out.write({"input_ids": np.arange(20, dtype=np.uint16), "labels": np.full(20, i - 100, np.int32)})
    assert main(["verify", str(tmp_path / "web")]) == 0
    found = verify(tmp_path / "web")
    assert (found.samples, found.problems) == (40, []) and found.hashes == 2 * found.shards > 4
    assert "all is right" in capsys.readouterr().out

    shards = sorted((tmp_path / "web").glob("shard.*"))
    content = shards[1].read_bytes()
    shards[1].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    shards[2].write_bytes(shards[2].read_bytes()[:-1])
    shards[3].unlink()
    index = json.loads((tmp_path / "web" / "index.json").read_text())
    index["stoker"]["loss_tokens"][0] += 1
    (tmp_path / "web" / "index.json").write_text(json.dumps(index))
    assert main(["verify", str(tmp_path / "web")]) == 1
    told = capsys.readouterr().out
    for what in ("its sha1 differs", "its xxh64 differs", "bytes, not", "there is no", "loss tokens among"):
        assert what in told
    assert "5 problems" in told


def test_verify_reads_a_remote_and_keeps_nothing(server: tuple[Proxy, str], tmp_path: Path) -> None:
    proxy, url = server
    write_dataset(tmp_path / "remote", "web", LENGTHS)
    found = verify(f"{url}/web")
    assert (found.shards, found.samples, found.problems) == (6, 240, [])
    assert main(["verify", f"{url}/web", "--anonymous"]) == 0
    proxy.fault = lambda path, number: Fault("404") if "/3/shard" in path else None
    (problem,) = verify(f"{url}/web").problems
    assert "shard 3 can't be had" in problem


def test_verify_of_samples_and_offsets(tmp_path: Path) -> None:
    web = write_dataset(tmp_path, "web", LENGTHS)
    shard = web / "2" / "shard.00000.mds"
    content = bytearray(shard.read_bytes())
    begin = int.from_bytes(content[4:8], "little")
    content[begin] ^= 1  # a size word of the first sample
    shard.write_bytes(content)
    problems = verify(web).problems
    assert any("sample 0" in problem for problem in problems)
    content[8:12] = (1 << 31).to_bytes(4, "little")
    shard.write_bytes(content)
    assert any("is not the shard" in problem for problem in verify(web).problems)


def test_verify_of_nothing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 1
    assert f"there is no {tmp_path}/index.json: a data set is a directory with it." in capsys.readouterr().err


def test_verify_counts_what_a_copy_does_not_have_yet(server: tuple[Proxy, str], tmp_path: Path) -> None:
    write_dataset(tmp_path / "remote", "web", LENGTHS)
    fetch(stoker.Stream(remote=f"{server[1]}/web", local=tmp_path / "copy"))
    (tmp_path / "copy" / "0" / "shard.00000.mds").unlink()
    found = verify(tmp_path / "copy")
    assert (found.absent, found.shards, found.problems) == (1, 5, [])


# ---------------------------------------------------------------- index
@pytest.mark.parametrize("form", [{}, {"other_column": True}, {"compression": "zstd"}, {"labels": "int32"}])
def test_tokens_of_a_remote_are_counted_from_heads_where_these_tell(
    server: tuple[Proxy, str], tmp_path: Path, form: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    proxy, url = server
    web = write_dataset(tmp_path / "remote", "web", LENGTHS, totals=False, **form)
    want = count_tokens(web, out=tmp_path)
    proxy.sent_bytes = 0
    assert main(["index", f"{url}/web", "--out", str(tmp_path / "remote")]) == 0
    got = json.loads((tmp_path / "remote" / "stoker.json").read_text())
    assert (got["tokens"], got["loss_tokens"]) == (want.tokens, want.loss_tokens)
    assert f"{sum(want.tokens):,} tokens in 6 shards" in capsys.readouterr().out
    size = sum(p.stat().st_size for p in web.rglob("shard.*"))
    assert (proxy.sent_bytes < size // 2) == (form == {})


def test_tokens_are_counted_where_a_server_knows_no_ranges(tmp_path: Path) -> None:
    web = write_dataset(tmp_path, "web", LENGTHS, totals=False)
    with file_server(tmp_path, knows_ranges=False) as url:
        assert count_tokens(f"{url}/web", out=tmp_path).tokens == count_tokens(web).tokens


def test_totals_are_written_beside_a_remote_index(bucket: str, tmp_path: Path) -> None:
    web = write_dataset(tmp_path, "web", LENGTHS, totals=False)
    fsspec.filesystem("memory").put(str(web), f"/{bucket.partition('://')[2]}/web", recursive=True)
    want = count_tokens(web, out=tmp_path)
    count_tokens(f"{bucket}/web")
    assert json.loads(files_in(f"{bucket}/web")["stoker.json"])["tokens"] == want.tokens


# ---------------------------------------------------------------- writing
def write_samples(**arguments: Any) -> None:
    with stoker.MDSWriter(columns={"tokens": "ndarray:uint16"}, size_limit=500, **arguments) as out:
        for i in range(100):
            out.write({"tokens": np.arange(i % 20 + 1, dtype=np.uint16)})


@pytest.mark.parametrize("keep_local", [True, False])
@pytest.mark.parametrize("has_local", [True, False])
def test_a_writer_uploads_what_it_writes(bucket: str, tmp_path: Path, keep_local: bool, has_local: bool) -> None:
    write_samples(out=tmp_path / "want")
    out = (str(tmp_path / "here"), f"{bucket}/web") if has_local else f"{bucket}/web"
    write_samples(out=out, keep_local=keep_local)
    assert files_in(f"{bucket}/web") == contents(tmp_path / "want")
    assert (tmp_path / "here").exists() == (has_local and keep_local)
    if (tmp_path / "here").exists():
        assert contents(tmp_path / "here") == contents(tmp_path / "want")
    with pytest.raises(FileExistsError, match=r"has an index\.json"):
        write_samples(out=f"{bucket}/web")
    write_samples(out=f"{bucket}/web", exist_ok=True)


def test_an_upload_that_fails_is_an_error_and_no_index_is_written(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count()
    real = stoker.stores.FsspecStore.write

    def write(self: Any, path: str, source: bytes | str) -> None:
        if next(calls) >= 3:
            raise stoker.stores.StoreError("no more")
        real(self, path, source)

    monkeypatch.setattr(stoker.stores.FsspecStore, "write", write)
    with pytest.raises(OSError, match="no more"):
        write_samples(out=f"{bucket}/web")
    assert len(files_in(f"{bucket}/web")) == 3 and "index.json" not in files_in(f"{bucket}/web")


def test_uploads_are_tried_again(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()
    real = stoker.stores.FsspecStore.write

    def write(self: Any, path: str, source: bytes | str) -> None:
        if next(calls) % 3 == 0:
            raise stoker.stores.StoreError("not now")
        real(self, path, source)

    monkeypatch.setattr(stoker.stores.FsspecStore, "write", write)
    write_samples(out=f"{bucket}/web")
    write_samples(out=tmp_path / "want")
    assert files_in(f"{bucket}/web") == contents(tmp_path / "want")


# ---------------------------------------------------------------- prepare
@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sources, "_LEAST_PART", 2000)
    for name in "ab":
        write_lines(tmp_path / "raw" / f"{name}.jsonl", [{"text": f"w{i} w{i + 1} w{i + 2}"} for i in range(400)])
    write_tokenizer(tmp_path / "tokenizer.json")
    return tmp_path / "raw"


@pytest.mark.parametrize("arguments", [{}, {"mix": {"a": 1, "b": 2}}, {"concat": 16}])
def test_a_preparation_into_a_store_has_the_bytes_of_a_local_one(
    raw: Path, bucket: str, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    paths = [raw / "a.jsonl", raw / "b.jsonl"]
    counts = stoker.prepare(paths, tmp_path / "want", tmp_path / "tokenizer.json", processes=1, **arguments)
    for _ in range(2):  # the second finds it finished
        assert stoker.prepare(paths, f"{bucket}/x", tmp_path / "tokenizer.json", processes=1, **arguments) == counts
    assert files_in(f"{bucket}/x") == contents(tmp_path / "want")
    assert not list((tmp_path / "cache" / "prepare").iterdir())
    with pytest.raises(FileExistsError, match=r"memory://.*/x holds a data set of other sources or arguments"):
        stoker.prepare(raw / "a.jsonl", f"{bucket}/x", tmp_path / "tokenizer.json", processes=1)
    stoker.prepare(raw / "a.jsonl", f"{bucket}/x", tmp_path / "tokenizer.json", processes=1, overwrite=True)
    stoker.prepare(raw / "a.jsonl", tmp_path / "a", tmp_path / "tokenizer.json", processes=1)
    assert files_in(f"{bucket}/x") == contents(tmp_path / "a")


def test_shards_are_uploaded_as_they_are_finished_and_an_interrupted_preparation_goes_on(
    raw: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_parts = itertools.count(1)
    there: list[int] = []

    def interrupt(part: Any, counts: Any, total: int) -> None:
        there.append(len(files_in(f"{bucket}/x")))
        if next(num_parts) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr("stoker.uploads._WAITING", 1)
    arguments: dict[str, Any] = {"processes": 1, "scratch": tmp_path / "scratch"}
    with pytest.raises(KeyboardInterrupt):
        stoker.prepare(raw, f"{bucket}/x", tmp_path / "tokenizer.json", progress=interrupt, **arguments)
    assert there[-1] >= 3 and "index.json" not in files_in(f"{bucket}/x")
    stoker.prepare(raw, f"{bucket}/x", tmp_path / "tokenizer.json", **arguments)
    stoker.prepare(raw, tmp_path / "want", tmp_path / "tokenizer.json", processes=1)
    assert files_in(f"{bucket}/x") == contents(tmp_path / "want")
    with pytest.raises(ValueError, match="scratch is for an output in a remote store"):
        stoker.prepare(raw, tmp_path / "other", tmp_path / "tokenizer.json", **arguments)


def test_an_uploader_waits_where_many_are_uploaded(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stoker.uploads._WAITING", 2)
    uploader = Uploader(bucket)
    for i in range(20):
        (tmp_path / f"{i}").write_bytes(bytes([i]))
        uploader.put(str(tmp_path / f"{i}"), f"x/{i}")
        assert len(uploader._waiting) <= 2
    uploader.wait()
    uploader.close()
    uploader.close()
    assert len(files_in(f"{bucket}/x")) == 20 and not (tmp_path / "7").exists()
