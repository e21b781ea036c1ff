"""Raw data to token shards on Ray, and by engines that users write."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import stoker
from preparing import contents, write_lines, write_tokenizer
from stoker.preparation import Job, engines, sources
from stoker.preparation import job as job_module

pytest.importorskip("tokenizers")

# Ray's own, of its settings and of what it leaves to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.* is deprecated:DeprecationWarning:ray"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Ray, with two CPUs of this machine."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("RAY_AUTH_MODE", "disabled"), ("RAY_USAGE_STATS_ENABLED", "0")):  # writes nothing at home
            patch.setenv(name, value)
        folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # the path of a socket has at most 107 bytes
        ray.init(num_cpus=2, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
        try:
            yield ray
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer.json")


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Documents of twelve parts."""
    monkeypatch.setattr(sources, "_LEAST_PART", 2000)
    for i in range(12):
        texts = (" ".join(f"w{i * j + k}" for k in range(j % 30 + 1)) for j in range(40))
        write_lines(tmp_path / "raw" / f"{i:02}.jsonl", ({"text": text} for text in texts))
    return tmp_path / "raw"


# ---------------------------------------------------------------- Ray
def test_ray_writes_the_bytes_that_local_processes_write(
    raw: Path, tokenizer: Path, tmp_path: Path, cluster: Any
) -> None:
    seen: list[int] = []
    here = stoker.prepare(raw, tmp_path / "here", tokenizer, processes=1)
    there = stoker.prepare(
        raw,
        tmp_path / "there",
        tokenizer,
        engine="ray",
        progress=lambda part, counts, total: seen.append(counts.samples),
    )
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    assert here == there and sum(seen) == here.samples and len(seen) > 10
    assert cluster.is_initialized()  # it was not ours to end


def test_ray_goes_on_where_a_run_was_interrupted(raw: Path, tokenizer: Path, tmp_path: Path, cluster: Any) -> None:
    stoker.prepare(raw, tmp_path / "whole", tokenizer, processes=1)
    num_parts = 0

    def interrupt(part: Any, counts: Any, total_bytes: int) -> None:
        nonlocal num_parts
        num_parts += 1
        if num_parts == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stoker.prepare(raw, tmp_path / "out", tokenizer, engine="ray", processes=1, progress=interrupt)
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / ".parts").glob("??????/*")}
    assert len(done) >= 3 * 3
    kept: dict[Path, int] = {}

    def look(part: Any, counts: Any, total_bytes: int) -> None:
        kept.update({p: p.stat().st_mtime_ns for p in done})

    stoker.prepare(raw, tmp_path / "out", tokenizer, engine="ray", progress=look)
    assert kept == done
    assert contents(tmp_path / "whole") == contents(tmp_path / "out")


def test_an_error_on_ray_is_the_error_itself(raw: Path, tokenizer: Path, tmp_path: Path, cluster: Any) -> None:
    write_lines(raw / "05.jsonl", [{"text": "w1"}, {"text": 1}])
    for engine in ("local", "ray"):
        with pytest.raises(ValueError, match=r"05.jsonl, line 2: column text holds int, not text") as told:
            stoker.prepare(raw, tmp_path / engine, tokenizer, engine=engine)
        assert type(told.value).__name__ == "BadExampleError"


def test_a_part_whose_processes_die_ends_the_run(tmp_path: Path, cluster: Any) -> None:
    class Deadly(Job):
        class _writer:  # noqa: N801
            @staticmethod
            def write(part: Any, directory: Path) -> None:
                os._exit(1)

    job = Deadly(None, [()], tmp_path, "")  # type: ignore[arg-type]
    with pytest.raises(OSError, match="part 0 was begun 3 times, and each time its process died"):
        list(engines.find_engine("ray", 1)(job, [0]))


