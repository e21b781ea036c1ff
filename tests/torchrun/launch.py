"""Runs scripts under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


def torchrun(num_ranks: int, script: Path, *arguments: str, fails: bool = False) -> str:
    """Runs a script on so many ranks. Returns what it wrote to stderr."""
    launcher = "import sys; from torch.distributed.run import main; main()"
    command = [sys.executable, "-c", launcher, "--standalone", f"--nproc-per-node={num_ranks}", str(script)]
    done = subprocess.run(
        [*command, *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode != 0) == fails, done.stderr[-4000:]
    return done.stderr
