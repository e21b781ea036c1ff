"""A bar on stderr, where somebody looks at it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any


class Bar:
    """How many bytes are done, how fast, how long it still takes, and what else there is to tell."""

    def __init__(self, bar: Any, task: Any) -> None:
        self._bar, self._task = bar, task

    def advance(self, num_bytes: int, total_bytes: int, more: Mapping[str, str] | None = None) -> None:
        """So many bytes more are done, of all."""
        told = "  ".join(f"{value} {name}" for name, value in (more or {}).items())
        self._bar.update(self._task, total=total_bytes, advance=num_bytes, told=told)


@contextlib.contextmanager
def progress_bar() -> Iterator[Bar | None]:
    """Nothing where nobody looks, or rich is not installed."""
    try:
        from rich import progress as rich
        from rich.console import Console
    except ModuleNotFoundError:
        yield None
        return
    columns = (
        rich.BarColumn(),
        rich.DownloadColumn(),
        rich.TransferSpeedColumn(),
        rich.TextColumn("{task.fields[told]}"),
        rich.TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with rich.Progress(*columns, disable=not console.is_terminal, console=console) as bar:
        yield Bar(bar, bar.add_task("", total=None, told=""))
