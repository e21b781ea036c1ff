"""A preparation as work: parts of raw data, each of which any process of any machine can write."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from stoker.index import INDEX_FILE
from stoker.preparation.part_writer import COUNTS_FILE, Counts, PartWriter, find_writer
from stoker.preparation.rules import Rules
from stoker.preparation.sources import Part

_MOST_ATTEMPTS = 3  # at a part, in one run, whose processes died: then it is the part's fault
_VISIBLE_S = 60.0  # NFS looks anew after this long at the latest (acdirmax)


@dataclass(frozen=True)
class Job:
    """Parts, and the rules by which shards are made of them.

    It can be pickled, and may work anywhere where its paths mean the same. A part is written beside its place and
    renamed when it is whole: two processes may write the same one at the same time, and the first to end is heeded.

    Attributes:
        rules: How rows become samples.
        parts: What there is to write, by number.
        directory: Holds a directory for each part that is done; all who write must see it.
        tokenizer_digest: Of the tokenizer with which the preparation began.
        run: Tells the attempts of one run from those of others.
    """

    rules: Rules
    parts: Sequence[Part] | Mapping[int, Part]
    directory: Path
    tokenizer_digest: str
    run: str = field(default_factory=lambda: secrets.token_hex(4))

    def write_part(self, number: int) -> Counts:
        """Writes a part, unless it is there.

        Args:
            number: Zero-based, among `parts`.

        Returns:
            What became of its rows.

        Raises:
            BadRowError, BadExampleError: A row is bad, and the rules do not skip those. Both are ValueErrors.
            ValueError: The tokenizer is another one here.
            OSError: Something can't be read or written, or the processes that wrote this part in this run have died.
        """
        if (done := self.find_counts(number)) is not None:
            return done
        attempt = self._begin_attempt(number)
        try:
            counts = self._writer.write(self.parts[number], attempt)
            os.rename(attempt, self.part_directory(number))
        except OSError:
            if (done := self.find_counts(number)) is None:
                raise
            return done  # of another process
        finally:
            shutil.rmtree(attempt, ignore_errors=True)
        return counts

    def of_part(self, number: int) -> Job:
        """This job as far as one part needs it, which is quick to send."""
        return replace(self, parts={number: self.parts[number]})

    def _begin_attempt(self, number: int) -> Path:
        """Makes a directory to write a part into. An attempt that is killed leaves it."""
        for i in range(_MOST_ATTEMPTS):
            with contextlib.suppress(FileExistsError):
                attempt = self.directory / f"{number:06}.{self.run}.{i}"
                attempt.mkdir()
                return attempt
        raise OSError(
            f"part {number} was begun {_MOST_ATTEMPTS} times, and each time its process died, maybe for want of "
            "memory: run this again, with fewer processes. It goes on where it stands."
        )

    def part_directory(self, number: int) -> Path:
        """Where a part's shards are when it is done."""
        return self.directory / f"{number:06}"

    def find_counts(self, number: int) -> Counts | None:
        """What became of a part's rows; None where it is not done."""
        return read_counts(self.part_directory(number))

    def counts_of(self, number: int) -> Counts:
        """What became of the rows of a part that has been written, maybe on another machine: a network file system may
        show that late.

        Raises:
            OSError: It is not there.
        """
        end_s = time.monotonic() + _VISIBLE_S
        while (counts := self.find_counts(number)) is None:
            if time.monotonic() > end_s:
                raise OSError(
                    f"part {number} was written, but is not in {self.directory} on {platform.node()}: prepare into a "
                    "directory that all machines see, such as one of a network file system."
                )
            time.sleep(0.1)
            os.listdir(self.directory)  # which makes NFS look anew
        return counts

    @property
    def _writer(self) -> PartWriter:
        return find_writer(self.rules, self.tokenizer_digest)


def read_counts(directory: Path) -> Counts | None:
    """What became of the rows that shards were made of; None where they are not done."""
    if not (directory / INDEX_FILE).is_file():
        return None
    return Counts(**json.loads((directory / COUNTS_FILE).read_text()))
