"""The whole of a preparation, made of its parts: mixed, cut into rows, or as they are."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stoker.files import write_atomically
from stoker.preparation.concatenation import concatenate, documents_of
from stoker.preparation.job import INDEX, Job
from stoker.preparation.mixing import mix_sources
from stoker.preparation.part_writer import Counts
from stoker.preparation.rules import Rules
from stoker.writer import MDSWriter


def assemble(job: Job, counts: Counts, plan: Mapping[str, Any]) -> Counts:
    """Makes the whole of all parts. May be interrupted anywhere, and called again, also with another mix of the same
    sources. Corrects the counts.

    Args:
        job: Its parts are done.
        counts: Of all parts.
        plan: Has the number of parts of each source, and the tokenizer. It is kept in the index.
    """
    rules = job.rules
    directories = [job.part_directory(number) for number in range(len(job.parts))]
    mix = hashlib.sha256(repr((rules.mix, rules.mix_tokens, rules.seed)).encode()).hexdigest()[:16]
    if rules.mix:
        directories = [_mix(job, job.directory / f"mixed.{mix}", plan, counts)]
    if rules.concat:
        vocab_size = plan["tokenizer"]["vocab_size"]
        directories = [_concatenate(rules, directories, job.directory / f"rows.{mix}", vocab_size, counts)]
    out = job.directory.parent
    _join(out, directories, plan["tokenizer"], prepared={"plan": plan, "counts": asdict(counts)})
    shutil.rmtree(job.directory, ignore_errors=True)  # somebody may still write there what is not needed any more
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
        _join(sources[name], [job.part_directory(number) for number in of_source], plan["tokenizer"])
    mixed = mix_sources(directory, sources, tokens, job.rules, plan["tokenizer"]["vocab_size"])
    counts.samples, counts.tokens, counts.loss_tokens = mixed.samples, mixed.tokens, mixed.loss_tokens
    counts.mixed = mixed.mixed
    return directory


def _concatenate(rules: Rules, documents: Sequence[Path], directory: Path, vocab_size: int, counts: Counts) -> Path:
    """Writes the rows of all documents into a directory, unless they are there. Corrects the counts."""
    assert rules.concat is not None
    if not (directory / INDEX).is_file():
        columns = rules.columns_of(vocab_size)
        with MDSWriter(
            columns=columns, out=directory, compression=rules.compression, hashes=["sha256"], exist_ok=True
        ) as out:
            for row in concatenate(documents_of(documents), rules.concat, wrap=rules.wrap):
                out.write({"tokens": row})
    counts.samples = sum(entry["samples"] for entry in json.loads((directory / INDEX).read_text())["shards"])
    counts.tokens = counts.loss_tokens = counts.samples * rules.concat
    return directory


def _join(directory: Path, parts: Sequence[Path], tokenizer: Mapping[str, Any], **more: Any) -> None:
    """Moves the shards of some directories to one, under consecutive names, then writes its index. May be interrupted
    anywhere, and called again.

    Args:
        directory: Where they go.
        parts: Where they are, in order.
        tokenizer: For the index.
        **more: The same.
    """
    entries: list[dict[str, Any]] = []
    totals: dict[str, list[int]] = {"tokens": [], "loss_tokens": [], "longest_sample": []}
    rest: dict[str, Any] = {}
    for part in parts:
        index = json.loads((part / INDEX).read_text())
        for entry in index["shards"]:
            for data in (entry["raw_data"], entry["zip_data"]):
                if data is None:
                    continue
                was, suffix = data["basename"], data["basename"].split(".mds")[1]
                data["basename"] = f"shard.{len(entries):05}.mds{suffix}"
                if (part / was).exists():
                    os.replace(part / was, directory / data["basename"])
            entries.append(entry)
        if rest := index.get("stoker", {}):  # shards of turns have no tokens yet
            for name, of_all in totals.items():
                of_all += rest[name]
    known = {"stoker": {**rest, **totals, "tokenizer": tokenizer}} if rest else {}
    index = {"shards": entries, "version": 2, **known, **more}
    write_atomically(str(directory / INDEX), json.dumps(index, sort_keys=True).encode())
