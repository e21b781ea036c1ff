"""The command `stoker`. Each of its commands is a module here, which adds its arguments and runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from stoker.cli import fetching, indexing, inspection, merging, migrating, preparing, verification


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; errors are sentences on stderr.

    Args:
        argv: Arguments without the program's name. Default: of this process.

    Returns:
        The exit status: 0; 1 after an error, or where `verify` has found one, or `migrate` what it can not do; 130
        after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="stoker", description="Feeds language-model training from MDS token shards.")
    commands = parser.add_subparsers(dest="command", required=True)
    for module in (preparing, inspection, merging, indexing, fetching, verification, migrating):
        module.add(commands)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments) or 0)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"stoker: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stoker: {arguments.command} was interrupted: give the same command again.", file=sys.stderr)
        return 130
