"""The five promises of docs/design.md section 10, as properties of the public API."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

import stoker
from mds import labels_at, tokens_at, write_dataset

FIELDS = ["input_ids", "labels", "attention_mask", "position_ids", "sequence_id", "stream_ids"]
PAD = 50_001
FORMS: list[dict[str, Any]] = [
    {},
    {"dtype": "int32"},
    {"encoding": "bytes"},
    {"encoding": "ndarray?", "dtype": "int64"},
    {"other_column": True},
    {"compression": "zstd"},
    {"compression": "zstd", "frame_bytes": 100, "encoding": "bytes"},
    {"labels": "int32"},
    {"labels": "int64", "encoding": "bytes", "dtype": "int64", "compression": "zstd", "frame_bytes": 60},
    {"labels": "int32", "encoding": "ndarray?", "other_column": True},
]


class Run:
    """Data sets on disk and the arguments of loaders over them."""

    def __init__(self, root: Path, draw: st.DrawFn, *, layout: str | None = None) -> None:
        sample = st.integers(0, 30)
        shards = st.lists(st.lists(sample, max_size=8), min_size=1, max_size=5).filter(lambda x: sum(map(sum, x)) > 0)
        self.lengths = {f"s{i}": x for i, x in enumerate(draw(st.lists(shards, min_size=1, max_size=3)))}
        self.layout = layout or draw(st.sampled_from(["pad", "concat", "pack"]))
        self.streams = []
        self.has_labels = {}
        for name, lengths in self.lengths.items():
            form = draw(st.sampled_from(FORMS))
            if not any(n > 0 and x % 5 != 4 for samples in lengths for x, n in enumerate(samples)):
                form = {}  # labels without loss are refused
            self.has_labels[name] = "labels" in form
            local = write_dataset(root, name, lengths, **form)
            dtype = form.get("dtype", "uint16")
            choose = draw(st.integers(4, 16)) * (1000 if self.layout == "pack" else 1)
            self.streams.append(stoker.Stream(local=local, choose=choose, bytes_dtype=dtype))
        self.arguments: dict[str, Any] = {
            "layout": self.layout,
            "seq_len": draw(st.integers(1, 20)),
            "fields": FIELDS,
            "seed": draw(st.integers(0, 2**64 - 1)),
            "lanes": draw(st.integers(1, 7)),
            "shuffle": draw(st.booleans()),
            "shuffle_block": draw(st.integers(1, 10)),
            "drop_last": self.layout == "pack" or draw(st.booleans()),
            "pad_id": PAD,
            "cache_dir": root / "cache",
        }
        if self.layout == "pack":
            multiple = draw(st.integers(1, 4))
            self.arguments |= {
                "seq_len": multiple * draw(st.integers(1, 8)),
                "pad_to_multiple": multiple,
                "pack_window": draw(st.integers(1, 30)),
                "overflow": draw(st.sampled_from([None, "split", "truncate"])),
                "mix_in_rows": draw(st.sampled_from(["streams", "kind", "stream"])),
                "max_samples_per_row": draw(st.none() | st.integers(1, 5)),
            }
        if self.layout != "pack" and self.arguments["drop_last"]:
            self.streams[0] = stoker.Stream(
                local=self.streams[0].local, choose=12, bytes_dtype=self.streams[0].bytes_dtype
            )

    def loader(self, world_size: int = 1, rank: int = 0, **changes: Any) -> stoker.DataLoader:
        arguments = {**self.arguments, "batch_size": 12 // world_size, **changes}
        return stoker.DataLoader(self.streams, world_size=world_size, rank=rank, **arguments)

    def expected_row(self, row: list[stoker.Segment]) -> dict[str, list[int]]:
        """What a row of segments holds, by the words of DataLoader's docstring."""
        seq_len, multiple = self.arguments["seq_len"], self.arguments.get("pad_to_multiple", 1)
        tokens: list[int] = []
        labels: list[int] = []
        documents: list[int] = []
        positions: list[int] = []
        streams: list[int] = []

        def pad(size: int) -> None:
            tokens.extend([PAD] * size)
            labels.extend([-100] * size)
            documents.extend([-1] * size)
            positions.extend([0] * size)
            streams.extend([-1] * size)

        for segment in row:
            place = segment.stream, segment.shard, segment.sample
            length = self.lengths[segment.stream][segment.shard][segment.sample]
            part = slice(segment.token_begin, segment.token_end)
            piece = tokens_at(*place, length)[part].tolist()
            of_piece = (labels_at if self.has_labels[segment.stream] else tokens_at)(*place, length)[part].tolist()
            if self.layout == "pack" and tokens:
                of_piece[0] = -100
            tokens += piece
            labels += of_piece
            documents += [max(documents, default=-1) + 1] * len(piece)
            positions += range(len(piece))
            streams += [sorted(self.lengths).index(segment.stream)] * len(piece)
            pad(-len(piece) % multiple)
        pad(seq_len - len(tokens))
        return {
            "input_ids": tokens,
            "labels": labels,
            "attention_mask": [int(s >= 0) for s in streams],
            "position_ids": positions,
            "sequence_id": documents,
            "stream_ids": streams,
        }


