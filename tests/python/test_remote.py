"""Remote streams: the batches of local ones, through every fault of a network, a server, a disk and a process."""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import errno
import gc
import gzip
import itertools
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stoker
from mds import write_dataset
from servers import Fault, Proxy, file_server
from stoker import cache, downloads
from stoker.downloads import PartialFile
from stoker.fetching import fetch
from stoker.stores import open_store
from texts import TEXTS

LENGTHS = [[50 + (7 * k + i) % 9 for i in range(40)] for k in range(6)]
QUICK: dict[str, Any] = {"download_timeout": 5.0, "download_retry": 4}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses and ranges are short."""
    monkeypatch.setattr(downloads, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(downloads, "RANGE_BYTES", 1000)


@pytest.fixture
def web(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "remote", "web", LENGTHS)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Proxy]:
    """Serves tmp_path/remote through a proxy; its address is `url`."""
    (tmp_path / "remote").mkdir(exist_ok=True)
    with file_server(tmp_path / "remote") as upstream:
        proxy = Proxy(upstream)
        with proxy.running() as url:
            proxy.url = url  # type: ignore[attr-defined]
            yield proxy


def url_of(server: Proxy, name: str = "web") -> str:
    return f"{server.url}/{name}"  # type: ignore[attr-defined]


def with_hashes(directory: Path, algorithm: str = "sha1") -> Path:
    """Adds hashes to the index."""
    import hashlib

    index = json.loads((directory / "index.json").read_text())
    for entry in index["shards"]:
        for data in (entry["raw_data"], entry["zip_data"]):
            if data and (directory / data["basename"]).exists():
                digest = hashlib.new(algorithm, (directory / data["basename"]).read_bytes()).hexdigest()
                data["hashes"] = {algorithm: digest}
    (directory / "index.json").write_text(json.dumps(index))
    return directory


def take(streams: stoker.Stream | list[stoker.Stream], passes: int = 1, **options: Any) -> list[np.ndarray]:
    arguments = {"seq_len": 64, "batch_size": 4, "shuffle_block": 30, "cache_memory": "1mb"} | options
    with stoker.DataLoader(streams, **arguments) as loader:
        return [batch["input_ids"].numpy() for _ in range(passes) for batch in loader]


def expected(directory: Path, passes: int = 1, **options: Any) -> list[np.ndarray]:
    return take(stoker.Stream(local=directory, name="web"), passes, **options)


def assert_same(got: list[np.ndarray], want: list[np.ndarray]) -> None:
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


def shards_of(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("shard.*") if p.parent.name != ".stoker")


# ---------------------------------------------------------------- what is there
@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("layout", ["concat", "pack", "pad"])
def test_batches_are_those_of_local_shards_each_fetched_once(
    server: Proxy, tmp_path: Path, layout: str, compression: str | None
) -> None:
    web = write_dataset(tmp_path / "remote", "web", LENGTHS, compression=compression, frame_bytes=500)
    options: dict[str, Any] = {"layout": layout, "drop_last": True}
    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web")
    for workers in (0, 2):
        assert_same(take(stream, num_workers=workers, **options), expected(web, **options))
    fetched = [path for path in server.requests if "shard" in path]
    assert len(fetched) == 6
    sizes = [p.stat().st_size for p in shards_of(web)]
    assert [p.stat().st_size for p in shards_of(tmp_path / "copy")] == sizes
    assert sum(n for path, n in server.requests.items() if "shard" in path) == sum(-(-s // 1000) for s in sizes)


def test_what_a_run_has_fetched_the_next_one_finds(web: Path, server: Proxy, tmp_path: Path) -> None:
    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web")
    stats = []
    for _ in range(2):
        with stoker.DataLoader(stream, seq_len=64, batch_size=4) as loader:
            list(loader)
            stats.append(loader.stats()["streams"]["web"])
    first, second = stats
    size = sum(p.stat().st_size for p in shards_of(web))
    assert (first["fetched_shards"], first["downloaded_bytes"]) == (6, size)
    assert (second["fetched_shards"], second["downloaded_bytes"]) == (0, 0)
    assert second["cache_hits"] >= 6  # one that had to make room is opened once more
    assert first["supply_s"] > 0 and first["download_s"] > 0 and first["retries"] == first["evicted_shards"] == 0
    assert server.requests["/web/index.json"] == 1  # the next one asked whether it has changed


def test_a_stream_without_a_local_directory_has_one_of_its_own(web: Path, server: Proxy, tmp_path: Path) -> None:
    stream = stoker.Stream(remote=f"{url_of(server)}/")
    assert stream.name == "web" and Path(str(stream.local)).is_relative_to(tmp_path / "cache")
    assert stream == stoker.Stream(remote=url_of(server))
    assert_same(take(stream), expected(web))


@pytest.mark.parametrize("written", ["a web+ü", "a%20web%2B%C3%BC"])
def test_names_in_urls_of_http_may_be_quoted(server: Proxy, tmp_path: Path, written: str) -> None:
    web = write_dataset(tmp_path / "remote", "a web+ü", LENGTHS)
    stream = stoker.Stream(remote=url_of(server, written), local=tmp_path / "copy", name="web")
    assert_same(take(stream), expected(web))


def test_a_split_is_a_directory_of_both(server: Proxy, tmp_path: Path) -> None:
    write_dataset(tmp_path / "remote" / "web", "train", LENGTHS)
    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "copy", split="train", name="train")
    assert_same(take(stream), take(stoker.Stream(local=tmp_path / "remote" / "web", split="train", name="train")))
    assert len(shards_of(tmp_path / "copy" / "train")) == 6


@pytest.mark.parametrize("how", ["path", "file", "memory"])
def test_other_stores_are_read_alike(web: Path, tmp_path: Path, how: str) -> None:
    remote = {"path": str(web), "file": f"file://{web}", "memory": "memory://here/web"}[how]
    if how == "memory":
        fsspec = pytest.importorskip("fsspec")
        fsspec.filesystem("memory").put(str(web), "/here/web", recursive=True)
    assert_same(take(stoker.Stream(remote=remote, local=tmp_path / "copy", name="web")), expected(web))
    assert len(shards_of(tmp_path / "copy")) == 6


def test_without_obstore_fsspec_serves(
    web: Path, server: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setitem(sys.modules, "obstore", None)
    stoker.stores._open.cache_clear()
    assert_same(take(stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web")), expected(web))
    stoker.stores._open.cache_clear()


def test_what_is_public_is_read_without_credentials_in_every_store(
    web: Path, server: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec")
    anonymous: dict[str, Any] = {"storage_options": {"anon": True}, "name": "web"}
    assert_same(take(stoker.Stream(remote=url_of(server), local=tmp_path / "copy", **anonymous)), expected(web))
    told: dict[str, Any] = {}

    def open_system(url: str, **options: Any) -> Any:
        told[url.partition("://")[0]] = options
        return fsspec.filesystem("memory"), "/"

    monkeypatch.setattr(fsspec.core, "url_to_fs", open_system)
    monkeypatch.setitem(sys.modules, "obstore", None)
    for scheme in ("s3", "gcs", "azure", "hf", "sftp", "https"):
        stoker.stores.FsspecStore(f"{scheme}://a/b", scheme, {"anon": True})
    assert told == {
        "s3": {"anon": True},
        "gs": {"token": "anon"},
        "az": {"anon": True},
        "hf": {"token": False},
        "sftp": {},
        "https": {},
    }


@pytest.mark.parametrize("keep_zip", [None, True, False])
def test_zstd_shards_stay_compressed_or_are_expanded_once(server: Proxy, tmp_path: Path, keep_zip: bool | None) -> None:
    web = write_dataset(tmp_path / "remote", "web", LENGTHS, compression="zstd")
    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web", keep_zip=keep_zip)
    assert_same(take(stream), expected(web))
    suffixes = {p.suffix for p in shards_of(tmp_path / "copy")}
    assert suffixes == ({".mds"} if keep_zip is False else {".zstd"})


def recompress(directory: Path, code: str, compress: Callable[[bytes], bytes]) -> Path:
    """Puts raw shards of a data set into files of another compression."""
    index = json.loads((directory / "index.json").read_text())
    for entry in index["shards"]:
        raw = directory / entry["raw_data"]["basename"]
        data = compress(raw.read_bytes())
        raw.with_name(f"{raw.name}.{code}").write_bytes(data)
        raw.unlink()
        basename = f"{entry['raw_data']['basename']}.{code}"
        entry |= {"compression": code, "zip_data": {"basename": basename, "bytes": len(data), "hashes": {}}}
    (directory / "index.json").write_text(json.dumps(index))
    return directory


def compressions() -> list[Any]:
    def brotli(data: bytes) -> bytes:
        return bytes(pytest.importorskip("brotli").compress(data, quality=1))

    def snappy(data: bytes) -> bytes:
        return bytes(pytest.importorskip("snappy").compress(data))

    return [("gz", gzip.compress), ("bz2", bz2.compress), ("br", brotli), ("snappy", snappy)]


@pytest.mark.parametrize(("code", "compress"), compressions(), ids=lambda x: x if isinstance(x, str) else "")
def test_other_compressions_are_expanded_also_of_local_shards(
    web: Path, server: Proxy, tmp_path: Path, code: str, compress: Callable[[bytes], bytes]
) -> None:
    want = expected(web)
    recompress(web, code, compress)
    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web")
    assert_same(take(stream), want)
    assert {p.suffix for p in shards_of(tmp_path / "copy")} == {".mds"}
    before = sorted(web.rglob("*"))
    assert_same(expected(web), want)
    assert sorted(web.rglob("*")) == before  # nothing is written there


def test_a_compressed_shard_without_hashes_that_comes_damaged_is_fetched_again(
    web: Path, server: Proxy, tmp_path: Path
) -> None:
    want = expected(web)
    recompress(web, "gz", gzip.compress)
    server.fault = lambda path, number: Fault("corrupt") if number == 0 and is_shard(path, 1) else None
    with stoker.DataLoader(
        stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web"),
        seq_len=64,
        batch_size=4,
        shuffle_block=30,
    ) as loader:
        assert_same([batch["input_ids"].numpy() for batch in loader], want)
        assert loader.stats()["streams"]["web"]["retries"] == 1


def test_a_cut_shard_of_another_compression_is_an_error_that_names_it(web: Path, tmp_path: Path) -> None:
    recompress(web, "gz", lambda data: gzip.compress(data)[:-10])
    with pytest.raises(
        stoker.MissingShardError, match=r"stream 'web': shard \d .*\.mds\.gz: it is cut or damaged.*\(6 attempts\)"
    ):
        expected(web)


def test_raw_streams_are_fetched_and_tokenized(server: Proxy, tokenizer: Path, tmp_path: Path) -> None:
    with stoker.MDSWriter(columns={"text": "str"}, out=tmp_path / "remote" / "raw", size_limit=300) as out:
        for text in TEXTS * 3:
            out.write({"text": text})
    options: dict[str, Any] = {"layout": "pack", "seq_len": 32, "tokenizer": tokenizer}
    stream = stoker.Stream(remote=url_of(server, "raw"), local=tmp_path / "copy", name="raw")
    want = take(stoker.Stream(local=tmp_path / "remote" / "raw"), **options)
    assert_same(take(stream, **options), want)
    shutil.rmtree(tmp_path / "copy")
    count = sum(server.requests.values())
    assert_same(take(stream, **options), want)  # the tokens are there still
    assert sum(server.requests.values()) == count + 1  # the index


# ---------------------------------------------------------------- faults of networks and servers
FAULTS = {
    "drop": Fault("drop"),
    "truncate": Fault("truncate"),
    "corrupt": Fault("corrupt"),
    "503": Fault("503"),
    "500": Fault("500"),
    "delay": Fault("delay", 3.0),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_requests_that_fail_are_made_again(web: Path, server: Proxy, tmp_path: Path, kind: str) -> None:
    """The first request of every third range, and that of the index."""
    with_hashes(web)
    server.fault = lambda path, number: FAULTS[kind] if number == 0 else None
    if kind == "corrupt":  # of an index nothing tells that it is
        server.fault = lambda path, number: FAULTS[kind] if number == 0 and "shard" in path else None
    stream = stoker.Stream(
        remote=url_of(server), local=tmp_path / "copy", name="web", download_timeout=1.0, download_retry=4
    )
    with stoker.DataLoader(stream, seq_len=64, batch_size=4, shuffle_block=30) as loader:
        got = [batch["input_ids"].numpy() for batch in loader]
        stats = loader.stats()["streams"]["web"]
    assert_same(got, expected(web))
    assert stats["retries"] >= 6 and stats["fetched_shards"] == 6
    for ours, theirs in zip(shards_of(tmp_path / "copy"), shards_of(web), strict=True):
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("range_bytes", [1000, 1 << 20])
@pytest.mark.parametrize("has_obstore", [True, False])
def test_a_server_that_knows_no_ranges_gives_whole_files(
    web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, range_bytes: int, has_obstore: bool
) -> None:
    monkeypatch.setattr(downloads, "RANGE_BYTES", range_bytes)
    if not has_obstore:
        pytest.importorskip("aiohttp")
        monkeypatch.setitem(sys.modules, "obstore", None)
    with file_server(tmp_path / "remote", knows_ranges=False) as url:
        assert_same(take(stoker.Stream(remote=f"{url}/web", local=tmp_path / "copy", name="web")), expected(web))


def is_shard(path: str, number: int) -> bool:
    return f"/{number}/shard" in path


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (Fault("404"), "there is no http://"),
        (Fault("403"), "may not be read or written with these credentials"),
        (Fault("503"), r"503.*\(5 attempts\)"),
        (Fault("truncate"), r"\(5 attempts\)"),
        (Fault("corrupt"), r"is not what index.json says: its sha1 is .* \(5 attempts\)"),
    ],
)
def test_a_shard_that_can_not_be_had_is_an_error_in_its_place(
    web: Path, server: Proxy, tmp_path: Path, fault: Fault, cause: str
) -> None:
    with_hashes(web)
    server.fault = lambda path, number: fault if is_shard(path, 3) else None
    want = expected(web, shuffle=False)
    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web", **QUICK)
    with stoker.DataLoader(stream, seq_len=64, batch_size=4, shuffle=False, shuffle_block=30) as loader:
        batches = iter(loader)
        got = []
        with pytest.raises(
            stoker.MissingShardError, match=f"stream 'web': shard 3 can't be had from .*{cause}"
        ) as told:
            while True:
                got.append(next(batches)["input_ids"].numpy())
        for _ in range(2):  # the same again
            with pytest.raises(stoker.MissingShardError, match="shard 3"):
                next(batches)
    place = told.value
    assert (place.stream, place.shard, place.url) == ("web", 3, f"{url_of(server)}/3/shard.00000.mds")
    tokens_before = sum(map(sum, LENGTHS[:3]))
    assert len(got) == tokens_before // (64 * 4)
    assert_same(got, want[: len(got)])
    assert not (tmp_path / "copy" / "3" / "shard.00000.mds").exists()


@pytest.mark.parametrize("layout", ["pad", "pack", "concat"])
def test_a_run_may_go_on_without_a_missing_shard(web: Path, server: Proxy, tmp_path: Path, layout: str) -> None:
    server.fault = lambda path, number: Fault("404") if is_shard(path, 2) else None
    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web", on_missing="skip")
    options: dict[str, Any] = {"seq_len": 64, "batch_size": 4, "layout": layout, "shuffle": False}
    with stoker.DataLoader(stream, fields=["input_ids", "attention_mask"], **options) as loader:
        batches = list(loader)
        stats = loader.stats()["streams"]["web"]
    assert list(stats["missing_shards"]) == [2] and "can't be had" in stats["missing_shards"][2]
    assert stats["missing_samples"] == 40
    got = np.concatenate([b["input_ids"].numpy()[b["attention_mask"].numpy() == 1] for b in batches])
    with stoker.DataLoader(stoker.Stream(local=web), **options) as loader:
        kept = [loader.dataset.read("web", k, i)["tokens"] for k in range(6) if k != 2 for i in range(40)]
    line = np.concatenate(kept)
    if layout == "concat":
        assert len(batches) == sum(map(sum, LENGTHS)) // (64 * 4)
    if layout != "pack":
        np.testing.assert_array_equal(got, line[: len(got)])
        assert len(line) - len(got) < 64 * 4


def test_a_request_that_hangs_is_given_up_and_closing_does_not_wait(
    web: Path, server: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def hang(path: str, number: int) -> Fault | None:
        if "shard" in path:
            release.wait(60)
        return None

    server.fault = hang
    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web")
    loader = stoker.DataLoader(stream, seq_len=64, batch_size=4, timeout=0.3)
    try:
        for _ in range(2):
            with pytest.raises(TimeoutError, match=r'it needs shard \d of stream "web", which is being fetched'):
                next(iter(loader))
        begin = time.monotonic()
        loader.close()
        assert time.monotonic() - begin < 20  # not the 60 s that the request may take
    finally:
        release.set()


def test_a_store_without_timeouts_of_its_own_does_not_hang(
    web: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread of a request that hangs is replaced."""
    monkeypatch.setattr(downloads, "_GRACE_S", 0.0)
    release = threading.Event()
    real = stoker.stores.LocalStore.read
    hung: set[str] = set()

    def read(self: Any, path: str, *ends: Any) -> Any:
        if "shard" in path and path not in hung:
            hung.add(path)
            release.wait(60)
        return real(self, path, *ends)

    monkeypatch.setattr(stoker.stores.LocalStore, "read", read)
    stream = stoker.Stream(remote=str(web), local=tmp_path / "copy", name="web", download_timeout=0.5)
    try:
        got = take(stream, num_downloads=2)
    finally:
        release.set()
    assert len(hung) == 6
    assert_same(got, expected(web))


