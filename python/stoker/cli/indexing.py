"""stoker index"""

from __future__ import annotations

import argparse

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
    parser.add_argument("directories", nargs="+", metavar="DIR", help="a directory with index.json")
    parser.add_argument(
        "--bytes-dtype", default="int64", help="integer type of `bytes` token columns (default: %(default)s)"
    )
    parser.add_argument("--labels-dtype", help="the same of `bytes` labels (default: as --bytes-dtype)")
    parser.set_defaults(run=_index)


def _index(arguments: argparse.Namespace) -> None:
    for directory in arguments.directories:
        totals = count_tokens(directory, bytes_dtype=arguments.bytes_dtype, labels_dtype=arguments.labels_dtype)
        print(f"{directory}: {sum(totals.tokens):,} tokens in {len(totals.tokens):,} shards")
