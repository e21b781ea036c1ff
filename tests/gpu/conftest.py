from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "python"))  # mds


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if HERE in item.path.resolve().parents:
                item.add_marker(pytest.mark.skip(reason="torch finds no GPU here: the handoff was not run on one"))
