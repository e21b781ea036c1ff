"""Sources mixed into one data set, by shares of its tokens, in the order in which a loader gives them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import numpy as np

from stoker.files import write_atomically
from stoker.loader import DataLoader, Segment
from stoker.preparation.job import read_counts
from stoker.preparation.part_writer import COUNTS_FILE, Counts
from stoker.preparation.rules import Rules
from stoker.preparation.sources.huggingface import NAMED
from stoker.stream import Stream
from stoker.writer import MDSWriter

_MOST_TOKENS = (1 << 24) - 1  # that a loader sees of a sample: a longer one counts as so many
_ROWS = 4096  # whose order is asked for at once


# ---------------------------------------------------------------- what to mix
def name_sources(
    sources: Sequence[str | os.PathLike[str]], mix: Mapping[str, float]
) -> dict[str, list[str | os.PathLike[str]]]:
    """The paths of each source, in the order of the names. NAME=PATH names one, if `mix` has that name; else a source
    has the last part of its path as its name, of a file without suffixes.

    Raises:
        ValueError: A share has no source, a source no share, or a share is not above 0.
    """
    for name, share in mix.items():
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < math.inf:
            raise ValueError(f"mix gives {name!r} the share {share!r}: it must be a number above 0.")
    named: dict[str, list[str | os.PathLike[str]]] = {}
    for source in sources:
        name, separator, path = os.fspath(source).partition("=")
        if separator and name in mix:
            named.setdefault(name, []).append(path)
        else:
            named.setdefault(_name_of(os.fspath(source)), []).append(source)
    if set(named) != set(mix):
        raise ValueError(
            f"mix has shares of {_listed(mix)}, but the sources are named {_listed(named)}: give each source a share, "
            "and each share a source, which NAME=PATH names."
        )
    return {name: named[name] for name in sorted(named)}


def _name_of(source: str) -> str:
    path = Path(source)
    has_suffixes = not path.is_dir() and not source.startswith(NAMED)
    return path.name.removesuffix("".join(path.suffixes)) if has_suffixes else path.name


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(map(repr, sorted(names))) or "nothing"


def find_targets(shares: Mapping[str, float], tokens: Mapping[str, int], most: int | None) -> dict[str, Fraction]:
    """Tokens that each source gives: its share of as many as all of them can pay for, or of `most`.

    Args:
        shares: Of each source, relative to each other.
        tokens: That each source has.
        most: Tokens of the mixture; None: as many as there can be.

    Raises:
        ValueError: A source has no token, or `most` is more than there can be.
    """
    parts_of_all = {name: Fraction(share) / sum(map(Fraction, shares.values())) for name, share in shares.items()}
    scarce = min(shares, key=lambda name: tokens[name] / parts_of_all[name])
    if not tokens[scarce]:
        raise ValueError(f"source {scarce!r} has no token: leave it out of the mix.")
    possible = tokens[scarce] / parts_of_all[scarce]
    if most is not None and most > possible:
        raise ValueError(
            f"mix_tokens is {most:,}, but {int(possible):,} are the most: {scarce!r} has {tokens[scarce]:,} tokens, "
            f"and its share is {float(parts_of_all[scarce]):.4g}."
        )
    return {name: part * (possible if most is None else most) for name, part in parts_of_all.items()}


# ---------------------------------------------------------------- mixing
def mix_sources(
    directory: Path, sources: Mapping[str, Path], tokens: Mapping[str, int], rules: Rules, vocab_size: int
) -> Counts:
    """Writes a data set of samples of others, unless it is there. It has the order of an epoch of a loader with layout
    `pad`: of each source the first samples, as many as have its tokens to within half a sample, one at least.

    Args:
        directory: Where it is written.
        sources: Directories of token shards, uncompressed.
        tokens: That each of them has.
        rules: The mix, and how shards are written.
        vocab_size: All ids are below it.

    Returns:
        What was written: samples, tokens and loss tokens, and those of each source.

    Raises:
        ValueError: See `find_targets`.
        OSError: Something can't be read or written.
    """
    if (done := read_counts(directory)) is not None:
        return done
    targets = find_targets(dict(rules.mix), tokens, rules.mix_tokens)
    streams = [
        Stream(local=path, name=name, choose=_count_samples(Stream(local=path, name=name), targets[name], rules.seed))
        for name, path in sources.items()
    ]
    counts = Counts(mixed={name: [0, 0] for name in sources})
    columns = rules.columns_of(vocab_size)
    with (
        _open(streams, rules.seed) as loader,
        MDSWriter(
            columns=columns,
            out=directory,
            compression=None if rules.concat else rules.compression,
            hashes=None if rules.concat else ["sha256"],
            exist_ok=True,
        ) as out,
    ):
        for segment in _order(loader):
            sample = loader.dataset.read(segment.stream, segment.shard, segment.sample)
            ids, labels = sample["tokens"], sample.get("labels")
            out.write({"tokens": ids} if labels is None else {"input_ids": ids, "labels": labels})
            counts.samples += 1
            counts.tokens += len(ids)
            counts.loss_tokens += len(ids) if labels is None else int(np.count_nonzero(labels != -100))
            of_source = counts.mixed[segment.stream]
            of_source[0] += 1
            of_source[1] += len(ids)
        write_atomically(str(directory / COUNTS_FILE), json.dumps(asdict(counts)).encode())
    return counts


def _open(streams: Sequence[Stream], seed: int) -> DataLoader:
    """Only its order is used, and its shards."""
    return DataLoader(
        streams, seq_len=_MOST_TOKENS, batch_size=_ROWS, layout="pad", drop_last=False, seed=seed, rank=0, world_size=1
    )


def _order(loader: DataLoader) -> Iterator[Segment]:
    """The samples of its first epoch, a segment each."""
    for batch in range(len(loader)):
        for row in loader.order(batch):
            yield from row


def _count_samples(stream: Stream, target: Fraction, seed: int) -> int:
    """How many of the first samples of a stream have nearest to `target` tokens; one at least."""
    num_samples = num_tokens = 0
    with _open([stream], seed) as loader:
        for segment in _order(loader):
            if num_samples and num_tokens + segment.token_end - target > target - num_tokens:
                break
            num_samples += 1
            num_tokens += segment.token_end
    return num_samples