@contextmanager
def a_run(draw: st.DrawFn, **kw: Any) -> Iterator[Run]:
    with tempfile.TemporaryDirectory() as root:
        try:
            yield Run(Path(root), draw, **kw)
        except ValueError as error:
            if "finds no token" in str(error):  # a lane of empty samples alone is refused
                reject()
            raise


def endless(loader: stoker.DataLoader) -> Iterator[dict[str, np.ndarray]]:
    """All batches from here on, epoch after epoch, as numpy arrays."""
    while True:
        for batch in loader:
            yield {name: np.asarray(values) for name, values in batch.items()}


def take(loader: stoker.DataLoader, num_batches: int) -> list[dict[str, np.ndarray]]:
    return list(itertools.islice(endless(loader), num_batches))


def assert_equal(got: list[dict[str, np.ndarray]], want: list[dict[str, np.ndarray]]) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert list(a) == list(b)
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def comes(batches: Iterator[Any]) -> bool:
    """Whether the next batch is one and no error."""
    try:
        next(batches)
    except (stoker.CorruptShardError, OSError):
        return False
    return True


def join_ranks(parts: list[list[dict[str, np.ndarray]]]) -> list[dict[str, np.ndarray]]:
    """Global batches from those of all ranks: row R is of rank R mod W."""
    return [{name: np.stack([p[name] for p in batch], 1).reshape(12, -1) for name in FIELDS} for batch in zip(*parts)]


@given(st.data())
def test_promise_1_global_batches_are_the_same_for_any_threads_prefetch_ranks_and_cache(data: st.DataObject) -> None:
    with a_run(data.draw) as run:
        with run.loader(num_workers=0) as loader:
            want = take(loader, 5)
            rows = [loader.order(b) for b in range(5)]
        for batch, batch_rows in zip(want, rows, strict=True):
            for i, row in enumerate(batch_rows):
                assert {name: batch[name][i].tolist() for name in FIELDS} == run.expected_row(row)
        world_size = data.draw(st.sampled_from([1, 2, 3, 4, 6, 12]))
        changes = {
            "num_workers": data.draw(st.integers(0, 5)),
            "prefetch_factor": data.draw(st.integers(1, 9)),
            "cache_memory": data.draw(st.sampled_from([0, 500, 1 << 30])),
        }
        parts = []
        for rank in range(world_size):
            with run.loader(world_size, rank, **changes) as loader:
                parts.append(take(loader, 5))
        assert_equal(join_ranks(parts), want)