def test_the_command_joins_the_cluster_that_there_is(raw: Path, tokenizer: Path, tmp_path: Path, cluster: Any) -> None:
    """At relative paths."""
    command = [str(Path(sys.executable).with_name("stoker")), "prepare", "raw", "--tokenizer", "tokenizer.json"]
    environment = os.environ | {"RAY_ADDRESS": cluster.get_runtime_context().gcs_address}
    for more in (["--out", "here"], ["--out", "there", "--engine", "ray", "--processes", "1"]):
        subprocess.run([*command, *more], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    assert cluster.cluster_resources()["CPU"] == 2


# ---------------------------------------------------------------- engines of users, shares, and two at one part
def backwards(job: Job, numbers: Sequence[int]) -> Iterator[int]:
    for number in reversed(numbers):
        job.write_part(number)
        yield number


def test_a_function_is_an_engine(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    stoker.prepare(raw, tmp_path / "here", tokenizer, processes=1)
    stoker.prepare(raw, tmp_path / "backwards", tokenizer, engine=backwards)
    assert contents(tmp_path / "here") == contents(tmp_path / "backwards")


def test_parts_that_are_not_seen_are_told(
    raw: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module, "_VISIBLE_S", 0.0)

    def forgetful(job: Job, numbers: Sequence[int]) -> Iterator[int]:
        yield from backwards(job, numbers[1:])
        yield numbers[0]

    with pytest.raises(OSError, match=r"part 0 was written, but is not in .*\.parts on .*that all machines see"):
        stoker.prepare(raw, tmp_path / "out", tokenizer, engine=forgetful)


def test_shares_together_are_the_whole(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    """Shares that begin at the same time."""
    whole = stoker.prepare(raw, tmp_path / "whole", tokenizer, processes=1)
    script = (
        "import sys, stoker\n"
        "from stoker.preparation import sources\n"
        "sources._LEAST_PART = 2000\n"
        "raw, out, tokenizer, share = sys.argv[1:]\n"
        "stoker.prepare(raw, out, tokenizer, processes=1, share=(int(share), 3))"
    )
    command = [sys.executable, "-c", script, str(raw), str(tmp_path / "out"), str(tokenizer)]
    runs = [subprocess.Popen([*command, share]) for share in "02"]
    assert [run.wait() for run in runs] == [0, 0]
    numbers = [int(p.name) for p in (tmp_path / "out" / ".parts").glob("0*")]
    assert len(numbers) > 6 and {number % 3 for number in numbers} == {0, 2}
    assert not (tmp_path / "out" / "index.json").exists()
    assert stoker.prepare(raw, tmp_path / "out", tokenizer, processes=1) == whole
    assert contents(tmp_path / "whole") == contents(tmp_path / "out")


def test_the_command_writes_a_share(
    raw: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from stoker.cli import main

    command = ["prepare", str(raw), "--out", str(tmp_path / "out"), "--tokenizer", str(tokenizer), "--processes", "1"]
    assert main([*command, "--share", "1/2"]) == 0
    assert "the same command without --share makes the whole" in capsys.readouterr().out
    assert not (tmp_path / "out" / "index.json").exists()
    assert main(command) == 0 and (tmp_path / "out" / "index.json").exists()
    with pytest.raises(SystemExit):
        main([*command, "--share", "1"])
    assert "'1' is not I/K" in capsys.readouterr().err


def test_two_processes_at_one_part_do_no_harm(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    stoker.prepare(raw, tmp_path / "whole", tokenizer, processes=1)

    def twice(job: Job, numbers: Sequence[int]) -> Iterator[int]:
        writer, write = job._writer, job._writer.write

        def write_while_another_does(part: Any, directory: Path) -> Any:
            writer.write = write
            counts = write(part, directory)
            assert job.write_part(job.parts.index(part)) == counts  # the other, which ends first
            return counts

        for number in numbers:
            writer.write = write_while_another_does
            job.write_part(number)
            assert not list(job.directory.glob(f"{number:06}.*"))
            yield number

    stoker.prepare(raw, tmp_path / "out", tokenizer, engine=twice)
    assert contents(tmp_path / "whole") == contents(tmp_path / "out")


def test_another_tokenizer_on_another_machine_is_refused(raw: Path, tokenizer: Path, tmp_path: Path) -> None:
    def elsewhere(job: Job, numbers: Sequence[int]) -> Iterator[int]:
        tokenizer.write_text(tokenizer.read_text().replace("w999", "x999"))
        yield from backwards(job, numbers)

    with pytest.raises(ValueError, match=r"tokenizer.json on .* is another tokenizer than the one"):
        stoker.prepare(raw, tmp_path / "out", tokenizer, engine=elsewhere)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "dask"}, "engine is 'dask': it must be 'local' or 'ray', or a function"),
        ({"processes": 0}, "processes is 0: it must be a whole number from 1"),
        ({"share": (3, 3)}, "the share is 3: it must be a whole number from 0 to 2"),
        ({"share": (0, 0)}, "the number of shares is 0"),
        ({"share": (0, 2), "overwrite": True}, "overwrite is not for a share"),
    ],
)
def test_engines_that_can_not_be_are_refused(
    arguments: dict[str, Any], message: str, raw: Path, tokenizer: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        stoker.prepare(raw, tmp_path / "out", tokenizer, **arguments)
