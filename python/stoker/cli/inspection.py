"""stoker inspect"""

from __future__ import annotations

import argparse

from stoker.inspection import inspect
from stoker.preparation.tokenizer import TextTokenizer


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "inspect",
        help="show what a directory of shards holds",
        description="Shows counts, lengths, columns, compression, tokenizer and the first samples of a directory of "
        "token shards, and compares its files with the hashes in its index.",
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
    shortest, median, mean, longest = found.lengths
    loss = "" if found.loss_tokens is None else f", {found.loss_tokens / found.tokens:.1%} with loss"
    print(f"{arguments.directory}: {found.kind}")
    print(f"  samples      {found.samples:,} in {found.shards:,} shards")
    print(f"  tokens       {found.tokens:,}{loss}")
    print(f"  a sample     {shortest:,} to {longest:,} tokens, median {median:,.0f}, mean {mean:,.1f}")
    print(f"  columns      {', '.join(f'{name} {encoding}' for name, encoding in found.columns.items())}")
    print(f"  files        {found.file_bytes:,} bytes, {found.raw_bytes:,} uncompressed ({found.compression or 'raw'})")
    print(
        f"  hashes       {f'{found.num_hashed:,} files are what the index says' if found.num_hashed else 'not checked'}"
    )
    if found.tokenizer:
        print(f"  tokenizer    vocabulary of {found.tokenizer.vocab_size:,}, sha256 {found.tokenizer.sha256[:16]}")
    print()
    most = max(count for *_, count in found.histogram)
    for begin, end, count in found.histogram:
        print(f"  {begin:>9,} to {end:>9,}  {'#' * round(40 * count / most):<40} {count:,}")
    for number, sample in enumerate(found.examples):
        tokens = sample["tokens"].tolist()
        most_shown = 200 if tokenizer else 20
        shown = repr(tokenizer.decode(tokens[:most_shown])) if tokenizer else str(tokens[:most_shown])
        more = " ..." if len(tokens) > most_shown else ""
        print(f"\nsample {number}, {len(tokens):,} tokens: {shown}{more}")
