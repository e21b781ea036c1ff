"""The whole of a preparation, made of its parts: mixed, cut into rows, or as they are."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stoker.index import INDEX_FILE
from stoker.preparation.concatenation import concatenate, documents_of
from stoker.preparation.destination import Destination, Joining, join_locally
from stoker.preparation.job import Job
from stoker.preparation.mixing import mix_sources
from stoker.preparation.part_writer import Counts
from stoker.preparation.rules import Rules
from stoker.writer import MDSWriter


class Assembly:
    """Makes the whole of all parts. May be interrupted anywhere, and done again, also with another mix of the same
    sources."""

    def __init__(self, job: Job, plan: Mapping[str, Any], destination: Destination) -> None:
        """
        Args:
            job: Its parts are what there is.
            plan: Has the number of parts of each source, and the tokenizer. It is kept in the index.
            destination: Where the whole goes.
        """
        self._job = job
        self._plan = plan
        self._joining = Joining(destination, plan["tokenizer"])
        self._is_eager = destination.is_eager and not job.rules.is_read_again
        self._num_joined = 0

    def advance(self) -> None:
        """Some part has been written: where the destination takes shards early, it gets those before which nothing is
        missing."""
        while (
            self._is_eager
            and self._num_joined < len(self._job.parts)
            and self._job.find_counts(self._num_joined) is not None
        ):
            self._joining.add(self._job.part_directory(self._num_joined))
            self._num_joined += 1

    def finish(self, counts: Counts) -> Counts:
        """All parts are done. Corrects their counts."""
        job, rules = self._job, self._job.rules
        directories = [job.part_directory(number) for number in range(self._num_joined, len(job.parts))]
        mix = hashlib.sha256(repr((rules.mix, rules.mix_tokens, rules.seed)).encode()).hexdigest()[:16]
        if rules.mix:
            directories = [_mix(job, job.directory / f"mixed.{mix}", self._plan, counts)]
        if rules.concat:
            vocab_size = self._plan["tokenizer"]["vocab_size"]
            directories = [_concatenate(rules, directories, job.directory / f"rows.{mix}", vocab_size, counts)]
        if not counts.samples:
            raise ValueError(f"concat is {rules.concat}, and all documents have fewer tokens together: take fewer.")
        for directory in directories:
            self._joining.add(directory)
        self._joining.finish(prepared={"plan": self._plan, "counts": asdict(counts)})
        return counts


def _mix(job: Job, directory: Path, plan: Mapping[str, Any], counts: Counts) -> Path:
    """Joins the parts of each source, and writes the mixture into a directory. Corrects the counts."""
    numbers = iter(range(len(job.parts)))
    sources: dict[str, Path] = {}
    tokens: dict[str, int] = {}
    for name, num_of_source in plan["sources"].items():
        of_source = list(itertools.islice(numbers, num_of_source))
        sources[name] = job.directory / f"source.{len(sources)}"
        sources[name].mkdir(exist_ok=True)
        tokens[name] = sum(job.counts_of(number).tokens for number in of_source)
        join_locally(sources[name], [job.part_directory(number) for number in of_source], plan["tokenizer"])
    mixed = mix_sources(directory, sources, tokens, job.rules, plan["tokenizer"]["vocab_size"])
    counts.samples, counts.tokens, counts.loss_tokens = mixed.samples, mixed.tokens, mixed.loss_tokens
    counts.mixed = mixed.mixed
    return directory


def _concatenate(rules: Rules, documents: Sequence[Path], directory: Path, vocab_size: int, counts: Counts) -> Path:
    """Writes the rows of all documents into a directory, unless they are there. Corrects the counts."""
    assert rules.concat is not None
    if not (directory / INDEX_FILE).is_file():
        columns = rules.columns_of(vocab_size)
        with MDSWriter(
            columns=columns, out=directory, compression=rules.compression, hashes=["sha256"], exist_ok=True
        ) as out:
            for row in concatenate(documents_of(documents), rules.concat, wrap=rules.wrap):
                out.write({"tokens": row})
    counts.samples = sum(entry["samples"] for entry in json.loads((directory / INDEX_FILE).read_text())["shards"])
    counts.tokens = counts.loss_tokens = counts.samples * rules.concat
    return directory
