"""Reads a remote stream, and compares every batch with the local stream's: for tests that kill it. Arguments: the URL,
the copy's directory, the local directory, and a file that is written at the end."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import stoker
from stoker import downloads

downloads.RANGE_BYTES = 1 << 16
url, copy, local, done = sys.argv[1:]
options = {"seq_len": 512, "batch_size": 8, "shuffle_block": 64, "num_workers": 1}
remote = stoker.Stream(remote=url, local=copy, name="web", download_retry=20)
with stoker.DataLoader(remote, num_downloads=4, **options) as ours:
    with stoker.DataLoader(stoker.Stream(local=local, name="web"), **options) as theirs:
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one["input_ids"].numpy(), other["input_ids"].numpy())
        stats = ours.stats()["streams"]["web"]
Path(done).write_text(f"{stats['fetched_shards']} {stats['cache_hits']}")
