"""Remote streams of a real S3 server: every way to it, through a network that fails, by processes that are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stoker
from preparing import write_lines, write_tokenizer
from seaweed import Bucket
from servers import Fault, Proxy
from stoker import downloads, stores

WORKER = Path(__file__).with_name("worker.py")


def write(out: Any, num_shards: int, **arguments: Any) -> None:
    """Random tokens, which do not compress: about 100 KB a shard."""
    rng = np.random.default_rng(1)
    with stoker.MDSWriter(
        columns={"tokens": "ndarray:uint16"}, out=out, size_limit=100_000, hashes=["sha1"], **arguments
    ) as writer:
        for _ in range(num_shards * 48):
            writer.write({"tokens": rng.integers(0, 60_000, 1024).astype(np.uint16)})


def take(stream: stoker.Stream, **options: Any) -> list[np.ndarray]:
    with stoker.DataLoader(stream, **({"seq_len": 512, "batch_size": 8, "shuffle_block": 64} | options)) as loader:
        return [batch["input_ids"].numpy() for batch in loader]


def assert_same(got: list[np.ndarray], want: list[np.ndarray]) -> None:
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_what_a_writer_uploads_a_loader_reads(bucket: Bucket, tmp_path: Path, compression: str | None) -> None:
    write(f"{bucket.url}/web", 6, compression=compression, storage_options=bucket.options)
    write(tmp_path / "web", 6, compression=compression)
    want = take(stoker.Stream(local=tmp_path / "web"))
    assert_same(take(stoker.Stream(remote=f"{bucket.url}/web", storage_options=bucket.options)), want)


def test_credentials_are_those_of_the_environment_or_none(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(f"{bucket.url}/web", 2, storage_options=bucket.options)
    anonymous = {"endpoint": bucket.endpoint, "region": "us-east-1", "anon": True}
    want = take(stoker.Stream(remote=f"{bucket.url}/web", local=tmp_path / "anonymous", storage_options=anonymous))
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    stores._open.cache_clear()
    stores.open_native.cache_clear()
    assert_same(take(stoker.Stream(remote=f"{bucket.url}/web", local=tmp_path / "environment", name="anonymous")), want)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("S3_ENDPOINT_URL", bucket.endpoint)  # MosaicML Streaming's
    stores._open.cache_clear()
    stores.open_native.cache_clear()
    assert_same(take(stoker.Stream(remote=f"{bucket.url}/web", local=tmp_path / "streaming", name="anonymous")), want)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    stores._open.cache_clear()
    stores.open_native.cache_clear()
    with pytest.raises(PermissionError, match="may not be read or written with these credentials"):
        take(stoker.Stream(remote=f"{bucket.url}/web", local=tmp_path / "wrong"))
    stores._open.cache_clear()
    stores.open_native.cache_clear()


def test_without_obstore_s3fs_serves(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    monkeypatch.setitem(sys.modules, "obstore", None)
    options = {
        "key": bucket.options["access_key_id"],
        "secret": bucket.options["secret_access_key"],
        "endpoint_url": bucket.endpoint,
    }
    stores._open.cache_clear()
    stores.open_native.cache_clear()
    write(f"{bucket.url}/web", 3, storage_options=options)
    write(tmp_path / "web", 3)
    stream = stoker.Stream(remote=f"{bucket.url}/web", storage_options=options)
    assert_same(take(stream), take(stoker.Stream(local=tmp_path / "web")))
    with pytest.raises(FileNotFoundError, match=r"there is no s3://.*/nothing/index\.json"):
        take(stoker.Stream(remote=f"{bucket.url}/nothing", storage_options=options))
    stores._open.cache_clear()
    stores.open_native.cache_clear()


def test_what_is_not_there_is_told(bucket: Bucket) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no s3://.*/nothing/index\.json"):
        take(stoker.Stream(remote=f"{bucket.url}/nothing", storage_options=bucket.options))


def test_the_commands_prepare_verify_index_and_fetch(bucket: Bucket, tmp_path: Path) -> None:
    """As a user gives them, with the environment's credentials."""
    write_tokenizer(tmp_path / "tokenizer.json")
    write_lines(tmp_path / "raw.jsonl", [{"text": f"w{i % 900} w{i % 7}"} for i in range(20_000)])
    stoker_ = str(Path(sys.executable).with_name("stoker"))

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [stoker_, *arguments],
            env=os.environ | bucket.environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    url = f"{bucket.url}/prepared"
    assert "20,000 samples" in run("prepare", "raw.jsonl", "--out", url, "--tokenizer", "tokenizer.json")
    run("prepare", "raw.jsonl", "--out", "here", "--tokenizer", "tokenizer.json")
    assert "all is right" in run("verify", url)
    assert "fetched now" in run("fetch", url, "--local", "copy")
    for path in (tmp_path / "here").iterdir():
        assert path.read_bytes() == (tmp_path / "copy" / path.name).read_bytes()
    index = json.loads((tmp_path / "copy" / "index.json").read_text())
    tokens = index.pop("stoker")["tokens"]
    store = stores.open_store(url, bucket.options)
    store.write("index.json", json.dumps(index).encode())
    assert f"{sum(tokens):,} tokens" in run("index", url)
    assert json.loads(bytes(store.read("stoker.json").data))["tokens"] == tokens


