from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from texts import write_tokenizer

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS / "model"))  # the reference model's modules: order, layout

settings.register_profile(
    "stoker",
    max_examples=60,
    deadline=None,
    derandomize=True,  # what gates a change is the same on every run
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.register_profile(  # fresh examples on every run
    "thorough", parent=settings.get_profile("stoker"), max_examples=400, derandomize=False
)
settings.load_profile(os.environ.get("STOKER_HYPOTHESIS", "stoker"))


@pytest.fixture(autouse=True)
def _own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes into the user's cache, or takes a launcher's rank for its own."""
    monkeypatch.setenv("STOKER_CACHE", str(tmp_path / "cache"))
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Recorded outputs of MosaicML Streaming."""
    return TESTS / "golden"


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small tokenizer (see texts.py)."""
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder
