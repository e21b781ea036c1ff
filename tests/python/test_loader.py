"""The DataLoader as its users see it: iteration, epochs, fields, state, memory, options."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import logging
import os
import pickle
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

import stoker
from mds import tokens_at, write_dataset
from stoker.options import PRESETS

LENGTHS = {"code": [[9, 30], [25] * 8], "web": [[40, 1, 0, 17], [60] * 5, [3] * 20]}


@pytest.fixture
def streams(tmp_path: Path) -> list[stoker.Stream]:
    return [stoker.Stream(local=write_dataset(tmp_path, name, LENGTHS[name])) for name in LENGTHS]


def make(streams: list[stoker.Stream], **changes: Any) -> stoker.DataLoader:
    return stoker.DataLoader(streams, **{"seq_len": 10, "batch_size": 4, "shuffle_block": 4, **changes})


# ---------------------------------------------------------------- iteration and epochs
def test_batches_are_dicts_of_torch_tensors_with_the_fields_asked_for(streams: list[stoker.Stream]) -> None:
    fields = ["labels", "stream_ids", "input_ids"]
    with make(streams, fields=fields) as loader:
        batch = next(iter(loader))
    assert list(batch) == fields
    for tensor in batch.values():
        assert isinstance(tensor, torch.Tensor) and tensor.shape == (4, 10) and tensor.dtype == torch.int64
        assert tensor.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.int32, np.int32, "int32"])
def test_dtype_may_be_torchs_numpys_or_a_name(streams: list[stoker.Stream], dtype: Any) -> None:
    with make(streams, dtype=dtype) as loader, make(streams) as wide:
        for narrow, batch in zip(loader, wide, strict=True):
            assert narrow["input_ids"].dtype == torch.int32
            assert (narrow["input_ids"] == batch["input_ids"]).all()


def test_iter_gives_one_epoch_after_the_other(streams: list[stoker.Stream]) -> None:
    with make(streams) as loader:
        epochs = [[batch["input_ids"] for batch in loader] for _ in range(3)]
        rows = sum(sum(map(sum, lengths)) // 10 for lengths in LENGTHS.values())
        assert sum(map(len, epochs)) == 3 * rows // 4
        for e, epoch in enumerate(epochs):
            assert len(epoch) == (e + 1) * rows // 4 - e * rows // 4
        assert not torch.equal(epochs[0][0], epochs[1][0])


def test_leaving_an_epoch_begins_the_next_and_no_batch_taken_leaves_nothing(streams: list[stoker.Stream]) -> None:
    with make(streams) as loader:
        first, second = ([batch["input_ids"] for batch in loader] for _ in range(2))
    with make(streams) as loader:
        iter(loader)
        for batch in loader:
            assert torch.equal(batch["input_ids"], first[0])
            break
        assert loader.batch_info["epoch"] == 0
        # What the left epoch had not delivered is left out, but for rows that belong to batches of the next.
        assert [b["input_ids"].tolist() for b in loader] == [b.tolist() for b in second]
        assert loader.batch_info["epoch"] == 1


def test_a_newer_iterator_ends_the_older_one(streams: list[stoker.Stream]) -> None:
    with make(streams) as loader:
        old = iter(loader)
        next(old)
        new = iter(loader)
        with pytest.raises(RuntimeError, match="this iterator has ended"):
            next(old)
        next(new)


def test_an_iterator_at_its_end_stays_there(streams: list[stoker.Stream]) -> None:
    with make(streams) as loader:
        iterator = iter(loader)
        assert sum(1 for _ in iterator) == len(loader)
        for _ in range(2):
            with pytest.raises(StopIteration):
                next(iterator)


def test_set_epoch_begins_an_epoch_and_keeps_the_place_in_the_one_at_hand(streams: list[stoker.Stream]) -> None:
    with make(streams) as loader:
        epochs = [[b["input_ids"].tolist() for b in loader] for _ in range(3)]
    with make(streams) as loader:
        loader.set_epoch(2)
        assert [b["input_ids"].tolist() for b in loader] == epochs[2]
        loader.set_epoch(1)
        iterator = iter(loader)
        assert next(iterator)["input_ids"].tolist() == epochs[1][0]
        state = loader.state_dict()
        loader.load_state_dict(state)
        loader.set_epoch(1)  # as trainers do after a resume
        left = []
        for batch in loader:
            left.append(batch["input_ids"].tolist())
            at_end = loader.state_dict()
        assert left == epochs[1][1:]
        assert at_end["epoch"] == 1
        loader.load_state_dict(at_end)
        loader.set_epoch(2)
        assert [b["input_ids"].tolist() for b in loader] == epochs[2]
        loader.load_state_dict(at_end)
        loader.set_epoch(1)
        assert [b["input_ids"].tolist() for b in loader] == epochs[1]
    for epoch in (-1, 2**62, 1.5):
        with pytest.raises(ValueError, match="epoch is"):
            loader.set_epoch(epoch)  # type: ignore[arg-type]
    for batch in (-1, 2**62, 1.0):
        with pytest.raises(ValueError, match="batch is"):
            loader.order(batch)  # type: ignore[arg-type]


def test_an_evaluation_pass_gives_every_sample_once_in_file_order(streams: list[stoker.Stream]) -> None:
    options: dict[str, Any] = {"layout": "pad", "shuffle": False, "drop_last": False, "seq_len": 60, "pad_id": 50_001}
    with make(streams, **options, fields=["input_ids", "attention_mask", "stream_ids"]) as loader:
        for _ in range(2):
            rows: dict[int, list[list[int]]] = {0: [], 1: [], -1: []}
            for batch in loader:
                for ids, mask, stream in zip(*(batch[f].tolist() for f in batch), strict=True):
                    rows[stream[0]].append(ids[: sum(mask)])
                    assert ids[sum(mask) :] == [50_001] * (60 - sum(mask))
            for s, name in enumerate(sorted(LENGTHS)):
                want = [tokens_at(name, k, x, n).tolist() for k, v in enumerate(LENGTHS[name]) for x, n in enumerate(v)]
                # An empty sample is a row of padding, which is of no stream.
                assert rows[s] == [tokens for tokens in want if tokens]
            assert len(rows[-1]) == -(-39 // 4) * 4 - 38


def test_the_order_of_the_list_of_streams_does_not_matter(streams: list[stoker.Stream]) -> None:
    with make(streams) as one, make(streams[::-1]) as other:
        assert one.dataset.names == other.dataset.names == ["code", "web"]
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a["input_ids"], b["input_ids"])


def test_a_single_stream_needs_no_list(streams: list[stoker.Stream]) -> None:
    with stoker.DataLoader(streams[0], seq_len=10, batch_size=2) as loader:
        assert len(loader.dataset.streams) == 1


def test_split_is_a_sub_directory_and_the_name_is_the_directorys(tmp_path: Path) -> None:
    write_dataset(tmp_path / "c4", "train", [[50]])
    stream = stoker.Stream(local=tmp_path / "c4", split="train")
    assert stream.name == "c4"
    with stoker.DataLoader(stream, seq_len=10, batch_size=5) as loader:
        assert len(loader) == 1


# ---------------------------------------------------------------- mixture
def test_proportions_are_kept_in_every_stretch_of_rows(tmp_path: Path) -> None:
    streams = [
        stoker.Stream(local=write_dataset(tmp_path, name, [[100] * 40] * 3), proportion=p)
        for name, p in [("a", 70), ("b", 29.5), ("c", 0.5)]
    ]
    with stoker.DataLoader(
        streams, seq_len=10, batch_size=10, epoch_size="2k", fields=["input_ids", "stream_ids"]
    ) as loader:
        ids = np.concatenate([batch["stream_ids"][:, 0].numpy() for batch in loader])
        assert len(ids) == 2000
        assert np.bincount(ids).tolist() == [1400, 590, 10]
        for begin in range(0, 2000, 100):
            assert np.abs(np.bincount(ids[begin : begin + 100], minlength=3) - [70, 29.5, 0.5]).max() <= 5
        stats = loader.stats()["streams"]
        assert {name: s["asked"] for name, s in stats.items()} == {"a": 0.7, "b": 0.295, "c": 0.005}
        assert all(s["achieved"] == s["asked"] for s in stats.values())


def test_a_stream_that_its_weight_rounds_away_is_said(
    streams: list[stoker.Stream], caplog: pytest.LogCaptureFixture
) -> None:
    tiny = [stoker.Stream(local=s.local, proportion=p) for s, p in zip(streams, (1e-9, 1), strict=True)]
    make(tiny, epoch_size=100)
    assert "stream 'code' holds 239 tokens and its weight makes that 0 rows of seq_len 10" in caplog.text


def test_a_row_longer_than_all_data_says_so(streams: list[stoker.Stream]) -> None:
    with pytest.raises(
        ValueError, match="stream 'code' holds 239 tokens and its weight makes that 0 rows of seq_len 500"
    ):
        make(streams, seq_len=500)


# ---------------------------------------------------------------- looking
def test_batch_info_and_stats_count_what_the_batches_hold(streams: list[stoker.Stream]) -> None:
    with make(streams, layout="pad", seq_len=20, fields=["input_ids", "labels", "stream_ids"]) as loader:
        assert loader.batch_info == {}
        assert loader.stats()["batches"] == 0
        tokens = {"code": 0, "web": 0}
        for b, batch in enumerate(loader):
            info = loader.batch_info
            assert info["epoch"] == 0 and info["rows"] == (4 * b, 4 * b + 4)
            for s, name in enumerate(loader.dataset.names):
                of_stream = batch["stream_ids"] == s
                assert info["tokens"][name] == int(of_stream.sum())
                assert info["loss_tokens"][name] == int(of_stream[:, 1:].sum())  # what a model that shifts predicts
                tokens[name] += info["tokens"][name]
            assert info["padding_tokens"] == int((batch["labels"] == -100).sum())
        stats = loader.stats()
        assert stats["batches"] == b + 1
        assert {name: s["tokens"] for name, s in stats["streams"].items()} == tokens
        assert stats["tokens"] + stats["padding_tokens"] == (b + 1) * 80
        assert stats["streams"]["web"]["truncated_samples"] == sum(
            s.token_end == 20 and LENGTHS["web"][s.shard][s.sample] > 20
            for i in range(b + 1)
            for row in loader.order(i)
            for s in row
            if s.stream == "web"
        )
        assert 0 <= stats["wait_share"] <= 1 and stats["first_batch_s"] <= stats["elapsed_s"]


def test_order_and_batches_agree_in_documents_by_eos(tmp_path: Path) -> None:
    directory = write_dataset(tmp_path, "web", [[30] * 6])
    eos = int(tokens_at("web", 0, 2, 30)[4])
    with stoker.DataLoader(
        stoker.Stream(local=directory),
        seq_len=15,
        batch_size=3,
        documents="eos",
        eos_token_id=eos,
        fields=["input_ids", "sequence_id", "position_ids"],
    ) as loader:
        seen = 0
        for batch in loader:
            for ids, documents, positions in zip(*(batch[f].tolist() for f in batch), strict=True):
                document = position = 0
                for i in range(15):
                    assert (documents[i], positions[i]) == (document, position)
                    position += 1
                    if ids[i] == eos:
                        document, position, seen = document + 1, 0, seen + 1
        assert seen >= 1


def test_overflow_error_names_the_sample(streams: list[stoker.Stream]) -> None:
    loader = make(streams, layout="pad", overflow="error", shuffle=False)
    with pytest.raises(
        ValueError, match=r'stream "(web|code)": sample \d of /.*mds has \d\d tokens, more than seq_len 10'
    ):
        list(loader)


def test_a_token_beyond_vocab_size_is_an_error(streams: list[stoker.Stream]) -> None:
    loader = make(streams, vocab_size=1000)
    with pytest.raises(stoker.CorruptShardError, match="vocab_size is 1000") as error:
        list(loader)
    assert Path(error.value.path).name == "shard.00000.mds" and error.value.sample is not None
    copy = pickle.loads(pickle.dumps(error.value))
    assert (copy.path, copy.sample, str(copy)) == (error.value.path, error.value.sample, str(error.value))


# ---------------------------------------------------------------- state
def test_a_state_is_small_and_json(streams: list[stoker.Stream]) -> None:
    with make(streams) as loader:
        for _ in itertools.islice(loader, 3):
            pass
        text = json.dumps(loader.state_dict())
    assert len(text) < 1000
    assert json.loads(text)["rows"] == 12


def test_a_state_saved_after_the_last_batch_goes_on_with_the_next_epoch(streams: list[stoker.Stream]) -> None:
    with make(streams) as loader:
        batches = [b["input_ids"].tolist() for _ in range(2) for b in loader]
    with make(streams) as loader:
        num_batches = len(loader)
        iterator = iter(loader)
        for _ in range(num_batches):
            next(iterator)
        before_end = loader.state_dict()
        with pytest.raises(StopIteration):
            next(iterator)
        after_end = loader.state_dict()
    assert (before_end["epoch"], after_end["epoch"]) == (0, 1)
    for state in (before_end, after_end):
        with make(streams) as loader:
            loader.load_state_dict(state)
            assert len(loader) == len(batches) - num_batches
            assert [b["input_ids"].tolist() for b in loader] == batches[num_batches:]


def test_a_state_of_data_tokenized_anew_is_refused(tmp_path: Path) -> None:
    directories = [write_dataset(tmp_path / x, "web", [[20] * 9, [n, 40 - n]]) for x, n in (("a", 20), ("b", 19))]
    shorter = write_dataset(tmp_path / "c", "web", [[15] * 9, [15, 15]])
    one, same, other = (
        stoker.DataLoader(stoker.Stream(local=d), seq_len=10, batch_size=2, layout="pad")
        for d in (*directories, shorter)
    )
    same.load_state_dict(one.state_dict())  # the same samples and tokens a shard, as far as the index tells
    with pytest.raises(stoker.StateMismatchError, match=r"had 220 in 2 shards .* tokens and has 165 in 2 shards"):
        other.load_state_dict(one.state_dict())
    index = json.loads((shorter / "index.json").read_text())
    del index["stoker"]
    (shorter / "index.json").write_text(json.dumps(index))
    unknown = stoker.DataLoader(stoker.Stream(local=shorter), seq_len=10, batch_size=2, layout="pad")
    unknown.load_state_dict(one.state_dict())  # nothing tells them apart


def test_lanes_come_from_the_state_unless_they_are_given(streams: list[stoker.Stream]) -> None:
    with make(streams, rank=0, world_size=2, batch_size=2) as loader:
        state = loader.state_dict()
    assert json.loads(state["specification"])["lanes"] == 2
    with make(streams) as loader:
        loader.load_state_dict(state)
        assert json.loads(loader.state_dict()["specification"])["lanes"] == 2
    with make(streams, lanes=3) as loader, pytest.raises(stoker.StateMismatchError, match="lanes was 2 and is 3"):
        loader.load_state_dict(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"seq_len": 11}, "seq_len was 10 and is 11"),
        ({"layout": "pad"}, "layout was 'concat' and is 'pad'"),
        ({"shuffle": False}, "shuffle was True and is False"),
        ({"shuffle_block": 5}, "shuffle_block was 4 and is 5"),
        ({"drop_last": False}, "drop_last was True and is False"),
        ({"batch_size": 6}, "its global batch is 4 rows, this loader's 6"),
        ({"epoch_size": 77}, "units an epoch were"),
    ],
)
def test_a_state_of_another_specification_is_refused(
    streams: list[stoker.Stream], changes: dict[str, Any], message: str
) -> None:
    state = make(streams).state_dict()
    with pytest.raises(stoker.StateMismatchError, match=message):
        make(streams, **changes).load_state_dict(state)


def test_a_state_of_other_data_is_refused_and_names_the_stream(streams: list[stoker.Stream], tmp_path: Path) -> None:
    state = make(streams).state_dict()
    other = write_dataset(tmp_path / "other", "web", [[40, 1, 0, 17], [60] * 5, [3] * 21])
    with pytest.raises(stoker.StateMismatchError, match=r"stream 'web' had 29 in 3 shards .* samples and has 30 in 3"):
        make([streams[0], stoker.Stream(local=other)]).load_state_dict(state)
    with pytest.raises(stoker.StateMismatchError, match="stream 'web' is not there any more"):
        make([streams[0]]).load_state_dict(state)


@pytest.mark.parametrize(
    "damage",
    [
        {"version": 2},
        {"order_version": 0},
        {"rows": -1},
        {"rows": 3},
        {"rows": 10**6},
        {"rows": 2**80},
        {"epoch": "x"},
        {"epoch": 5},
        {"specification": None},
        {"specification": {}},
    ],
)
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_damaged_state_is_refused(streams: list[stoker.Stream], damage: dict[str, Any], drop_last: bool) -> None:
    loader = make(streams, drop_last=drop_last, batch_size=6)
    if damage == {"rows": 3} and drop_last:
        damage = {"rows": 65}  # rows of an epoch may begin anywhere after a change of the batch
    with pytest.raises(stoker.StateMismatchError):
        loader.load_state_dict({**loader.state_dict(), **damage})
    with pytest.raises(stoker.StateMismatchError, match="is not a state"):
        loader.load_state_dict(None)  # type: ignore[arg-type]


def test_another_global_batch_goes_on_from_the_same_row_if_asked(streams: list[stoker.Stream]) -> None:
    with make(streams, batch_size=2) as loader:
        rows = [row for _ in range(2) for b in loader for row in b["input_ids"].tolist()]
    with make(streams, batch_size=2) as loader:
        for _ in itertools.islice(loader, 3):
            pass
        state = loader.state_dict()
    with make(streams, batch_size=5) as loader:
        with pytest.raises(stoker.StateMismatchError, match='on_change="adapt"'):
            loader.load_state_dict(state)
        with pytest.raises(ValueError, match="on_change is 'yes'"):
            loader.load_state_dict(state, on_change="yes")
        loader.load_state_dict(state, on_change="adapt")
        epochs = [[row for b in loader for row in b["input_ids"].tolist()] for _ in range(2)]
        got = epochs[0] + epochs[1]
    assert got[:40] == rows[6:46]
    with make(streams, batch_size=5) as loader:
        loader.load_state_dict(state, on_change="adapt")
        iterator = iter(loader)
        left = [row for _ in range(len(epochs[0]) // 5) for row in next(iterator)["input_ids"].tolist()]
        again = loader.state_dict()
        left += next(iter(loader))["input_ids"].tolist()  # leaving an epoch at its end loses nothing either
        assert left == rows[6 : 6 + len(left)]
        loader.load_state_dict(again)
        assert next(iter(loader))["input_ids"].tolist() == left[-5:]
    with make(streams, batch_size=5, drop_last=False) as loader:
        loader_state = {**make(streams, drop_last=False).state_dict()}
        with pytest.raises(stoker.StateMismatchError, match="drop_last=True"):
            loader.load_state_dict(loader_state, on_change="adapt")


class InjectedError(Exception):
    """As a signal handler may raise."""


def interrupted(call: Callable[[], Any], step: int) -> bool:
    """Calls, and raises before the `step`-th instruction of stoker's Python code. Returns whether it got that far."""
    here = os.path.dirname(stoker.__file__)

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal step
        if not frame.f_code.co_filename.startswith(here):
            return None
        frame.f_trace_opcodes = True
        step -= event == "opcode"
        if step < 0:
            raise InjectedError
        return trace

    sys.settrace(trace)
    try:
        call()
    except InjectedError:
        return True
    except StopIteration:
        pass
    finally:
        sys.settrace(None)
    return False