@pytest.mark.parametrize("seed", range(3))
def test_batches_are_right_through_a_network_that_fails(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """A third of all requests are dropped, delayed, cut, damaged or refused."""
    monkeypatch.setattr(downloads, "RANGE_BYTES", 1 << 15)
    monkeypatch.setattr(downloads, "_FIRST_PAUSE_S", 0.01)
    write(f"{bucket.url}/web", 8, storage_options=bucket.options)
    write(tmp_path / "web", 8)
    rng = random.Random(seed)
    kinds = [Fault("drop"), Fault("delay", 1.5), Fault("truncate"), Fault("corrupt"), Fault("503"), Fault("500")]

    def fault(path: str, number: int) -> Fault | None:
        if rng.random() > 1 / 3:
            return None
        one = rng.choice(kinds)
        return None if one.kind == "corrupt" and "shard" not in path else one

    proxy = Proxy(bucket.endpoint, fault)
    with proxy.running() as endpoint:
        stream = stoker.Stream(
            remote=f"{bucket.url}/web",
            local=tmp_path / "copy",
            name="web",
            storage_options={**bucket.options, "endpoint": endpoint},
            download_retry=50,
            download_timeout=1.0,
        )
        with stoker.DataLoader(stream, seq_len=512, batch_size=8, shuffle_block=64) as loader:
            got = [batch["input_ids"].numpy() for batch in loader]
            stats = loader.stats()["streams"]["web"]
    assert_same(got, take(stoker.Stream(local=tmp_path / "web")))
    assert stats["retries"] >= 4 and stats["fetched_shards"] == 8


def test_processes_that_are_killed_and_started_again_share_a_copy(bucket: Bucket, tmp_path: Path) -> None:
    """Each compares all its batches. What has come is kept: no more is downloaded than the data set and what was on its
    way at each kill."""
    write(f"{bucket.url}/web", 30, storage_options=bucket.options)
    write(tmp_path / "web", 30)
    size = sum(p.stat().st_size for p in (tmp_path / "web").iterdir())
    rng = random.Random(5)
    proxy = Proxy(bucket.endpoint, lambda path, number: Fault("delay", 0.05) if "shard" in path else None)
    num_kills = 0
    with proxy.running() as endpoint:
        environment = os.environ | bucket.environment | {"AWS_ENDPOINT_URL": endpoint}

        def start(number: int) -> subprocess.Popen[bytes]:
            arguments = [
                f"{bucket.url}/web",
                str(tmp_path / "copy"),
                str(tmp_path / "web"),
                str(tmp_path / f"{number}"),
            ]
            with (tmp_path / f"{number}.log").open("w") as log:
                return subprocess.Popen([sys.executable, str(WORKER), *arguments], env=environment, stderr=log)

        runs = {number: start(number) for number in range(4)}
        while runs:
            for number, run in list(runs.items()):
                if run.poll() == 0:
                    del runs[number]
                elif run.poll() is not None and run.returncode != -signal.SIGKILL:
                    raise AssertionError((tmp_path / f"{number}.log").read_text())
                elif run.poll() is not None:
                    runs[number] = start(number)
            # While shards come, and no more than ten times, so that all of them end.
            if num_kills < 10 and runs and proxy.sent_bytes > (num_kills + 1) * size / 12:
                os.kill(rng.choice(list(runs.values())).pid, signal.SIGKILL)
                num_kills += 1
            time.sleep(0.01)
    assert num_kills >= 5
    assert all((tmp_path / f"{number}").exists() for number in range(4))
    index_requests = proxy.requests[f"/{bucket.path}/web/index.json"] * 20_000
    assert proxy.sent_bytes <= size + num_kills * 4 * (1 << 16) + index_requests
    for path in (tmp_path / "web").glob("shard.*"):
        assert path.read_bytes() == (tmp_path / "copy" / path.name).read_bytes()
    left = sorted(p.name.partition("-")[0] for p in (tmp_path / "copy" / ".stoker").iterdir())
    assert left == ["lock", "remote.json", "verified"]
