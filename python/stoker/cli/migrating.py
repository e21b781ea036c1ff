"""stoker migrate"""

from __future__ import annotations

import argparse

from stoker.foundry.migration import LoaderReport, migrate


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "migrate",
        help="check a YAML of LLM Foundry",
        description="Tells what becomes of every key of the loaders in a YAML of LLM Foundry, and which "
        "stoker.DataLoader they are. Exits with 1 where a loader can't be built, or a key is unknown or not supported.",
    )
    parser.add_argument("config", metavar="YAML", help="of a training run")
    parser.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="as on LLM Foundry's command line")
    parser.add_argument("--world-size", type=int, default=1, metavar="N", help="ranks (default: %(default)s)")
    parser.set_defaults(run=_migrate)


def _migrate(arguments: argparse.Namespace) -> int:
    reports = migrate(arguments.config, arguments.overrides, world_size=arguments.world_size)
    for report in reports:
        _show(report)
    return int(not all(report.is_supported for report in reports))


def _show(report: LoaderReport) -> None:
    print(f"{report.place}: {report.error or 'can be built'}")
    width = max((len(key.name) for key in report.keys), default=0)
    for key in report.keys:
        print(f"  {key.name:<{width}}  {key.status}{f': {key.note}' if key.note else ''}")
    if report.call is not None:
        print(f"\n{report.call}\n")
