"""stoker fetch"""

from __future__ import annotations

import argparse

from stoker.cli.progress import progress_bar
from stoker.cli.stores import add_anonymous, storage_options
from stoker.fetching import fetch
from stoker.stream import Stream


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "fetch",
        help="copy a remote data set ahead of a job",
        description="Fetches the index and all shards of a remote data set into a local directory, as far as they are "
        "not there, and checks them. A job whose streams have this directory as `local` finds them there.",
    )
    parser.add_argument("remotes", nargs="+", metavar="URL", help="directories with index.json")
    parser.add_argument("--local", metavar="DIR", help="where it goes, of one URL (default: as a loader has it)")
    parser.add_argument("--split", metavar="S", help="a sub-directory of both")
    add_anonymous(parser)
    parser.add_argument("--retry", type=int, default=5, metavar="N", help="of a request (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=60, metavar="S", help="of a request (default: %(default)s)")
    parser.add_argument(
        "--downloads", type=int, default=16, metavar="N", help="requests at once (default: %(default)s)"
    )
    parser.set_defaults(run=_fetch)


def _fetch(arguments: argparse.Namespace) -> None:
    if arguments.local and len(arguments.remotes) > 1:
        raise ValueError("--local is for one URL: fetch the others by themselves.")
    streams = [
        Stream(
            remote=remote,
            local=arguments.local,
            split=arguments.split,
            storage_options=storage_options(arguments),
            download_retry=arguments.retry,
            download_timeout=arguments.timeout,
        )
        for remote in arguments.remotes
    ]
    with progress_bar() as bar:
        done = fetch(streams, num_downloads=arguments.downloads, progress=None if bar is None else bar.advance)
    for remote, found in zip(arguments.remotes, done, strict=True):
        print(
            f"{remote}: {found.shards:,} shards in {found.directory}, {found.fetched:,} of them fetched now "
            f"({found.downloaded_bytes:,} bytes, {found.retries} requests made again)"
        )
