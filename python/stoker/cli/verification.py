"""stoker verify"""

from __future__ import annotations

import argparse

from stoker.cli.progress import progress_bar
from stoker.cli.stores import add_anonymous, storage_options
from stoker.verification import verify


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "verify",
        help="check whether shards are what their index says",
        description="Reads all shards of data sets: compares sizes and hashes, decompresses them, reads every sample "
        "and counts tokens. The exit status is 1 if something is wrong.",
    )
    parser.add_argument("places", nargs="+", metavar="DIR|URL", help="directories with index.json, local or remote")
    add_anonymous(parser)
    parser.set_defaults(run=_verify)


def _verify(arguments: argparse.Namespace) -> int:
    is_right = True
    for place in arguments.places:
        with progress_bar() as bar:
            advance = None if bar is None else bar.advance
            found = verify(place, storage_options=storage_options(arguments), progress=advance)
        for problem in found.problems:
            print(problem)
        is_right = is_right and not found.problems
        absent = f", {found.absent:,} shards are not there yet" if found.absent else ""
        print(
            f"{place}: {'all is right' if not found.problems else f'{len(found.problems)} problems'}: {found.shards:,} "
            f"shards, {found.samples:,} samples, {found.file_bytes:,} bytes, {found.hashes:,} hashes{absent}"
        )
    return 0 if is_right else 1
