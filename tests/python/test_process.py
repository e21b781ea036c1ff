"""The loader among processes, signals and modules: fork, Ctrl-C, timeout, exit, import without torch."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

import stoker
from mds import write_dataset


@pytest.fixture
def stream(tmp_path: Path) -> stoker.Stream:
    return stoker.Stream(local=write_dataset(tmp_path, "web", [[60] * 50, [70] * 30], compression="zstd"))


def run_python(code: str, *arguments: Any, **kw: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        **kw,
    )


def test_a_forked_child_is_told_and_ends_and_the_parent_goes_on(stream: stoker.Stream) -> None:
    result = run_python(
        """
        import os, sys, stoker
        loader = stoker.DataLoader(stoker.Stream(local=sys.argv[1]), seq_len=10, batch_size=4)
        iterator = iter(loader)
        next(iterator)
        child = os.fork()
        if child == 0:
            uses = [
                lambda: next(iterator), lambda: next(iter(loader)), lambda: list(loader),
                lambda: loader.load_state_dict(loader.state_dict()), lambda: loader.order(0),
                lambda: loader.dataset.read("web", 0, 0),
            ]
            for use in uses:
                try:
                    use()
                except stoker.LoaderClosedError as error:
                    print(error, flush=True)
            loader.close()
            sys.exit(7)  # through atexit and all destructors
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        print(sum(1 for _ in iterator))
        """,
        stream.local,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("started in another process, before a fork") == 6
    assert result.stdout.strip().endswith(str((3000 + 2100) // 10 // 4 - 1))


def test_a_loader_that_has_not_started_works_in_a_forked_child(stream: stoker.Stream) -> None:
    loader = stoker.DataLoader(stream, seq_len=10, batch_size=4)
    num_batches = len(loader)
    child = os.fork()
    if child == 0:
        os._exit(0 if sum(1 for _ in loader) == num_batches else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_ctrl_c_gets_through_a_wait_and_no_batch_is_lost(tmp_path: Path) -> None:
    """The one sample is 2^29 tokens of 0, which take some hundred milliseconds to decode."""
    with stoker.MDSWriter(columns={"tokens": "ndarray:uint8"}, out=tmp_path / "web", size_limit=None) as writer:
        writer.write({"tokens": np.ones(1 << 29, np.uint8)})
    raw = tmp_path / "web" / "shard.00000.mds"
    index = json.loads((tmp_path / "web" / "index.json").read_text())
    shard = index["shards"][0]
    content = zstandard.compress(raw.read_bytes())
    (tmp_path / "web" / "shard.00000.mds.zstd").write_bytes(content)
    raw.unlink()
    shard.update(compression="zstd", zip_data={**shard["raw_data"], "bytes": len(content)})
    shard["zip_data"]["basename"] += ".zstd"
    (tmp_path / "web" / "index.json").write_text(json.dumps(index))
    code = """
        import signal, sys, time, stoker
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells take from jobs in the background
        import torch  # an interrupt in the middle of this would break it
        loader = stoker.DataLoader(stoker.Stream(local=sys.argv[1]), seq_len=1000, batch_size=4)
        iterator = iter(loader)
        try:
            print("waiting", flush=True)
            next(iterator)
            print("too late", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            if loader.stats()["batches"] == 0:
                assert next(iterator)["input_ids"].sum() == 4000
                print("interrupted")
            assert loader.state_dict()["rows"] == 4
        """
    for _ in range(20):
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "web")], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "waiting\n"
            process.send_signal(signal.SIGINT)
            said = process.stdout.read()
            assert process.wait(60) == 0
        if said == "interrupted\n":
            return
        assert said == "too late\n"  # the machine was busy: once more
    pytest.fail("no interrupt came while a batch was waited for")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_timeout_says_what_was_waited_for_and_the_batch_comes_later(stream: stoker.Stream, num_workers: int) -> None:
    options: dict[str, Any] = {"seq_len": 50_000, "batch_size": 40, "epoch_size": 40, "num_workers": num_workers}
    with stoker.DataLoader(stream, timeout=1e-9, **options) as loader:
        iterator = iter(loader)
        with pytest.raises(TimeoutError, match=r"no batch came within the timeout of 1e-09 s: .*batch"):
            next(iterator)
        assert loader.stats()["elapsed_s"] == 0
        while True:
            try:
                assert next(iterator)["input_ids"].shape == (40, 50_000)
                break
            except TimeoutError:
                assert loader.state_dict()["rows"] == 0
        assert loader.state_dict()["rows"] == 40


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer needs the addresses itself")
def test_threads_that_the_system_refuses_are_said(stream: stoker.Stream) -> None:
    result = run_python(
        """
        import resource, sys, stoker
        import torch
        loader = stoker.DataLoader(stoker.Stream(local=sys.argv[1]), seq_len=10, batch_size=4, num_workers=1024)
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
        try:
            next(iter(loader))
        except OSError as error:
            print(error)
        """,
        stream.local,
    )
    assert re.search(r"the system refused thread \d+ of num_workers=1024: .* Lower num_workers", result.stdout), result


@pytest.mark.parametrize("leave", ["pass", "sys.exit(0)", "del loader, iterator", "loader.close()"])
def test_a_process_ends_while_batches_are_being_filled(stream: stoker.Stream, leave: str) -> None:
    result = run_python(
        f"""
        import sys, stoker
        loader = stoker.DataLoader(stoker.Stream(local=sys.argv[1]), seq_len=10, batch_size=4, prefetch_factor=50)
        iterator = iter(loader)
        next(iterator)
        {leave}
        """,
        stream.local,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_without_torch_batches_are_numpy_arrays(stream: stoker.Stream) -> None:
    result = run_python(
        """
        import sys
        sys.modules["torch"] = None  # importing it raises ModuleNotFoundError
        import numpy as np, stoker
        with stoker.DataLoader(stoker.Stream(local=sys.argv[1]), seq_len=10, batch_size=4, pin_memory=True) as loader:
            kept = [batch for batch in loader]
        for batch in kept:
            assert all(type(values) is np.ndarray and values.shape == (4, 10) for values in batch.values())
        print(sum(int(batch["input_ids"].sum()) for batch in kept))
        """,
        stream.local,
    )
    assert result.returncode == 0, result.stderr
    with stoker.DataLoader(stream, seq_len=10, batch_size=4) as loader:
        assert int(result.stdout) == sum(int(batch["input_ids"].sum()) for batch in loader)
    assert "needs torch" in result.stderr


def test_what_the_commands_do_comes_when_it_is_asked_for() -> None:
    names = ("count_tokens", "fetch", "inspect", "merge", "prepare", "verify")
    result = run_python(
        f"import sys, stoker; print(*[getattr(stoker, name).__name__ for name in {names}], *sys.modules)"
    )
    assert tuple(result.stdout.split()[: len(names)]) == names and "torch" not in result.stdout.split()
    assert set(names) <= set(stoker.__all__)


def test_import_takes_neither_torch_nor_what_a_loader_does_not_need() -> None:
    result = run_python("import sys, stoker; print(*sys.modules)")
    loaded = set(result.stdout.split())
    assert "stoker.loader" in loaded
    assert not loaded & {"torch", "zstandard", "xxhash", "tokenizers", "pandas", "pyarrow"}