def test_no_error_waits_for_what_hangs(server: Proxy, tmp_path: Path) -> None:
    """Indexes are fetched at once: one is never answered, the other is not there."""
    release, gave_up = threading.Event(), threading.Event()

    def hang(path: str, number: int) -> Fault | None:
        if "slow" in path and not release.wait(30):
            gave_up.set()
        return None

    server.fault = hang
    write_dataset(tmp_path / "remote", "slow", LENGTHS)
    names = ("nothing", "slow")
    streams = [stoker.Stream(remote=url_of(server, name), local=tmp_path / name) for name in names]
    threads = set(threading.enumerate())
    try:
        with pytest.raises(FileNotFoundError, match=r"there is no http://.*/nothing/index\.json"):
            take(streams)
        assert not gave_up.is_set()
    finally:
        release.set()
    gc.collect()
    for thread in set(threading.enumerate()) - threads:
        if thread.name.startswith("stoker-"):
            thread.join(20)
            assert not thread.is_alive()


def test_a_store_of_obstore_is_not_used_in_a_fork(web: Path, server: Proxy) -> None:
    """Its threads are not there, and a request would never end. One that is opened there works; see
    test_store_helper.py."""
    pytest.importorskip("obstore")
    store = open_store(url_of(server))
    store.stat("index.json")
    if (child := os.fork()) == 0:
        try:
            store.stat("index.json")
        except RuntimeError as error:
            os._exit(7 if "in a fork of a process that has used obstore" in str(error) else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_shard_has_a_total_time(web: Path, server: Proxy, tmp_path: Path) -> None:
    server.fault = lambda path, number: Fault("503") if "shard" in path else None
    stream = stoker.Stream(
        remote=url_of(server), local=tmp_path / "copy", name="web", download_retry=1000, download_total_timeout=0.5
    )
    with pytest.raises(stoker.MissingShardError, match=r"within 0\.5 s.*\d attempts; the last failure: .*503"):
        take(stream)
    with_hashes(web)
    server.fault = lambda path, number: Fault("corrupt") if "shard" in path else None
    with pytest.raises(stoker.MissingShardError, match="its sha1 is") as told:
        take(stream, num_downloads=1)
    assert told.value.attempts < 1001


def test_errors_of_the_disk_are_not_those_of_a_missing_shard(
    web: Path, server: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", "a file")

    monkeypatch.setattr(cache, "PartialFile", refuse)
    with pytest.raises(PermissionError, match="Permission denied: 'a file'"):
        take(stoker.Stream(remote=url_of(server), local=tmp_path / "copy", on_missing="skip"))


# ---------------------------------------------------------------- the index
def test_a_remote_without_an_index_is_told(server: Proxy, tmp_path: Path) -> None:
    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "copy", **QUICK)
    with pytest.raises(FileNotFoundError, match=r"there is no http://.*/web/index\.json"):
        take(stream)
    server.fault = lambda path, number: Fault("500")
    with pytest.raises(OSError, match="there is no http://"):  # HEAD says so
        take(stream)


def test_a_copy_is_used_where_the_remote_is_away(
    web: Path, server: Proxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream = stoker.Stream(remote="http://127.0.0.1:9/web", local=tmp_path / "copy", name="web", download_retry=1)
    with pytest.raises(OSError, match=r"stream 'web': its index can't be had: .*\(2 attempts\)"):
        take(stream)
    take(stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web"))
    (tmp_path / "copy" / ".stoker" / "remote.json").write_text(json.dumps({"url": "http://127.0.0.1:9/web"}))
    with caplog.at_level(logging.WARNING):
        assert_same(take(stream), expected(web))
    assert "is used" in caplog.text


def test_a_copy_is_used_where_the_index_is_refused(web: Path, server: Proxy, tmp_path: Path) -> None:
    """HEAD is answered, and says that it is another one."""
    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web", download_retry=1)
    take(stream)
    os.utime(web / "index.json")
    server.fault = lambda path, number: Fault("503") if "index" in path else None
    assert_same(take(stream), expected(web))
    with pytest.raises(OSError, match=r"stream 'new': its index can't be had: .*503.*\(2 attempts\)"):
        take(stoker.Stream(remote=url_of(server), local=tmp_path / "new", download_retry=1))


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/../../outside", ""])
def test_an_index_names_no_file_elsewhere(web: Path, server: Proxy, tmp_path: Path, name: str) -> None:
    """None is written by `stoker fetch`, and none removed when the index has changed."""
    good = (web / "index.json").read_text()
    index = json.loads(good)
    index["shards"][0]["raw_data"]["basename"] = name
    (web / "index.json").write_text(json.dumps(index))
    (tmp_path / "outside").write_text("precious")
    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web")
    with pytest.raises(ValueError, match=r"does not stay inside the directory - at `\$\.shards\[0\]\.raw_data`"):
        fetch(stream)
    (web / "index.json").write_text(good)
    assert_same(take(stream), expected(web))
    assert (tmp_path / "outside").read_text() == "precious"


def test_data_that_was_not_fetched_is_not_replaced(web: Path, server: Proxy, tmp_path: Path) -> None:
    """It may be all that there is."""
    mine = write_dataset(tmp_path, "mine", LENGTHS[:3])
    with pytest.raises(
        ValueError, match=r"/mine holds a data set that was not fetched from a remote, and its index is"
    ):
        take(stoker.Stream(remote=url_of(server), local=mine, name="web"))
    assert_same(take(stoker.Stream(local=mine)), take(stoker.Stream(local=mine)))
    assert len(shards_of(mine)) == 3


def test_a_copy_of_another_remote_is_refused_and_one_of_the_same_data_is_taken_over(
    web: Path, server: Proxy, tmp_path: Path
) -> None:
    write_dataset(tmp_path / "remote", "other", LENGTHS[:2])
    take(stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web"))
    with pytest.raises(
        ValueError, match=r"is the copy of http://.*/web, and its index is not that of http://.*/other: give"
    ):
        take(stoker.Stream(remote=url_of(server, "other"), local=tmp_path / "copy", name="web"))
    shutil.copytree(web, tmp_path / "remote" / "mirror")
    before = sum(n for path, n in server.requests.items() if "shard" in path)
    assert_same(
        take(stoker.Stream(remote=url_of(server, "mirror"), local=tmp_path / "copy", name="web")), expected(web)
    )
    assert sum(n for path, n in server.requests.items() if "shard" in path) == before


def test_a_remote_that_has_changed_is_fetched_anew(
    server: Proxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is the same by its hash is kept."""
    web = with_hashes(write_dataset(tmp_path / "remote", "web", LENGTHS))
    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web")
    take(stream)
    kept = (tmp_path / "copy" / "0" / "shard.00000.mds").stat().st_ino
    shutil.rmtree(web)
    web = with_hashes(write_dataset(tmp_path / "remote", "web", [LENGTHS[0], LENGTHS[3], LENGTHS[2]]))
    with caplog.at_level(logging.WARNING):
        assert_same(take(stream), expected(web))
    assert "has changed since it was copied" in caplog.text
    assert (tmp_path / "copy" / "0" / "shard.00000.mds").stat().st_ino == kept


def test_totals_beside_an_index_are_copied_too(server: Proxy, tmp_path: Path) -> None:
    web = write_dataset(tmp_path / "remote", "web", LENGTHS, totals=False, encoding="ndarray?")
    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web")
    with pytest.raises(ValueError, match="does not tell how many tokens its shards hold"):
        take(stream)
    from stoker.totals import count_tokens

    count_tokens(web)
    assert_same(take(stream), expected(web))
    shutil.rmtree(web)
    write_dataset(tmp_path / "remote", "web", LENGTHS[:4], totals=False, encoding="ndarray?")
    with pytest.raises(ValueError, match=rf"which .* needs: run `stoker index {url_of(server)}` once"):
        take(stream)  # those of the index before are not believed


# ---------------------------------------------------------------- the local files
@pytest.mark.parametrize("damage", ["cut", "lengthen", "empty"])
def test_a_file_of_the_wrong_size_is_fetched_again(web: Path, server: Proxy, tmp_path: Path, damage: str) -> None:
    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web")
    take(stream)
    path = tmp_path / "copy" / "4" / "shard.00000.mds"
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-1], "lengthen": content + b"x", "empty": b""}[damage])
    assert_same(take(stream), expected(web))
    assert path.read_bytes() == content


def test_files_that_are_there_are_compared_with_their_hashes_after_each_start_of_the_machine(
    web: Path, server: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_hashes(web)
    place: dict[str, Any] = {"remote": url_of(server), "local": tmp_path / "copy", "name": "web"}
    take(stoker.Stream(**place))
    path = tmp_path / "copy" / "1" / "shard.00000.mds"
    content = path.read_bytes()

    def damage() -> None:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    damage()
    for checks in (None, False):  # a wrong token, which nobody has looked for
        assert len(take(stoker.Stream(**place, validate_cached=checks))) == len(expected(web))
        assert path.read_bytes() != content
    assert_same(take(stoker.Stream(**place, validate_cached=True)), expected(web))
    assert path.read_bytes() == content
    damage()
    monkeypatch.setattr("stoker.marks.boot_id", lambda: "another")
    assert_same(take(stoker.Stream(**place)), expected(web))
    assert path.read_bytes() == content
    assert [p.name for p in (tmp_path / "copy" / ".stoker").glob("verified-*")] == ["verified-another"]


def test_a_hash_that_the_index_does_not_have_is_told(web: Path, server: Proxy, tmp_path: Path) -> None:
    with_hashes(web)
    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web", validate_hash="md5")
    with pytest.raises(ValueError, match=r"stream 'web': Hash algorithm `md5` chosen .* creation `\['sha1'\]`"):
        stoker.DataLoader(stream, seq_len=64, batch_size=4)
    with pytest.raises(ValueError, match="Invalid hash: crc"):
        stoker.DataLoader(dataclasses.replace(stream, validate_hash="crc"), seq_len=64, batch_size=4)


def test_what_came_without_being_compared_is_compared_by_who_asks_for_that(
    web: Path, server: Proxy, tmp_path: Path
) -> None:
    with_hashes(web)
    server.fault = lambda path, number: Fault("corrupt") if number == 0 and is_shard(path, 1) else None
    place: dict[str, Any] = {"remote": url_of(server), "local": tmp_path / "copy", "name": "web"}
    take(stoker.Stream(**place, validate_hash=None))
    assert_same(take(stoker.Stream(**place)), expected(web))


@pytest.mark.parametrize("algorithm", ["md5", "sha3_512", "blake2b"])
def test_hashes_of_the_format_are_compared(server: Proxy, tmp_path: Path, algorithm: str) -> None:
    web = with_hashes(write_dataset(tmp_path / "remote", "web", LENGTHS), algorithm)
    server.fault = lambda path, number: Fault("corrupt") if number == 0 and is_shard(path, 1) else None
    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web", validate_hash=algorithm)
    assert_same(take(stream), expected(web))


def test_a_corrupt_copy_is_removed_where_it_is_found(server: Proxy, tmp_path: Path) -> None:
    """zstd has checksums of its own; the next run fetches the shard anew."""
    columns = {"tokens": "ndarray:uint16"}
    with stoker.MDSWriter(columns=columns, out=tmp_path / "remote" / "web", compression="zstd", size_limit=4000) as out:
        for lengths in LENGTHS:
            for length in lengths:
                out.write({"tokens": np.arange(length, dtype=np.uint16)})
    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web")
    want = take(stream)
    path = shards_of(tmp_path / "copy")[2]
    content = path.read_bytes()
    path.write_bytes(
        content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]
    )
    with pytest.raises(stoker.CorruptShardError):
        take(stream)
    assert not path.exists()
    assert_same(take(stream), want)


def test_a_whole_copy_is_read_without_permission_to_write(web: Path, server: Proxy, tmp_path: Path) -> None:
    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "disk" / "copy", name="web")
    with small_disk(tmp_path / "disk", "10m") as remount:
        take(stream)
        (tmp_path / "disk" / "copy" / "5" / "shard.00000.mds").unlink()
        remount("ro")
        with pytest.raises(OSError, match=r"Read-only file system"):
            take(stream)
        remount("rw")
        take(stream)
        remount("ro")
        assert_same(take(stream), expected(web))


def test_a_copy_made_by_other_means_is_read_without_permission_to_write(
    web: Path, server: Proxy, tmp_path: Path
) -> None:
    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "disk" / "copy", name="web")
    with small_disk(tmp_path / "disk", "10m") as remount:
        shutil.copytree(web, tmp_path / "disk" / "copy")
        remount("ro")
        assert_same(take(stream), expected(web))
        (web / "index.json").write_text(json.dumps(json.loads((web / "index.json").read_text()), indent=1))
        with pytest.raises(OSError, match=r"Read-only file system"):
            take(stream)


@contextlib.contextmanager
def small_disk(path: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A file system of a size; the function that is yielded mounts it anew, with options."""
    path.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path]).returncode:
        pytest.skip("may not mount a file system here")
    try:
        yield (
            lambda options: (
                subprocess.run(["mount", "-o", f"remount,{options}", path], check=True) and None  # type: ignore[func-returns-value]
            )
        )
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_a_full_disk_is_an_error_that_says_so_and_corrupts_nothing(web: Path, server: Proxy, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "40k"):
        local = tmp_path / "disk" / "copy"
        stream = stoker.Stream(remote=url_of(server), local=local, name="web")
        with pytest.raises(OSError, match=r"there is no room for .* of stream 'web': free some") as told:
            take(stream)
        assert told.value.errno == 28
        for path in shards_of(local):
            assert path.read_bytes() == (web / path.relative_to(local)).read_bytes()


# ---------------------------------------------------------------- a limit
def test_a_copy_stays_within_its_limit_and_batches_are_right(web: Path, server: Proxy, tmp_path: Path) -> None:
    local = tmp_path / "copy"
    stream = stoker.Stream(remote=url_of(server), local=local, name="web")
    size = max(p.stat().st_size for p in shards_of(web))
    most, stop = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not stop.wait(0.001):
            with contextlib.suppress(FileNotFoundError):
                most = max(most, sum(p.stat().st_size for p in shards_of(local)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    options: dict[str, Any] = {"seq_len": 64, "batch_size": 4, "shuffle_block": 4}
    try:
        with stoker.DataLoader(stream, cache_limit=int(5.5 * size), num_downloads=1, **options) as loader:
            got = [batch["input_ids"].numpy() for _ in range(3) for batch in loader]
            stats = loader.stats()["streams"]["web"]
    finally:
        stop.set()
        watcher.join()
    assert_same(got, expected(web, passes=3, **options))
    assert stats["evicted_shards"] > 6 and stats["fetched_shards"] > 12
    assert most <= 5.5 * size


def test_a_limit_below_what_is_in_use_is_refused_with_the_number_that_is_needed(
    web: Path, server: Proxy, tmp_path: Path
) -> None:
    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web")
    with pytest.raises(ValueError, match=r"cache_limit is 10,240 bytes, but .* take [\d,]+: give at least that"):
        take(stream, cache_limit="10kb")


def test_what_is_fetched_ahead_is_part_of_what_a_limit_must_hold(web: Path, server: Proxy, tmp_path: Path) -> None:
    size = max(p.stat().st_size for p in shards_of(web))
    options: dict[str, Any] = {"seq_len": 64, "batch_size": 4, "shuffle_block": 4, "cache_limit": int(5.5 * size)}
    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web")
    with pytest.raises(ValueError, match=r"at least that, or lower shuffle_block or predownload"):
        take(stream, predownload=4, **options)
    assert_same(take(stream, **options), expected(web, **options))


def test_a_shard_that_must_make_room_at_once_is_read_all_the_same(
    web: Path, server: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as by another job with a lower limit."""
    real = cache.ShardCache._download_file

    def download_file(self: Any, shard: int, file: Any, prefix: str) -> int:
        fd = real(self, shard, file, prefix)
        self.remove(self._path(file))
        return fd

    monkeypatch.setattr(cache.ShardCache, "_download_file", download_file)
    assert_same(take(stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web")), expected(web))


@pytest.mark.parametrize("split", [None, "web"])
def test_a_link_to_the_remote_is_no_copy_of_it(web: Path, tmp_path: Path, split: str | None) -> None:
    """Nothing is removed there, whatever the limit."""
    (tmp_path / "link").symlink_to(web.parent if split else web)
    stream = stoker.Stream(remote=str(web.parent if split else web), local=tmp_path / "link", split=split, name="web")
    assert stream.remote is None
    assert_same(take(stream, cache_limit=1), expected(web))
    assert len(shards_of(web)) == 6


def test_local_files_are_never_removed(web: Path, server: Proxy, tmp_path: Path) -> None:
    other = write_dataset(tmp_path, "other", LENGTHS)
    streams = [stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web"), stoker.Stream(local=other)]
    take(streams, passes=2, cache_limit=40_000, shuffle_block=2, num_downloads=1)
    assert len(shards_of(other)) == 6


# ---------------------------------------------------------------- ahead
def test_more_is_fetched_ahead_where_that_is_asked_for(web: Path, server: Proxy, tmp_path: Path) -> None:
    def fetched(name: str, **options: Any) -> int:
        stream = stoker.Stream(remote=url_of(server), local=tmp_path / name, name="web")
        with stoker.DataLoader(stream, seq_len=64, batch_size=1, shuffle=False, shuffle_block=10, **options) as loader:
            next(iter(loader))
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:  # as many as come
                count = len(shards_of(tmp_path / name))
                time.sleep(0.3)
                if len(shards_of(tmp_path / name)) == count:
                    break
            return count

    assert fetched("near") == 1  # 20 rows of 64 tokens lie in the first shard
    assert fetched("far", predownload=3) == 4
    assert fetched("size", predownload="20kb") >= 4


def test_more_files_may_be_ahead_than_a_process_may_open_by_default(tmp_path: Path) -> None:
    web = write_dataset(tmp_path, "web", [[64] * 2] * 100)
    stream = stoker.Stream(remote=str(web), local=tmp_path / "copy", name="web")
    want = expected(web, shuffle_block=4)
    fetch(stream)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 50, before[1]))
    try:
        assert_same(take(stream, predownload=100, shuffle_block=4), want)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# ---------------------------------------------------------------- processes
def test_what_came_of_a_shard_is_gone_on_with_by_the_next_process(web: Path, server: Proxy, tmp_path: Path) -> None:
    """The first one never gets the last range of shard 0."""
    (size,) = {(web / "0" / "shard.00000.mds").stat().st_size}
    num_ranges = -(-size // 1000)
    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web", download_retry=0)
    server.fault = lambda path, number: Fault("503") if is_shard(path, 0) and number == num_ranges - 1 else None
    with pytest.raises(stoker.MissingShardError):
        take(stream, shuffle=False, num_downloads=1)
    assert server.requests["/web/0/shard.00000.mds"] == num_ranges
    left = sorted(p.suffix for p in (tmp_path / "copy" / ".stoker").glob("000000-*"))
    assert left == [".marks", ".part"]
    assert_same(take(stream, shuffle=False), expected(web, shuffle=False))
    assert server.requests["/web/0/shard.00000.mds"] == num_ranges + 1
    assert not list((tmp_path / "copy" / ".stoker").glob("000000-*"))


def test_marks_of_another_boot_or_size_are_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = PartialFile(str(tmp_path), "000001-", 2500)
    partial.write(0, b"x" * 1000)
    assert partial.missing() == [(1000, 2000), (2000, 2500)]
    partial.close()
    partial.write(1000, b"y" * 1000)  # a late request
    assert PartialFile(str(tmp_path), "000001-", 2500).missing() == [(1000, 2000), (2000, 2500)]
    assert len(PartialFile(str(tmp_path), "000001-", 2501).missing()) == 3
    assert len(PartialFile(str(tmp_path), "000001-", 2500).missing()) == 3
    PartialFile(str(tmp_path), "000001-", 2500).write(0, b"x" * 1000)
    monkeypatch.setattr(downloads, "boot_id", lambda: "another")
    assert len(PartialFile(str(tmp_path), "000001-", 2500).missing()) == 3
    assert len(list(tmp_path.iterdir())) == 2


def test_marks_that_outlived_their_file_are_not_believed(tmp_path: Path) -> None:
    """Of a process that was killed when the file had its name already."""
    partial = PartialFile(str(tmp_path), "000001-", 2500)
    for begin in (0, 1000, 2000):
        partial.write(begin, b"x" * min(1000, 2500 - begin))
    os.replace(partial.path, tmp_path / "whole")
    assert len(PartialFile(str(tmp_path), "000001-", 2500).missing()) == 3


def test_a_late_request_changes_nothing_that_has_come(tmp_path: Path) -> None:
    partial = PartialFile(str(tmp_path), "000001-", 1000)
    partial.write(0, b"x" * 1000)
    partial.write(0, b"y" * 1000)
    assert Path(partial.path).read_bytes() == b"x" * 1000


@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_process_may_be_killed_at_any_place(tmp_path: Path, is_compressed: bool) -> None:
    """Before each third of the calls that change files, until there are no more."""
    web = write_dataset(tmp_path, "web", LENGTHS[:1])
    want = expected(web)
    if is_compressed:
        recompress(web, "gz", gzip.compress)
    for place in itertools.count(0, 3):
        stream = stoker.Stream(remote=str(web), local=tmp_path / f"{place}", name="web")
        if (child := os.fork()) == 0:
            with contextlib.suppress(BaseException):
                kill_before(place)
                take(stream, num_downloads=1)
            os._exit(0)
        was_killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        if place % 2:
            for path in shards_of(tmp_path / f"{place}"):  # to make room for others
                path.unlink()
        assert_same(take(stream), want)
        left = {p.name for p in (tmp_path / f"{place}").rglob("*") if p.is_file() and p.suffix != ".marks"}
        assert left == {"index.json", "lock", "remote.json", "shard.00000.mds"}
        if not was_killed:
            break
    assert place > 20


def kill_before(number: int) -> None:
    """Has this process killed before one of its calls that change files."""
    calls = itertools.count()

    def killing(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            if next(calls) == number:
                os._exit(7)
            return call(*arguments, **options)

        return called

    for name in ("replace", "unlink", "open", "pwrite", "fsync", "ftruncate", "mkdir"):
        setattr(os, name, killing(getattr(os, name)))


def test_a_process_that_is_killed_while_it_expands_leaves_what_has_come(
    web: Path, server: Proxy, tmp_path: Path
) -> None:
    want = expected(web)
    recompress(web, "gz", gzip.compress)
    stream = stoker.Stream(remote=str(web), local=tmp_path / "copy", name="web")
    if (child := os.fork()) == 0:
        cache.write_durably = lambda path, data: os._exit(7)
        take(stream, num_downloads=1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    (kept,) = shards_of(tmp_path / "copy")
    server.fault = lambda path, number: Fault("404") if path.endswith(kept.name) and kept.parent.name in path else None
    assert_same(take(stream), want)
    assert {p.suffix for p in shards_of(tmp_path / "copy")} == {".mds"}
    assert sorted(p.name for p in (tmp_path / "copy" / ".stoker").iterdir()) == ["lock", "remote.json"]


def test_processes_that_share_a_directory_fetch_each_shard_once(web: Path, server: Proxy, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "import hashlib, sys, stoker\n"
        "stream = stoker.Stream(remote=sys.argv[1], local=sys.argv[2], name='web')\n"
        "with stoker.DataLoader(stream, seq_len=64, batch_size=4, shuffle_block=30) as loader:\n"
        "    digest = hashlib.sha256()\n"
        "    for batch in loader:\n"
        "        digest.update(batch['input_ids'].numpy().tobytes())\n"
        "print(digest.hexdigest())\n"
    )
    command = [sys.executable, str(script), url_of(server), str(tmp_path / "copy")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = {run.communicate()[0] for run in runs}
    assert all(run.returncode == 0 for run in runs) and len(outputs) == 1
    for path, number in server.requests.items():
        assert number == (1 if "shard" in path else number), path
    assert server.requests["/web/index.json"] == 1


def test_a_lock_that_somebody_keeps_is_not_waited_for_forever(web: Path, server: Proxy, tmp_path: Path) -> None:
    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web", download_total_timeout=1.0)
    take(stream)
    (tmp_path / "copy" / "2" / "shard.00000.mds").unlink()
    with cache.lock_byte(str(tmp_path / "copy" / ".stoker" / "lock"), 2):  # by one that hangs
        assert_same(take(stream), expected(web))
    assert sorted(p.name for p in (tmp_path / "copy" / ".stoker").iterdir()) == ["lock", "remote.json"]


def test_a_loader_of_remote_streams_is_pickled_and_not_used_in_a_fork(web: Path, server: Proxy, tmp_path: Path) -> None:
    import pickle

    stream = stoker.Stream(remote=url_of(server), local=tmp_path / "copy", name="web")
    loader = stoker.DataLoader(stream, seq_len=64, batch_size=4)
    if (child := os.fork()) == 0:
        try:
            next(iter(loader))
        except stoker.LoaderClosedError:
            loader.close()
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    with pickle.loads(pickle.dumps(loader)) as again:
        assert_same([b["input_ids"].numpy() for b in again], [b["input_ids"].numpy() for b in loader])
    loader.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "has neither local nor remote"),
        ({"remote": "s3://b/x", "download_retry": -1}, "download_retry of stream 'x' is -1"),
        ({"remote": "s3://b/x", "download_timeout": 0}, "download_timeout=0: it is in seconds, above 0"),
        ({"remote": "s3://b/x", "on_missing": "wait"}, "on_missing='wait': it must be one of 'error', 'skip'"),
        ({"remote": "s3://b/x", "storage_options": {"a": object()}}, "storage_options that are no texts"),
    ],
)
def test_what_a_stream_can_not_be_is_told(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stoker.Stream(**arguments)


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("nothing://a/b", ValueError, "can't be opened"),
        ("s3://b/x", ValueError, "can't be opened"),
    ],
)
def test_a_url_that_nothing_serves_is_told(url: str, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        take(stoker.Stream(remote=url, storage_options={"no_such_option": 1}, download_retry=0))


def test_credentials_are_not_shown() -> None:
    assert "hush" not in repr(stoker.Stream(remote="s3://b/x", storage_options={"secret_access_key": "hush"}))
