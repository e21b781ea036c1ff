"""stoker index"""

from __future__ import annotations

import argparse

from stoker.cli.stores import add_anonymous, storage_options
from stoker.totals import count_tokens


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "index",
        help="count the tokens of shards whose index does not tell",
        description="Counts tokens from the heads of shards, and loss tokens from their labels if they have any, and "
        "writes them to stoker.json beside index.json, so that layouts concat and pack can tell how long an epoch is. "
        "To be run once a data set.",
    )
    parser.add_argument("places", nargs="+", metavar="DIR|URL", help="a directory with index.json, local or remote")
    parser.add_argument("--out", metavar="DIR", help="write stoker.json there (default: beside index.json)")
    parser.add_argument(
        "--bytes-dtype", default="int64", help="integer type of `bytes` token columns (default: %(default)s)"
    )
    parser.add_argument("--labels-dtype", help="the same of `bytes` labels (default: as --bytes-dtype)")
    add_anonymous(parser)
    parser.set_defaults(run=_index)


def _index(arguments: argparse.Namespace) -> None:
    if arguments.out and len(arguments.places) > 1:
        raise ValueError("--out is for one data set: index the others by themselves.")
    for place in arguments.places:
        totals = count_tokens(
            place,
            bytes_dtype=arguments.bytes_dtype,
            labels_dtype=arguments.labels_dtype,
            storage_options=storage_options(arguments),
            out=arguments.out,
        )
        print(f"{place}: {sum(totals.tokens):,} tokens in {len(totals.tokens):,} shards")
