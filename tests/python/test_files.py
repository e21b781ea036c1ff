"""Files that are whole or not there."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

import stoker
from stoker.files import write_atomically


def test_a_file_is_whole_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    sizes = []
    replace = os.replace

    def watched(source: str, target: str) -> None:
        sizes.append(os.path.getsize(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    write_atomically(str(path), b"abc")
    assert (sizes, path.read_bytes()) == ([3], b"abc")
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_write_that_fails_leaves_nothing_and_may_be_tried_again(tmp_path: Path) -> None:
    writer = stoker.MDSWriter(columns={"tokens": "ndarray:uint8"}, out=tmp_path, size_limit=100)
    for _ in range(20):
        writer.write({"tokens": np.ones(60, np.uint8)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(OSError, match="File too large"):
            writer.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert {p.suffix for p in tmp_path.iterdir()} == {".mds"}
    writer.finish()
    with stoker.DataLoader(stoker.Stream(local=tmp_path, name="x"), seq_len=60, batch_size=20) as loader:
        assert next(iter(loader))["input_ids"].sum() == 1200