@pytest.mark.parametrize("num_batches_before", [0, 1, 16], ids=["first", "later", "end of epoch"])
def test_an_exception_at_any_moment_leaves_the_loader_where_its_state_says(
    streams: list[stoker.Stream], num_batches_before: int
) -> None:
    with make(streams) as loader:
        assert len(loader) == 16
        want = [b["input_ids"].tolist() for _ in range(2) for b in loader]
    for step in itertools.count():
        with make(streams, prefetch_factor=1) as loader:
            iterator = iter(loader)
            for _ in range(num_batches_before):
                next(iterator)
            was_interrupted = interrupted(lambda iterator=iterator: next(iterator), step)  # type: ignore[misc]
            row = loader.state_dict()["rows"]
            assert row // 4 in (num_batches_before, num_batches_before + 1)
            assert was_interrupted or step > 20
            again = next(iterator, None) or next(iter(loader))
            assert again["input_ids"].tolist() == want[row // 4]
            assert loader.state_dict()["rows"] == row + 4
        if not was_interrupted:
            break


def test_an_exception_while_a_state_is_loaded_leaves_a_loader_that_serves_what_its_state_says(
    streams: list[stoker.Stream],
) -> None:
    want: dict[int, list[Any]] = {}
    for lanes in (1, 3):
        with make(streams, lanes=lanes) as loader:
            want[lanes] = [batch["input_ids"].tolist() for _ in range(2) for batch in loader]
    with make(streams, lanes=3) as loader:
        for _ in itertools.islice(loader, 3):
            state = loader.state_dict()
    for step in itertools.count():
        with make(streams) as loader:
            iterator = iter(loader)
            next(iterator)
            was_interrupted = interrupted(lambda loader=loader: loader.load_state_dict(state), step)  # type: ignore[misc]
            now = loader.state_dict()
            try:
                batch = next(iterator)
            except stoker.LoaderClosedError:
                raise
            except RuntimeError:  # the iterator has ended
                loader.load_state_dict(now)
                batch = next(iter(loader))
            assert batch["input_ids"].tolist() == want[json.loads(now["specification"])["lanes"]][now["rows"] // 4]
        if not was_interrupted:
            assert now["rows"] == 12
            break


# ---------------------------------------------------------------- lifetime
def test_close_is_idempotent_and_final_but_batches_live_on(streams: list[stoker.Stream]) -> None:
    loader = make(streams)
    iterator = iter(loader)
    batch = next(iterator)
    copy = {name: tensor.clone() for name, tensor in batch.items()}
    loader.close()
    loader.close()
    for use in (lambda: next(iterator), lambda: iter(loader), lambda: loader.load_state_dict(loader.state_dict())):
        with pytest.raises(stoker.LoaderClosedError, match="the loader is closed"):
            use()
    assert all(torch.equal(batch[name], copy[name]) for name in batch)
    assert loader.stats()["batches"] == 1


def test_a_batch_that_is_kept_is_never_written_again(streams: list[stoker.Stream]) -> None:
    with make(streams, prefetch_factor=1) as loader:
        kept = [(batch, batch["input_ids"].clone()) for _ in range(3) for batch in loader]
    assert all(torch.equal(batch["input_ids"], copy) for batch, copy in kept)


def test_memory_of_dropped_batches_is_used_again(streams: list[stoker.Stream]) -> None:
    with make(streams, prefetch_factor=2) as loader:
        addresses = {batch["input_ids"].data_ptr() for _ in range(5) for batch in loader}
    assert len(addresses) <= 2 + 2


def test_threads_start_at_the_first_batch_and_end_with_the_loader(streams: list[stoker.Stream]) -> None:
    def workers() -> int:
        names = []
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # it has ended since
                names.append((task / "comm").read_text())
        return sum(name.startswith("stoker-") for name in names)

    def become(number: int) -> bool:
        """A thread names itself when it first runs, and is seen for a moment after it was joined."""
        for _ in range(6000):
            if workers() == number:
                return True
            time.sleep(0.01)
        return False

    assert become(0)
    loader = make(streams, num_workers=3)
    assert len(loader) > 0 and loader.order(0)
    assert workers() == 0
    next(iter(loader))
    assert become(3)
    reference = weakref.ref(loader)
    del loader
    gc.collect()
    assert reference() is None
    assert become(0)


def test_a_loader_can_be_pickled_until_it_starts(streams: list[stoker.Stream]) -> None:
    with make(streams) as loader:
        for _ in itertools.islice(loader, 2):
            pass
        state = loader.state_dict()
        want = [b["input_ids"].tolist() for b in make_at(streams, state)]
        with pytest.raises(TypeError, match="has started"):
            pickle.dumps(loader)
    fresh = make(streams)
    fresh.load_state_dict(state)
    with pickle.loads(pickle.dumps(fresh)) as copy:
        assert [b["input_ids"].tolist() for b in copy] == want


def make_at(streams: list[stoker.Stream], state: dict[str, Any]) -> stoker.DataLoader:
    loader = make(streams)
    loader.load_state_dict(state)
    return loader


def test_the_same_error_comes_at_every_later_call_and_a_new_start_reads_again(streams: list[stoker.Stream]) -> None:
    path = Path(streams[0].local) / "1" / "shard.00000.mds"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with make(streams) as loader:
        iterator = iter(loader)
        with pytest.raises(stoker.CorruptShardError) as first:
            list(iterator)
        for _ in range(3):
            with pytest.raises(stoker.CorruptShardError) as again:
                next(iterator)
            assert str(again.value) == str(first.value)
        state = loader.state_dict()
        path.write_bytes(content)
        loader.load_state_dict(state)
        rest = [b["input_ids"].tolist() for b in loader]
    with make(streams) as loader:
        loader.load_state_dict(state)
        assert [b["input_ids"].tolist() for b in loader] == rest


def test_closing_in_many_threads_at_once_is_as_good_as_once(streams: list[stoker.Stream]) -> None:
    for _ in range(30):
        loader = make(streams)
        next(iter(loader))
        failures: list[BaseException] = []

        def close(loader: stoker.DataLoader = loader, failures: list[BaseException] = failures) -> None:
            try:
                loader.close()
            except BaseException as error:  # noqa: BLE001  # whatever it is, the test fails with it
                failures.append(error)

        threads = [threading.Thread(target=close) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures


@pytest.mark.parametrize("num_workers", [0, 2])
def test_close_from_another_thread_ends_the_consumer(streams: list[stoker.Stream], num_workers: int) -> None:
    loader = make(streams, num_workers=num_workers)
    started, ended = threading.Event(), threading.Event()

    def consume() -> None:
        with pytest.raises(stoker.LoaderClosedError):
            while True:
                for _ in loader:
                    started.set()
        ended.set()

    thread = threading.Thread(target=consume)
    thread.start()
    assert started.wait(60)
    loader.close()
    thread.join(60)
    assert ended.is_set()


def test_torchs_attributes_are_there(streams: list[stoker.Stream]) -> None:
    loader = make(streams, num_workers=1)
    assert (loader.batch_size, loader.drop_last, loader.sampler) == (4, True, None)
    assert (loader.num_workers, loader.pin_memory, loader.prefetch_factor, loader.timeout) == (1, False, 8, 0)
    assert len(loader.dataset) == 23 + 41


def test_pin_memory_without_an_accelerator_warns_and_gives_plain_memory(
    streams: list[stoker.Stream], caplog: pytest.LogCaptureFixture
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is an accelerator")
    with caplog.at_level(logging.WARNING), make(streams, pin_memory=True) as loader:
        assert not next(iter(loader))["input_ids"].is_pinned()
        list(loader)
    assert caplog.text.count("torch finds no accelerator") == 1


def test_pinned_batches_are_torchs_own_tensors_each_handed_out_once(
    streams: list[stoker.Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With plain tensors in the place of pinned ones, which a torch for the CPU does not give."""
    taken: list[torch.Tensor] = []

    def take(size_bytes: int) -> torch.Tensor:
        taken.append(torch.full((size_bytes,), 0xA5, dtype=torch.uint8))
        return taken[-1]

    monkeypatch.setattr("stoker.batches.take_pinned", take)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    fields = ["input_ids", "labels", "sequence_id", "cu_seqlens"]
    with make(streams, pin_memory=True, fields=fields) as loader, make(streams, fields=fields) as plain:
        batches = list(loader)
        for batch, want, memory in zip(batches, plain, taken, strict=False):
            assert all(torch.equal(batch[name], want[name]) for name in fields)
            assert batch["input_ids"].data_ptr() == memory.data_ptr()
    assert len(batches) > 10 and len({memory.data_ptr() for memory in taken}) == len(taken)


# ---------------------------------------------------------------- names of fields
@pytest.mark.parametrize(
    ("fields", "names"),
    [
        (
            "huggingface",
            ["input_ids", "labels", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"],
        ),
        (
            "flash",
            ["input_ids", "labels", "position_ids", "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"],
        ),
        ("composer", ["input_ids", "labels", "attention_mask", "sequence_id"]),
        ({"tokens": "input_ids", "lengths": "cu_seqlens", "longest": "max_seqlen"}, ["tokens", "lengths", "longest"]),
        ({"lengths": "cu_seqlens", "a": "input_ids", "b": "input_ids"}, ["lengths", "a", "b"]),
    ],
)
def test_fields_go_by_the_names_that_a_consumer_has(
    streams: list[stoker.Stream], fields: Any, names: list[str]
) -> None:
    every = ["input_ids", "labels", "attention_mask", "position_ids", "sequence_id", "cu_seqlens"]
    with make(streams, layout="pad", fields=fields) as loader, make(streams, layout="pad", fields=every) as plain:
        batch, want = next(iter(loader)), next(iter(plain))
    assert list(batch) == names
    meaning = fields if isinstance(fields, dict) else PRESETS[fields]
    for name, field in meaning.items():
        if field == "max_seqlen":
            assert batch[name] == want[field]
        else:
            assert torch.equal(batch[name], want[field])


# ---------------------------------------------------------------- options
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 0}, "seq_len is 0"),
        ({"seq_len": 10.0}, "seq_len is 10.0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": True}, "batch_size is True"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"shuffle_block": 0}, "shuffle_block is 0"),
        ({"lanes": 0}, "lanes is 0"),
        ({"rank": 0, "world_size": 0}, "world_size is 0"),
        ({"rank": 4, "world_size": 4}, "rank is 4: it must be a whole number from 0 to 3"),
        ({"rank": 1}, "rank is 1 and world_size is None: give both, or neither"),
        ({"rank": -1, "world_size": 1}, "rank is -1"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"prefetch_factor": 0}, "prefetch_factor is 0"),
        ({"layout": "wrap"}, "layout is 'wrap': it must be one of 'pad', 'concat'"),
        ({"padding_side": "up"}, "padding_side is 'up'"),
        ({"overflow": "burst"}, "overflow is 'burst'"),
        ({"overflow": "split", "layout": "pad"}, "overflow of stream 'code' is 'split': layout 'pad' has"),
        ({"documents": "lines"}, "documents is 'lines'"),
        ({"documents": "eos"}, "documents='eos' needs eos_token_id"),
        ({"dtype": "int16"}, "dtype is 'int16'"),
        ({"pad_id": 2**31, "dtype": "int32"}, "pad_id is 2147483648"),
        ({"timeout": -1}, "timeout is -1"),
        ({"timeout": "5"}, "timeout is '5'"),
        ({"shuffle": "no"}, "shuffle is 'no': it must be True or False"),
        ({"eos_token_id": "2"}, "eos_token_id is '2'"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"fields": ["labels"]}, "it must have 'input_ids'"),
        ({"fields": ["input_ids", "colour"]}, "fields is"),
        ({"fields": ["input_ids", "input_ids"]}, "each once"),
        ({"fields": "megatron"}, "it must be a list of fields, or one of 'huggingface', 'flash', 'composer'"),
        ({"fields": {"a": "labels"}}, "it must have 'input_ids'"),
        ({"fields": {"a": "input_ids", "b": "max_seqlen"}}, "max_seqlen beside cu_seqlens"),
        ({"epoch_size": "12 apples"}, "is not a count"),
        ({"cache_memory": "lots"}, "is not a size in bytes"),
        ({"batch_size": 65}, "an epoch has 64 rows, fewer than the 65 of one global batch"),
    ],
)
def test_options_that_break_their_rule_are_refused(
    streams: list[stoker.Stream], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(streams, **changes)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([{"proportion": 1}, {}], "stream 'code' has a proportion but stream 'web' has none"),
        ([{"proportion": 0}, {"proportion": 0}], "the weights of all streams are 0"),
        ([{"choose": 0}, {"repeat": 0}], "an epoch has no rows: stream 'code' holds 239 tokens"),
        ([{"proportion": 1, "repeat": 2}, {}], "has proportion and repeat"),
        ([{"proportion": -1}, {}], "proportion=-1"),
        ([{"repeat": float("nan")}, {}], "repeat=nan"),
        ([{"proportion": float("inf")}, {}], "proportion=inf"),
        ([{"choose": 1.5}, {}], "choose=1.5"),
        ([{"choose": 2**5000}, {}], "2\\^40 or more"),
        ([{"repeat": 1e30}, {}], "2\\^40 or more"),
        ([{"proportion": "0.5"}, {}], "proportion='0.5'"),
        ([{"bytes_dtype": "float32"}, {}], "bytes_dtype='float32'"),
    ],
)
def test_weights_that_break_their_rule_are_refused(
    streams: list[stoker.Stream], weights: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make([stoker.Stream(local=s.local, **w) for s, w in zip(streams, weights, strict=True)])


def test_epoch_size_beside_choose_or_repeat_is_refused(streams: list[stoker.Stream]) -> None:
    with pytest.raises(ValueError, match="epoch_size=30 and the repeat or choose of stream 'code'"):
        make([stoker.Stream(local=streams[0].local, repeat=2), streams[1]], epoch_size=30)


def test_numbers_may_be_numpys_and_prefetch_factor_none_as_torchs(streams: list[stoker.Stream]) -> None:
    changes = {name: np.int64(value) for name, value in (("seq_len", 10), ("batch_size", 4), ("seed", 0))}
    with make(streams, **changes, prefetch_factor=None, num_workers=0) as loader, make(streams) as plain:
        assert loader.state_dict() == plain.state_dict()
        assert json.dumps(loader.state_dict())
        assert torch.equal(next(iter(loader))["input_ids"], next(iter(plain))["input_ids"])


@pytest.mark.parametrize("wrong", ["data/web", [Path("data/web")], [None]])
def test_what_is_no_stream_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"give stoker.Stream\(local=...\) for each directory"):
        make(wrong)


def test_a_relative_directory_means_the_same_wherever_the_loader_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path, "web", LENGTHS["web"])
    monkeypatch.chdir(tmp_path)
    for local in ("web", "web/", Path("web"), "./web/../web"):
        loader = stoker.DataLoader(stoker.Stream(local=local), seq_len=10, batch_size=4)
        assert loader.dataset.names == ["web"]
        copy = pickle.dumps(loader)
        with monkeypatch.context() as elsewhere:
            elsewhere.chdir("/")
            for one in (loader, pickle.loads(copy)):
                assert next(iter(one))["input_ids"].shape == (4, 10)
                one.close()


def test_a_directory_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not UTF-8"):
        stoker.Stream(local=str(tmp_path) + "/\udcff")
    with pytest.raises(ValueError, match="give the directory as str or Path"):
        stoker.Stream(local=b"data")  # type: ignore[arg-type]


def test_streams_must_be_there_and_have_names_of_their_own(streams: list[stoker.Stream], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no stream"):
        make([])
    other = write_dataset(tmp_path / "other", "web", [[100]])
    with pytest.raises(ValueError, match="two streams are named 'web'"):
        make([*streams, stoker.Stream(local=other)])
    make([*streams, stoker.Stream(local=other, name="web2")])
