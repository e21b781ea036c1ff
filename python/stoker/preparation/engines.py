"""What writes the parts of a job: processes of this machine, or Ray.

An engine is a generator function of a job and the numbers of parts to write. It has `Job.write_part` called for each of
them, anywhere and in any order, and yields a number when that part has been written.
"""

from __future__ import annotations

import functools
import itertools
import os
import pickle
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from stoker.helpers import Helpers
from stoker.options import check_index
from stoker.preparation.job import Job

Engine = Callable[[Job, Sequence[int]], Generator[int, None, None]]


def find_engine(engine: str | Engine, processes: int | None) -> Engine:
    """The engine of a name; a function is one itself.

    Args:
        engine: "local", "ray" or a function.
        processes: That write, of the engines that have a name. Default: "local": as many as this process may use CPUs;
            "ray": as many as there are CPUs in the cluster.

    Raises:
        ValueError: There is no such engine, or `processes` is no number from 1 on.
    """
    if processes is not None:
        check_index("processes", processes, 1, 1 << 20)
    if callable(engine):
        return engine
    if engine not in _ENGINES:
        raise ValueError(
            f"engine is {engine!r}: it must be {' or '.join(map(repr, _ENGINES))}, or a function of a job and numbers."
        )
    return functools.partial(_ENGINES[engine], processes=processes)


# ---------------------------------------------------------------- processes
def _run_locally(job: Job, numbers: Sequence[int], *, processes: int | None) -> Generator[int, None, None]:
    processes = min(processes or len(os.sched_getaffinity(0)), len(numbers))
    if processes > 1:
        yield from _run_in_helpers(job, numbers, processes)
        return
    for number in numbers:
        job.write_part(number)
        yield number


def _run_in_helpers(job: Job, numbers: Sequence[int], processes: int) -> Generator[int, None, None]:
    """Gives out few parts at a time, each with its own of the job: all of them may be many."""
    waiting = iter(numbers)
    running: dict[Future[None], int] = {}
    with Helpers(processes) as helpers:
        while True:
            for number in itertools.islice(waiting, 2 * processes - len(running)):
                running[helpers.submit(_write_part, job.of_part(number), number)] = number
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                future.result()
                yield running.pop(future)


def _write_part(job: Job, number: int) -> None:
    job.write_part(number)


# ---------------------------------------------------------------- Ray
def _run_on_ray(job: Job, numbers: Sequence[int], *, processes: int | None) -> Generator[int, None, None]:
    """Ray Data, an actor a process, a block a part. The cluster that there is, or else one of this machine alone, which
    ends with the run."""
    try:
        import ray
        import ray.data
    except ModuleNotFoundError:
        raise ModuleNotFoundError('engine="ray" needs the package ray: pip install "stoker[ray]".') from None
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init()
    try:
        parts = ray.data.from_items([{"part": number} for number in numbers], override_num_blocks=len(numbers))
        written = parts.map_batches(
            _RayWriter,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=processes or len(numbers)),
            fn_constructor_args=(job,),
        )
        written.context.enable_progress_bars = False  # there is one of ours
        for row in written.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            yield int(row["part"])
    finally:
        if is_ours:
            ray.shutdown()


class _RayWriter:
    """An actor. Errors are results, so that nobody repeats what fails again, or wraps them."""

    def __init__(self, job: Job) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._job = job

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        (number,) = batch["part"]
        error = b""
        try:
            self._job.write_part(int(number))
        except (OSError, ValueError, ModuleNotFoundError) as what:
            error = pickle.dumps(what)
        return {"part": [number], "error": [error]}


_ENGINES = {"local": _run_locally, "ray": _run_on_ray}
