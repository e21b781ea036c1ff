"""The command `stoker`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from stoker.totals import count_tokens


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; errors are sentences on stderr.

    Args:
        argv: Arguments without the program's name. Default: of this process.

    Returns:
        The exit status: 0, or 1 after an error.
    """
    parser = argparse.ArgumentParser(prog="stoker", description="Feeds language-model training from MDS token shards.")
    commands = parser.add_subparsers(dest="command", required=True)
    index = commands.add_parser(
        "index",
        help="count the tokens of shards whose index does not tell",
        description="Counts tokens from the heads of shards, and loss tokens from their labels if they have any, and "
        "writes them to stoker.json beside index.json, so that layouts concat and pack can tell how long an epoch is. "
        "To be run once a data set.",
    )
    index.add_argument("directories", nargs="+", metavar="DIR", help="a directory with index.json")
    index.add_argument(
        "--bytes-dtype", default="int64", help="integer type of `bytes` token columns (default: %(default)s)"
    )
    index.add_argument("--labels-dtype", help="the same of `bytes` labels (default: as --bytes-dtype)")
    arguments = parser.parse_args(argv)
    try:
        for directory in arguments.directories:
            totals = count_tokens(directory, bytes_dtype=arguments.bytes_dtype, labels_dtype=arguments.labels_dtype)
            print(f"{directory}: {sum(totals.tokens):,} tokens in {len(totals.tokens):,} shards")
    except (OSError, ValueError) as error:
        print(f"stoker: {error}", file=sys.stderr)
        return 1
    return 0
