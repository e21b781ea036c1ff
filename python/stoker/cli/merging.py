"""stoker merge"""

from __future__ import annotations

import argparse

from stoker.merging import merge


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "merge",
        help="join the data sets below a directory",
        description="Writes an index.json of all shards in the directories below DIR, in the order of their names. No "
        "shard is read or moved.",
    )
    parser.add_argument("directory", metavar="DIR", help="holds directories with index.json")
    parser.add_argument("--overwrite", action="store_true", help="replace the index that DIR has")
    parser.set_defaults(run=_merge)


def _merge(arguments: argparse.Namespace) -> None:
    print(f"{arguments.directory}: {merge(arguments.directory, overwrite=arguments.overwrite):,} shards")
