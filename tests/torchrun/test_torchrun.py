"""Real runs under torchrun, with gloo: ranks that are killed and come back as fewer or more."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launch import torchrun

import stoker
from mds import write_dataset

WORKER = Path(__file__).with_name("worker.py")
FIELDS = ["input_ids", "labels", "position_ids", "sequence_id", "stream_ids"]
LENGTHS = [[9, 30, 4, 17, 2, 50, 21] * 4, [25, 3, 70] * 8, [1, 0, 33, 12] * 9]
GLOBAL_BATCH = 12


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("shards")
    return [
        str(write_dataset(root, "chat", LENGTHS, labels="int32", compression="zstd")),
        str(write_dataset(root, "web", LENGTHS)),
    ]


def arguments(streams: list[str], **changes: Any) -> dict[str, Any]:
    """Of a loader whose lanes are those of four ranks, however many it has."""
    return {
        "streams": streams,
        "seq_len": 32,
        "global_batch_size": GLOBAL_BATCH,
        "fields": FIELDS,
        "lanes": 4,
        "shuffle_block": 8,
        "seed": 11,
        **changes,
    }


def run(num_ranks: int, scenario: str, out: Path, *, fails: bool = False, **parameters: Any) -> str:
    out.mkdir(exist_ok=True)
    return torchrun(num_ranks, WORKER, scenario, json.dumps({"out": str(out), **parameters}), fails=fails)


def lines_of(out: Path, rank: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / f"rank{rank}.jsonl").read_text().splitlines()]


def global_batches(out: Path, ranks: range) -> list[tuple[int, int, dict[str, np.ndarray]]]:
    """Epoch, first row and fields of the global batches that the ranks received together, in order."""
    batches = []
    for lines in zip(*(lines_of(out, rank) for rank in ranks), strict=True):
        assert len({(line["row"], line["epoch"], line["world_size"]) for line in lines}) == 1
        assert sorted(line["rank"] for line in lines) == list(range(lines[0]["world_size"])) == list(ranks)
        fields = {
            name: np.stack([np.array(line["fields"][name]) for line in lines], 1).reshape(GLOBAL_BATCH, -1)
            for name in FIELDS
        }
        batches.append((lines[0]["epoch"], lines[0]["row"], fields))
    return batches


def expected(streams: list[str], num_batches: int, **changes: Any) -> list[tuple[int, int, dict[str, np.ndarray]]]:
    """The same from one process that was never interrupted."""
    given = arguments(streams, **changes)
    with stoker.DataLoader([stoker.Stream(local=s) for s in given.pop("streams")], **given) as loader:
        out: list[tuple[int, int, dict[str, np.ndarray]]] = []
        while len(out) < num_batches:
            for batch in loader:
                info = loader.batch_info
                out.append((info["epoch"], info["rows"][0], {name: np.asarray(batch[name]) for name in FIELDS}))
        return out[:num_batches]


def assert_same(got: list[Any], want: list[Any]) -> None:
    for (epoch, row, fields), (want_epoch, want_row, want_fields) in zip(got, want, strict=True):
        assert (epoch, row) == (want_epoch, want_row)
        for name in FIELDS:
            assert fields[name].tobytes() == want_fields[name].tobytes(), (row, name)


@pytest.mark.parametrize(
    "changes",
    [
        {"layout": "concat"},
        {"layout": "pad", "drop_last": False},
        {"layout": "pack", "pack_window": 10},
    ],
    ids=lambda changes: changes["layout"],
)
def test_four_ranks_are_killed_and_go_on_as_two_then_six(
    streams: list[str], tmp_path: Path, changes: dict[str, Any]
) -> None:
    loader = arguments(streams, **changes)
    common = {"loader": loader, "state": str(tmp_path / "state.json")}
    errors = run(4, "train", tmp_path / "4", fails=True, **common, steps=23, save_at=17, resume=False, kill=True)
    assert "SIGKILL" in errors or "Signal 9" in errors
    two = {k: v for k, v in loader.items() if k != "lanes"}  # they come with the state
    run(2, "train", tmp_path / "2", **{**common, "loader": two}, steps=15, save_at=9, resume=True, kill=False)
    run(6, "train", tmp_path / "6", **{**common, "loader": two}, steps=8, save_at=0, resume=True, kill=False)
    want = expected(streams, 17 + 15, **changes)
    assert_same(global_batches(tmp_path / "4", range(4)), want[:23])
    assert_same(global_batches(tmp_path / "2", range(2)), want[17:])
    assert_same(global_batches(tmp_path / "6", range(6)), expected(streams, 17 + 9 + 8, **changes)[26:])


def test_a_state_of_rank_0_alone_is_enough(streams: list[str], tmp_path: Path) -> None:
    loader = arguments(streams, layout="pack", pack_window=10)
    state = str(tmp_path / "state.json")
    run(4, "train_from_one_state", tmp_path / "4", loader=loader, steps=7, state=state, resume=False)
    run(2, "train_from_one_state", tmp_path / "2", loader=loader, steps=4, state=state, resume=True)
    assert_same(global_batches(tmp_path / "2", range(2)), expected(streams, 11, layout="pack", pack_window=10)[7:])


def test_torch_distributed_checkpoint_saves_on_four_and_loads_on_two(streams: list[str], tmp_path: Path) -> None:
    loader = arguments(streams, layout="pack", pack_window=10)
    state = str(tmp_path / "checkpoint")
    run(4, "train_with_checkpoint", tmp_path / "4", loader=loader, steps=6, state=state, resume=False)
    errors = run(2, "train_with_checkpoint", tmp_path / "2", loader=loader, steps=6, state=state, resume=True)
    assert "there are no hints" not in errors
    assert_same(global_batches(tmp_path / "2", range(2)), expected(streams, 12, layout="pack", pack_window=10)[6:])
    other = {**loader, "streams": streams[:1]}
    errors = run(
        2, "train_with_checkpoint", tmp_path / "1", fails=True, loader=other, steps=6, state=state, resume=True
    )
    assert "stream 'web' is not there any more" in errors


def test_all_ranks_have_the_same_steps_in_every_epoch(streams: list[str], tmp_path: Path) -> None:
    for layout, drop_last in (("pad", False), ("concat", True), ("pack", True)):
        out = tmp_path / layout
        changes = {"layout": layout, "drop_last": drop_last}
        run(3, "whole_epochs", out, loader=arguments(streams, **changes), num_epochs=3)
        got = global_batches(out, range(3))
        assert_same(got, expected(streams, len(got), **changes))
        assert [epoch for epoch, _ in itertools.groupby(got, key=lambda batch: batch[0])] == [0, 1, 2]


def test_peers_of_a_mesh_get_the_same_rows(streams: list[str], tmp_path: Path) -> None:
    changes = {"layout": "pack", "pack_window": 10}
    run(4, "in_a_mesh", tmp_path / "out", loader=arguments(streams, **changes), steps=6)
    lines = [lines_of(tmp_path / "out", rank) for rank in range(4)]
    assert lines[0] == lines[1] and lines[2] == lines[3]
    (tmp_path / "out" / "rank2.jsonl").replace(tmp_path / "out" / "rank1.jsonl")
    assert_same(global_batches(tmp_path / "out", range(2)), expected(streams, 6, **changes))


def test_ranks_that_do_not_make_one_run_are_told(streams: list[str], tmp_path: Path) -> None:
    loader = arguments(streams, layout="concat")
    for name, parameters in {
        "seed": {"changes": {"seed": 12}, "message": "the loaders of rank 0 and rank 2 differ: seed 11 and 12"},
        "streams": {"changes": {"streams": streams[:1]}, "message": "rank 0 and rank 2 differ: streams {'web'"},
        "row": {"changes": {}, "ahead": 1, "message": "rank 0 and rank 2 differ: rows 24 and 36"},
    }.items():
        out = tmp_path / name
        run(4, "apart", out, loader=loader, **parameters)
        assert len(list(out.iterdir())) == 4  # every rank was told
