"""stoker inspect"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from stoker.inspection import Inspection, inspect
from stoker.preparation.tokenizer import TextTokenizer

_MOST_SHOWN = 500  # characters of a sample without tokens


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "inspect",
        help="show what a directory of shards holds",
        description="Shows counts, lengths, columns, compression, tokenizer and the first samples of a directory of "
        "shards, and compares its files with the hashes in its index.",
    )
    parser.add_argument("directory", metavar="DIR", help="a directory with index.json")
    parser.add_argument("--tokenizer", metavar="T", help="decode the first samples with it")
    parser.add_argument("--samples", type=int, default=3, metavar="N", help="how many of them (default: %(default)s)")
    parser.add_argument("--no-hashes", action="store_true", help="read no more than heads and first samples")
    parser.add_argument("--bytes-dtype", default="int64", help="of `bytes` columns (default: %(default)s)")
    parser.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> None:
    tokenizer = TextTokenizer(arguments.tokenizer) if arguments.tokenizer else None
    found = inspect(
        arguments.directory,
        bytes_dtype=arguments.bytes_dtype,
        examples=arguments.samples,
        check_hashes=not arguments.no_hashes,
    )
    if tokenizer and found.tokenizer and tokenizer.sha256 != found.tokenizer.sha256:
        raise ValueError(f"{arguments.directory} was made with another tokenizer than {arguments.tokenizer}.")
    print(f"{arguments.directory}: {found.kind or 'no tokens'}")
    print(f"  samples      {found.samples:,} in {found.shards:,} shards")
    _show_tokens(found)
    print(f"  columns      {', '.join(f'{name} {encoding}' for name, encoding in found.columns.items())}")
    print(f"  files        {found.file_bytes:,} bytes, {found.raw_bytes:,} uncompressed ({found.compression or 'raw'})")
    print(
        f"  hashes       {f'{found.num_hashed:,} files are what the index says' if found.num_hashed else 'not checked'}"
    )
    if found.tokenizer:
        print(f"  tokenizer    vocabulary of {found.tokenizer.vocab_size:,}, sha256 {found.tokenizer.sha256[:16]}")
    if found.histogram:
        print()
        most = max(count for *_, count in found.histogram)
    for begin, end, count in found.histogram:
        print(f"  {begin:>9,} to {end:>9,}  {'#' * round(40 * count / most):<40} {count:,}")
    for number, sample in enumerate(found.examples):
        if tokenizer and found.tokenizer and "turns" in sample:
            turns = [{name: tokenizer.decode(ids) for name, ids in turn.items()} for turn in sample["turns"]]
            sample = {**sample, "turns": turns}
        shown = _in_words(sample, tokenizer) if found.kind else _as_json(sample)
        print(f"\nsample {number}{shown}")


def _show_tokens(found: Inspection) -> None:
    if found.tokens is None or found.lengths is None:
        return
    shortest, median, mean, longest = found.lengths
    loss = "" if found.loss_tokens is None else f", {found.loss_tokens / max(found.tokens, 1):.1%} with loss"
    print(f"  tokens       {found.tokens:,}{loss}")
    print(f"  a sample     {shortest:,} to {longest:,} tokens, median {median:,.0f}, mean {mean:,.1f}")


def _in_words(sample: dict[str, Any], tokenizer: TextTokenizer | None) -> str:
    tokens = sample["tokens"].tolist()
    most = 200 if tokenizer else 20
    shown = repr(tokenizer.decode(tokens[:most])) if tokenizer else str(tokens[:most])
    return f", {len(tokens):,} tokens: {shown}{' ...' if len(tokens) > most else ''}"


def _as_json(sample: dict[str, Any]) -> str:
    def plain(value: Any) -> Any:
        return value.tolist() if isinstance(value, np.ndarray) else repr(value)

    text = json.dumps(sample, ensure_ascii=False, default=plain)
    return f": {text[:_MOST_SHOWN]}{' ...' if len(text) > _MOST_SHOWN else ''}"