@given(st.data())
def test_promise_2_each_pass_delivers_each_unit_once_and_each_epoch_its_counts(data: st.DataObject) -> None:
    with a_run(data.draw, layout=data.draw(st.sampled_from(["pad", "concat"]))) as run:
        with run.loader() as loader:
            counts = {s.name: s.choose for s in run.streams}
            total, seq_len = sum(counts.values()), run.arguments["seq_len"]
            per_epoch = total if run.arguments["drop_last"] else -(-total // 12) * 12
            epochs = 3
            rows = [row for b in range(-(-epochs * per_epoch // 12)) for row in loader.order(b)]
            # Which stream each row of an epoch is of, padding rows left out.
            for e in range(epochs):
                got = Counter(row[0].stream for row in rows[e * per_epoch : (e + 1) * per_epoch] if row)
                assert got == counts
            rows = rows[: epochs * per_epoch]
            for name, lengths in run.lengths.items():
                of_stream = [row for row in rows if row and row[0].stream == name]
                if run.layout == "pad":
                    delivered = Counter((s.shard, s.sample) for (s,) in of_stream)
                    every = [(k, x) for k, samples in enumerate(lengths) for x in range(len(samples))]
                    assert all(s.token_end == min(lengths[s.shard][s.sample], seq_len) for (s,) in of_stream)
                else:
                    delivered = Counter(
                        (s.shard, s.sample, i)
                        for row in of_stream
                        for s in row
                        for i in range(s.token_begin, s.token_end)
                    )
                    every = [(k, x, i) for k, n in enumerate(lengths) for x, m in enumerate(n) for i in range(m)]
                    assert all(sum(s.token_end - s.token_begin for s in row) == seq_len for row in of_stream)
                # Units come pass by pass, so no two things differ by more than a pass and the rows on its edge do.
                passes = len(of_stream) * (1 if run.layout == "pad" else seq_len) / len(every)
                assert all(int(passes) - 1 <= delivered[thing] <= int(passes) + 2 for thing in every)
                if run.layout == "pad":
                    assert all(int(passes) <= delivered[thing] <= -(-len(of_stream) // len(every)) for thing in every)
            # What is delivered is what the order says, and what is cut is counted.
            take(loader, len(rows) // 12)
            stats = loader.stats()
            whole = [s for row in rows[: len(rows) // 12 * 12] for s in row]
            assert stats["tokens"] == sum(s.token_end - s.token_begin for s in whole)
            for name, lengths in run.lengths.items():
                cut = sum(lengths[s.shard][s.sample] - s.token_end for s in whole if s.stream == name)
                assert stats["streams"][name]["truncated_tokens"] == (cut if run.layout == "pad" else 0)


@given(st.data())
def test_promise_3_starts_and_resumes_touch_only_the_shards_of_their_batches(data: st.DataObject) -> None:
    """Whatever the number of samples: all shards that the batches taken do not read are removed before."""
    with a_run(data.draw, layout=data.draw(st.sampled_from(["pad", "concat"]))) as run:
        run.arguments["shuffle_block"] = data.draw(st.integers(1, 3))
        at = data.draw(st.integers(0, 5))
        with run.loader(num_workers=0) as loader:
            batches = endless(loader)
            list(itertools.islice(batches, at))
            state = loader.state_dict()
            want = list(itertools.islice(batches, 2))
            used = {(s.stream, s.shard) for b in (at, at + 1) for row in loader.order(b) for s in row}
        for stream in run.streams:
            for shard in range(len(run.lengths[str(stream.name)])):
                if (stream.name, shard) not in used:
                    for path in (Path(stream.local) / str(shard)).iterdir():
                        path.unlink()
        with run.loader(num_workers=0) as loader:
            loader.load_state_dict(state)
            assert_equal(take(loader, 2), want)


@given(st.data())
def test_promise_4_a_lost_or_damaged_shard_is_an_error_in_its_place(data: st.DataObject) -> None:
    with a_run(data.draw) as run:
        changes = {"num_workers": data.draw(st.integers(0, 3)), "prefetch_factor": data.draw(st.integers(1, 5))}
        with run.loader(**changes) as loader:
            begin = loader.state_dict()
            want = take(loader, 8)
            rows = [loader.order(b) for b in range(8)]
        name = data.draw(st.sampled_from(sorted(run.lengths)))
        shard = data.draw(st.integers(0, len(run.lengths[name]) - 1))
        directory = Path(next(s.local for s in run.streams if s.name == name)) / str(shard)
        (path,) = directory.iterdir()
        damage = data.draw(st.sampled_from(["remove", "cut", "lengthen", "count", "directory"]))
        if damage in ("remove", "directory"):
            path.unlink()
        if damage == "directory":
            path.mkdir()
        elif damage == "cut":
            os.truncate(path, path.stat().st_size // 2)
        elif damage == "lengthen":
            os.truncate(path, path.stat().st_size + 1)
        elif damage == "count":
            path.write_bytes(b"\xff" + path.read_bytes()[1:])
        failing = next((b for b in range(8) if any(s[:2] == (name, shard) for row in rows[b] for s in row)), 8)
        with run.loader(**changes) as loader:
            batches = endless(loader)
            if (
                run.layout == "pack"
            ):  # lengths are read window by window, of empty samples too: not later than its place
                failing = len(list(itertools.takewhile(lambda _: comes(batches), range(failing))))
                loader.load_state_dict(begin)
                batches = endless(loader)
            assert_equal(list(itertools.islice(batches, failing)), want[:failing])
            if failing < 8:
                with pytest.raises((stoker.CorruptShardError, OSError)) as error:
                    next(batches)
                assert str(path) in str(error.value)


@given(st.data())
def test_promise_5_a_state_taken_at_any_time_on_any_rank_continues_exactly(data: st.DataObject) -> None:
    with a_run(data.draw) as run:
        at, more = data.draw(st.integers(0, 7)), 4
        with run.loader(num_workers=1) as loader:
            want = take(loader, at + more)
        world_size = data.draw(st.sampled_from([1, 2, 3, 6]))
        rank = data.draw(st.integers(0, world_size - 1))
        with run.loader(world_size, rank, prefetch_factor=data.draw(st.integers(1, 6))) as loader:
            take(loader, at)
            state = json.loads(json.dumps(loader.state_dict()))
        world_size = data.draw(st.sampled_from([1, 2, 4, 12]))
        parts = []
        for rank in range(world_size):
            with run.loader(world_size, rank, num_workers=data.draw(st.integers(0, 3)), lanes=None) as loader:
                if data.draw(st.booleans()):
                    take(loader, 1)  # a loader that has run takes a state too
                loader.load_state_dict(state)
                parts.append(take(loader, more))
                assert loader.state_dict()["rows"] == (at + more) * 12
        assert_equal(join_ranks(parts), want[at:])


@given(st.data())
def test_promise_5_holds_where_the_global_batch_changes_too(data: st.DataObject) -> None:
    """Rows go on from where the state stands, through any number of changes; epochs end where they end."""
    with a_run(data.draw) as run:
        run.arguments |= {"drop_last": True, "fields": ["input_ids"], "num_workers": data.draw(st.integers(0, 2))}
        with run.loader(batch_size=1) as loader:
            units = len(loader.dataset)
            want = np.concatenate([batch["input_ids"] for batch in take(loader, 400)])
        state, row = None, 0
        for batch_size in data.draw(st.lists(st.integers(1, min(units, 20)), min_size=2, max_size=5)):
            with run.loader(batch_size=batch_size) as loader:
                if state is not None:
                    loader.load_state_dict(state, on_change="adapt")
                for batch in itertools.islice(loader, data.draw(st.integers(0, min(6, len(loader))))):
                    rows = batch["input_ids"].numpy()
                    assert_equal([{"rows": rows}], [{"rows": want[row : row + batch_size]}])
                    row += batch_size
                    state = loader.state_dict()
                    assert state["rows"] == row
                    with run.loader(batch_size=batch_size) as again:
                        again.load_state_dict(state)  # what was saved after a change can be loaded
                        assert again.state_dict()["rows"] == row
                        rows = next(iter(again))["input_ids"].numpy()
                        assert_equal([{"rows": rows}], [{"rows": want[row : row + batch_size]}])
                if row + 140 > len(want):
                    return
