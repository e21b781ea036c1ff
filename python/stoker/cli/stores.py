"""What commands that read remote data sets have in common."""

from __future__ import annotations

import argparse
from typing import Any


def add_anonymous(parser: argparse.ArgumentParser) -> None:
    """Adds --anonymous."""
    parser.add_argument("--anonymous", action="store_true", help="read remotes without credentials")


def storage_options(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """What it stands for."""
    return {"anon": True} if arguments.anonymous else None
