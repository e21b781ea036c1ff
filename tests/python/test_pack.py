"""Packing, finetuning streams and what they make of labels; mixing kinds; cu_seqlens."""

from __future__ import annotations

import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import layout as model_layout
import stoker
from mds import labels_at, tokens_at, write, write_dataset
from stoker.packing import FoundryPacker, best_fit
from stoker.totals import count_tokens

PAD = 999


def load(streams: Any, **changes: Any) -> stoker.DataLoader:
    arguments = {"seq_len": 8, "batch_size": 1, "layout": "pack", "pad_id": PAD, "shuffle": False, "num_workers": 0}
    return stoker.DataLoader(streams, **{**arguments, **changes})


def first_batch(loader: stoker.DataLoader) -> dict[str, Any]:
    with loader:
        return {n: v if isinstance(v, int) else v.tolist() for n, v in next(iter(loader)).items()}


# ---------------------------------------------------------------- labels, cell by cell
TEXT = [[11, 12, 13], [21, 22, 23, 24]]
CHAT = [[31, 32, 33], [41, 42, 43, 44]]
CHAT_LABELS = [[31, -100, 33], [-100, 42, 43, -100]]  # the first of a sample has a label, too
LONG = list(range(51, 60))
LONG_LABELS = [51, -100, *range(53, 60)]


@pytest.mark.parametrize(
    ("kind", "layout", "ids", "labels"),
    [
        ("text", "pad", [11, 12, 13, PAD], [11, 12, 13, -100]),
        ("text", "concat", [11, 12, 13, 21], [11, 12, 13, 21]),
        ("finetuning", "pad", [31, 32, 33, PAD], [31, -100, 33, -100]),
        ("finetuning", "concat", [31, 32, 33, 41], [31, -100, 33, -100]),
    ],
)
def test_labels_of_rows_that_are_units(
    kind: str, layout: str, ids: list[int], labels: list[int], tmp_path: Path
) -> None:
    if kind == "text":
        samples = [{"tokens": tokens} for tokens in TEXT]
    else:
        samples = [{"input_ids": i, "labels": x} for i, x in zip(CHAT, CHAT_LABELS, strict=True)]
    batch = first_batch(load(stoker.Stream(local=write(tmp_path / "a", samples)), layout=layout, seq_len=4))
    assert (batch["input_ids"], batch["labels"]) == ([ids], [labels])


def test_concat_cuts_labels_where_it_cuts_tokens(tmp_path: Path) -> None:
    samples = [{"input_ids": i, "labels": x} for i, x in zip(CHAT, CHAT_LABELS, strict=True)]
    with load(stoker.Stream(local=write(tmp_path / "a", samples), repeat=2), layout="concat", seq_len=5) as loader:
        rows = [(b["input_ids"][0].tolist(), b["labels"][0].tolist()) for b in loader]
    assert rows == [
        ([31, 32, 33, 41, 42], [31, -100, 33, -100, 42]),
        ([43, 44, 31, 32, 33], [43, -100, 31, -100, 33]),
    ]


def test_in_pack_the_first_token_of_a_sample_has_no_loss_but_in_the_first_place_of_a_row(tmp_path: Path) -> None:
    text = stoker.Stream(local=write(tmp_path / "a", [{"tokens": TEXT[1]}]))
    chat = stoker.Stream(local=write(tmp_path / "b", [{"input_ids": CHAT[0], "labels": CHAT_LABELS[0]}]))
    batch = first_batch(load([text, chat], pack_window=2, fields=["input_ids", "labels", "attention_mask"]))
    assert batch["input_ids"] == [[21, 22, 23, 24, 31, 32, 33, PAD]]
    assert batch["labels"] == [[21, 22, 23, 24, -100, -100, 33, -100]]
    assert batch["attention_mask"] == [[1] * 7 + [0]]
    chat = stoker.Stream(local=write(tmp_path / "c", [{"input_ids": CHAT[1], "labels": CHAT_LABELS[1]}]))
    text = stoker.Stream(local=write(tmp_path / "d", [{"tokens": TEXT[0]}]))
    with load([text, chat], pack_window=2) as loader:
        batch = next(iter(loader))
        assert batch["input_ids"].tolist() == [[41, 42, 43, 44, 11, 12, 13, PAD]]
        assert batch["labels"].tolist() == [[-100, 42, 43, -100, -100, 12, 13, -100]]
        assert loader.batch_info["loss_tokens"] == {"c": 2, "d": 2}


@pytest.mark.parametrize("kind", ["text", "finetuning"])
def test_chunks_of_a_split_sample_are_documents_of_their_own(kind: str, tmp_path: Path) -> None:
    sample = {"tokens": LONG} if kind == "text" else {"input_ids": LONG, "labels": LONG_LABELS}
    short = {name: values[:2] for name, values in sample.items()}
    stream = stoker.Stream(local=write(tmp_path / "a", [sample, short]))
    fields = ["input_ids", "labels", "sequence_id", "position_ids"]
    with load(stream, seq_len=5, pack_window=2, overflow="split", fields=fields, batch_size=3, epoch_size=6) as loader:
        batch = next(iter(loader))
        rows = sorted(zip(*(batch[f].tolist() for f in fields), strict=True))
    second = -100 if kind == "finetuning" else 52
    assert rows == [
        # the short sample is as long as what is left of another one, and rows are as they fill
        ([51, 52, 53, 54, 55], [51, second, 53, 54, 55], [0] * 5, [0, 1, 2, 3, 4]),
        ([51, 52, PAD, PAD, PAD], [51, second, -100, -100, -100], [0, 0, -1, -1, -1], [0, 1, 0, 0, 0]),
        ([56, 57, 58, 59, PAD], [56, 57, 58, 59, -100], [0] * 4 + [-1], [0, 1, 2, 3, 0]),
    ]


def test_a_sample_is_padded_to_a_multiple(tmp_path: Path) -> None:
    stream = stoker.Stream(local=write(tmp_path / "a", [{"tokens": [1, 2, 3]}, {"tokens": [4, 5]}]))
    fields = ["input_ids", "labels", "attention_mask", "sequence_id", "position_ids", "stream_ids", "cu_seqlens"]
    batch = first_batch(load(stream, pad_to_multiple=4, pack_window=2, fields=fields, max_samples_per_row=2))
    assert batch == {
        "input_ids": [[1, 2, 3, PAD, 4, 5, PAD, PAD]],
        "labels": [[1, 2, 3, -100, -100, 5, -100, -100]],
        "attention_mask": [[1, 1, 1, 0, 1, 1, 0, 0]],
        "sequence_id": [[0, 0, 0, -1, 1, 1, -1, -1]],
        "position_ids": [[0, 1, 2, 0, 0, 1, 0, 0]],
        "stream_ids": [[0, 0, 0, -1, 0, 0, -1, -1]],
        "cu_seqlens": [0, 4, 8, 8],
        "max_seqlen": 4,
    }


def test_labels_may_be_of_another_integer_type_and_in_bytes(tmp_path: Path) -> None:
    lengths = [[20, 7, 30]]
    want = None
    for number, form in enumerate(
        [
            {"labels": "int64"},
            {"labels": "int32", "dtype": "int64"},
            {"labels": "int64", "encoding": "bytes", "dtype": "int64"},
            {"labels": "int32", "encoding": "ndarray?"},
            {"labels": "int32", "compression": "zstd", "frame_bytes": 50, "other_column": True},
            {"labels": "int32", "encoding": "bytes", "dtype": "uint16"},
        ]
    ):
        directory = write_dataset(tmp_path / str(number), "a", lengths, **form)
        types = {"bytes_dtype": form.get("dtype", "uint16"), "labels_dtype": form["labels"]}
        stream = stoker.Stream(local=directory, **types)
        got = first_batch(load(stream, layout="pad", seq_len=30, batch_size=3))
        want = want or got
        assert got == want
        for row, (x, n) in enumerate(enumerate(lengths[0])):
            assert got["labels"][row][:n] == labels_at("a", 0, x, n).tolist()


# ---------------------------------------------------------------- nothing is lost
@st.composite
def packings(draw: st.DrawFn) -> dict[str, Any]:
    shards = st.lists(st.lists(st.integers(0, 14), max_size=7), min_size=1, max_size=4)
    return {
        "lengths": draw(shards.filter(lambda s: 0 < min((n for x in s for n in x if n), default=0) <= 8)),
        "overflow": draw(st.sampled_from(["split", "truncate", "drop"])),
        "pack_window": draw(st.integers(1, 25)),
        "shuffle": draw(st.booleans()),
        "shuffle_block": draw(st.integers(1, 9)),
        "seed": draw(st.integers(0, 2**64 - 1)),
        "max_samples_per_row": draw(st.none() | st.integers(1, 3)),
    }


@given(packings())
def test_over_whole_windows_every_sample_is_in_the_rows_in_full_or_counted(packing: dict[str, Any]) -> None:
    lengths, overflow = packing.pop("lengths"), packing["overflow"]
    all_samples = {(k, x): n for k, samples in enumerate(lengths) for x, n in enumerate(samples)}
    with tempfile.TemporaryDirectory() as root:
        stream = stoker.Stream(local=write_dataset(Path(root), "a", lengths), choose=10**6)
        with load(stream, lanes=1, **packing) as loader:
            batches, rows, begin, drawn = iter(loader), [], 0, 0
            while drawn < 2 * len(all_samples):
                stats = loader.stats()["streams"]["a"]
                next(batches)
                if (new_begin := loader.state_dict()["hints"][0][1]) != begin:  # all of the window before is delivered
                    complete, drawn, counted = len(rows), begin + packing["pack_window"], stats
                    begin = new_begin
                rows.append(loader.order(len(rows))[0])
        delivered = Counter(s[1:] for row in rows[:complete] for s in row)
        times = Counter()
        for (k, x), n in all_samples.items():
            kept = n if overflow == "split" else 0 if overflow == "drop" and n > 8 else min(n, 8)
            pieces = {(k, x, b, min(b + 8, kept)) for b in range(0, kept, 8)}
            found = {s for s in delivered if s[:2] == (k, x)}
            assert found in (pieces, set())  # in full, or not yet
            assert len({delivered[s] for s in pieces}) <= 1  # as often in all parts
            if pieces:
                times[k, x] = delivered[min(pieces)]
        assert max(times.values()) - min(times.values()) <= 1
        assert all(sum(s.token_end - s.token_begin for s in row) <= 8 for row in rows)
        assert all(len(row) <= (packing["max_samples_per_row"] or 8) for row in rows)
        assert counted["units"] == drawn  # every sample drawn is in a row, dropped or empty
        assert counted["units"] == sum(times.values()) + counted["dropped_samples"] + counted["empty_samples"]
        long = [n for s, n in all_samples.items() if n > 8 and overflow == "truncate" for _ in range(times[s])]
        assert (counted["truncated_samples"], counted["truncated_tokens"]) == (len(long), sum(long) - 8 * len(long))
        assert overflow == "drop" or counted["dropped_samples"] == 0


def test_all_samples_of_an_epoch_are_seen_by_all_ranks_together(tmp_path: Path) -> None:
    lengths = [[1 + (7 * k + x) % 12 for x in range(50)] for k in range(4)]
    stream = stoker.Stream(local=write_dataset(tmp_path, "a", lengths))
    steps, seen = set(), Counter()
    for rank in range(4):
        with load(
            stream, rank=rank, world_size=4, seq_len=12, batch_size=2, shuffle=True, epoch_size=2000, pack_window=50
        ) as loader:
            batches = list(loader)
            steps.add(len(batches))
            if rank == 0:
                rows = [row for b in range(len(batches)) for row in loader.order(b)]
                seen = Counter((s.shard, s.sample) for row in rows for s in row)
    assert len(steps) == 1
    assert len(seen) == 200 and max(seen.values()) - min(seen.values()) <= 2  # lanes are in the middle of windows


# ---------------------------------------------------------------- what shares a row
@pytest.mark.parametrize("mix", ["streams", "kind", "stream"])
def test_rows_are_shared_by_what_may_share_them(mix: str, tmp_path: Path) -> None:
    streams = [
        stoker.Stream(local=write_dataset(tmp_path, name, [[3, 2, 4] * 10], labels=labels))
        for name, labels in (("chat", "int32"), ("code", None), ("instruct", "int64"), ("web", None))
    ]
    with load(streams, mix_in_rows=mix, batch_size=4, seq_len=20) as loader:
        together = {frozenset(s.stream for s in row) for b in range(5) for row in loader.order(b)}
    kinds = [frozenset(["chat", "instruct"]), frozenset(["code", "web"])]
    if mix == "stream":
        assert together == {frozenset([name]) for name in ("chat", "code", "instruct", "web")}
    elif mix == "kind":
        assert all(any(row <= kind for kind in kinds) for row in together) and set(kinds) <= together
    else:
        assert any(row & kinds[0] and row & kinds[1] for row in together)


@pytest.mark.parametrize(
    ("weights_in", "layout"), [("tokens", "pack"), ("samples", "pack"), ("tokens", "pad"), ("tokens", "concat")]
)
def test_weights_count_samples_or_tokens(weights_in: str, layout: str, tmp_path: Path) -> None:
    streams = [
        stoker.Stream(local=write_dataset(tmp_path, "long", [[30, 40, 50] * 20]), proportion=0.3),
        stoker.Stream(local=write_dataset(tmp_path, "short", [[2, 3, 4] * 20], labels="int32"), proportion=0.7),
    ]
    with load(streams, weights_in=weights_in, layout=layout, seq_len=64, batch_size=8, epoch_size=50_000) as loader:
        for _ in zip(range(150), loader, strict=False):
            pass
        stats = loader.stats()["streams"]
    measure = "tokens" if weights_in == "tokens" else "units"
    total = sum(s[measure] for s in stats.values())
    for name, asked in (("long", 0.3), ("short", 0.7)):
        assert stats[name]["asked"] == pytest.approx(asked, abs=1e-4)
        assert stats[name]["achieved"] == stats[name][measure] / total
        assert stats[name]["achieved"] == pytest.approx(asked, abs=0.02)


def test_a_tiny_weight_is_honoured(tmp_path: Path) -> None:
    streams = [
        stoker.Stream(local=write_dataset(tmp_path, "much", [[4] * 50]), proportion=1),
        stoker.Stream(local=write_dataset(tmp_path, "little", [[4] * 5]), proportion=0.001),
    ]
    with load(streams, seq_len=16, batch_size=10, pack_window=100, epoch_size=20_000) as loader:
        units = {"much": 0, "little": 0}
        for _ in zip(range(400), loader, strict=False):
            pass
        units = {name: s["units"] for name, s in loader.stats()["streams"].items()}
    assert abs(units["little"] - sum(units.values()) / 1001) <= 2


# ---------------------------------------------------------------- cu_seqlens
def expected_cu_seqlens(rows: list[list[int]], multiple: int = 1) -> list[int]:
    """From sequence_id of all rows."""
    ends = [0]
    for number, row in enumerate(rows):
        begin = number * len(row)
        for i in range(1, len(row) + 1):
            is_end = i == len(row) or row[i] != row[i - 1]
            inside = multiple > 1 and row[i - 1] >= 0 and i % multiple != 0  # its padding belongs to the document
            if is_end and not inside and (row[i - 1] >= 0 or i == len(row) or i % multiple == 0):
                ends.append(begin + i)
    return ends


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("layout", ["pad", "concat", "pack"])
def test_cu_seqlens_ends_every_document_and_padding(layout: str, padding_side: str, tmp_path: Path) -> None:
    stream = stoker.Stream(local=write_dataset(tmp_path, "a", [[5, 3, 12, 7, 1, 9] * 4]))
    shapes = set()
    with load(
        stream,
        layout=layout,
        seq_len=12,
        batch_size=3,
        padding_side=padding_side,
        fields=["input_ids", "sequence_id", "cu_seqlens"],
        cu_seqlens_capacity=40,
    ) as loader:
        for batch in loader:
            assert list(batch) == ["input_ids", "sequence_id", "cu_seqlens", "max_seqlen"]
            ends = batch["cu_seqlens"].tolist()
            shapes.add(len(ends))
            want = expected_cu_seqlens(batch["sequence_id"].tolist())
            assert ends == want + [36] * (41 - len(want))
            assert batch["max_seqlen"] == max(b - a for a, b in pairwise(want))  # padding is a sequence too
            assert str(batch["cu_seqlens"].dtype) == "torch.int32"
    assert shapes == {41}


def test_cu_seqlens_of_documents_that_end_at_eos(tmp_path: Path) -> None:
    stream = stoker.Stream(
        local=write(tmp_path / "a", [{"tokens": [1, 2, 0, 3, 4, 5]}, {"tokens": [6, 0, 7, 8, 0, 9]}])
    )
    fields = ["input_ids", "sequence_id", "cu_seqlens"]
    batch = first_batch(load(stream, layout="concat", seq_len=12, documents="eos", eos_token_id=0, fields=fields))
    assert batch["cu_seqlens"][:6] == [0, 3, 8, 11, 12, 12] and batch["max_seqlen"] == 5
    batch = first_batch(load(stream, seq_len=12, documents="eos", eos_token_id=0, fields=fields, pack_window=2))
    ids, ends = batch["input_ids"][0], batch["cu_seqlens"]
    assert (
        ends[:6] in ([0, 3, 6, 8, 11, 12], [0, 2, 5, 6, 9, 12]) and ids[ends[1] - 1] == 0
    )  # samples end documents too


def test_more_documents_than_cu_seqlens_has_room_for_are_an_error(tmp_path: Path) -> None:
    stream = stoker.Stream(local=write_dataset(tmp_path, "a", [[2] * 20]))
    fields = ["input_ids", "cu_seqlens"]
    with (
        load(stream, fields=fields, cu_seqlens_capacity=3) as loader,
        pytest.raises(
            ValueError, match="more documents and paddings than cu_seqlens has room for: raise cu_seqlens_cap"
        ),
    ):
        next(iter(loader))
    with load(stream, fields=fields, max_samples_per_row=2) as loader:  # never: the default follows it
        assert len(next(iter(loader))["cu_seqlens"]) == 4


def test_streams_have_their_own_eos_and_finetuning_streams_documents_that_are_samples(tmp_path: Path) -> None:
    streams = [
        stoker.Stream(local=write(tmp_path / "a", [{"tokens": [1, 0, 2]}])),
        stoker.Stream(local=write(tmp_path / "b", [{"tokens": [1, 9, 2, 0]}]), eos_token_id=9),
        stoker.Stream(local=write(tmp_path / "c", [{"input_ids": [1, 0, 9, 2, 3], "labels": [-100, 0, 9, 2, 3]}])),
    ]
    fields = ["input_ids", "sequence_id", "stream_ids"]
    batch = first_batch(load(streams, seq_len=12, pack_window=3, documents="eos", eos_token_id=0, fields=fields))
    assert batch["stream_ids"] == [[2] * 5 + [1] * 4 + [0] * 3]
    assert batch["sequence_id"] == [[0] * 5 + [1, 1, 2, 2] + [3, 3, 4]]


# ---------------------------------------------------------------- packing lengths
@given(st.lists(st.integers(1, 40), max_size=80), st.integers(40, 60), st.none() | st.integers(1, 6))
def test_best_fit_is_the_models_and_never_overfills(lengths: list[int], seq_len: int, most: int | None) -> None:
    rows = best_fit(lengths, seq_len, max_samples_per_row=most)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= seq_len and len(row) <= (most or len(lengths)) for row in rows)
    if most is None:
        pieces = [(0, 0, i, 0, n) for i, n in enumerate(lengths)]
        assert rows == [[piece[2] for piece in row] for row in model_layout.best_fit(pieces, seq_len)]


def test_foundry_packer_gives_the_references_rows() -> None:
    """Golden rows recorded from llm-foundry 0.22's BinPackCollator."""
    packer = FoundryPacker(3, 10)
    assert packer.pack([7, 2, 5, 5, 3, 9, 1, 4]) == [[2, 3], [0, 4], [5, 6]]
    assert packer.leftovers == [[7, 1]]
    assert packer.pack([6, 6, 2, 2, 1, 8, 3]) == [[13, 10], [7, 1, 14], [8, 11]]
    assert packer.leftovers == [[9, 12]]
    assert packer.pack([1]) == [[9, 12], [15]]
    assert packer.leftovers == []
    packer = FoundryPacker(2, 5)
    assert packer.pack([1, 2, 4, 3]) == [[3, 1], [2, 0]]
    packer = FoundryPacker(2, 5)
    assert (packer.pack([1, 2, 4, 4]), packer.leftovers) == ([[2, 0], [3]], [[1]])
    assert packer.pack([1]) == [[1], [4]]
    packer = FoundryPacker(1, 5, max_leftover_bins_to_keep=1)
    assert (packer.pack([4, 3, 5]), packer.leftovers) == ([[2]], [[0]])


def foundry_pack(items: list[tuple[int, int]], bins: list[Any], rows: int, room: int, keep: int | None) -> list[Any]:
    """The reference's algorithm, from its description."""
    items = sorted(items, key=lambda item: -item[0])
    n = len(items)
    if n < max(0, rows - len(bins)):
        bins += [[size, [e]] for size, e in items]
    else:
        for k, (size, e) in enumerate(items):
            fits = [b for b, (used, _) in enumerate(bins) if used + size <= room]
            if n - k == max(0, rows - len(bins)) or not fits:
                bins.append([size, [e]])
            else:
                used, examples = bins.pop(fits[0])
                bins.append([used + size, [*examples, e]])
    bins.sort(key=lambda b: -b[0])
    out, left = bins[:rows], bins[rows:][:keep]
    bins[:] = left
    return [examples for _, examples in out]


@given(st.data())
def test_foundry_packer_is_the_algorithm(data: st.DataObject) -> None:
    rows, room = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 20))
    keep = data.draw(st.none() | st.integers(0, 3))
    packer, bins, first = FoundryPacker(rows, room, keep), [], 0
    for lengths in data.draw(st.lists(st.lists(st.integers(0, room), max_size=20), max_size=5)):
        want = foundry_pack(list(zip(lengths, range(first, first + len(lengths)), strict=True)), bins, rows, room, keep)
        first += len(lengths)
        assert packer.pack(lengths) == want
        assert packer.leftovers == [examples for _, examples in bins]


@given(st.data())
def test_foundry_packing_in_a_loader_is_the_packer_on_each_ranks_samples(data: st.DataObject) -> None:
    """And a state in the middle brings what is left over along."""
    lengths = data.draw(st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=9), min_size=1, max_size=3))
    keep, ratio = data.draw(st.none() | st.integers(0, 2)), data.draw(st.floats(1, 4))
    world_size = data.draw(st.integers(1, 3))
    arguments: dict[str, Any] = {
        "packing": "foundry",
        "packing_ratio": ratio,
        "max_leftover_bins_to_keep": keep,
        "batch_size": 2,
        "rank": 0,
        "world_size": world_size,
        "epoch_size": 10_000,
    }
    raw = int(2 * ratio)
    with tempfile.TemporaryDirectory() as root:
        stream = stoker.Stream(local=write_dataset(Path(root), "a", lengths))
        with load(
            stream,
            shuffle=True,
            layout="pad",
            **{**arguments, "packing": "best_fit", "packing_ratio": None, "max_leftover_bins_to_keep": None},
        ) as order:
            samples = [
                row[0] for b in range(30 * raw) for row in order.order(b)
            ]  # row R is of lane R mod L, one after another
        for rank in range(world_size):
            mine = samples[rank::world_size]
            packer = FoundryPacker(2, 8, keep)
            want = []
            for step in range(5):
                batch = [min(8, lengths[s.shard][s.sample]) for s in mine[step * raw : (step + 1) * raw]]
                want += [[mine[i][1:3] for i in row] for row in packer.pack(batch)]
            with load(stream, shuffle=True, **{**arguments, "rank": rank}) as loader:
                rows = [row for b in range(5) for row in loader.order(b)[rank::world_size]]
                assert [[s[1:3] for s in row] for row in rows] == want
                batches = [b["input_ids"].tolist() for _, b in zip(range(5), loader, strict=False)]
                at = data.draw(st.integers(1, 4))
            with load(stream, shuffle=True, **{**arguments, "rank": rank}) as loader:
                for _ in zip(range(at), loader, strict=False):
                    pass
                state = loader.state_dict()
            with load(stream, shuffle=True, **{**arguments, "rank": rank}) as loader:
                loader.load_state_dict(state)
                assert [b["input_ids"].tolist() for _, b in zip(range(5 - at), loader, strict=False)] == batches[at:]


# ---------------------------------------------------------------- bad input
def test_labels_of_another_length_than_the_tokens_are_an_error(tmp_path: Path) -> None:
    for name, labels in (("shorter", [1]), ("longer", [1, 2, 3])):
        directory = write(tmp_path / name, [{"input_ids": [1, 2], "labels": labels}])
        with (
            load(stoker.Stream(local=directory), layout="pad") as loader,
            pytest.raises(stoker.CorruptShardError, match=f"sample 0 of {directory}"),
        ):
            next(iter(loader))


@pytest.mark.parametrize(
    ("label", "changes", "message"),
    [
        (-5, {}, "has a negative number among its labels, which are -100 or token ids, but ids of this dtype, or"),
        (50, {"vocab_size": 50}, "has 50 among its labels, which are -100 or token ids, but vocab_size is 50"),
        (2**31, {"dtype": "int32"}, "has 2147483648 among its labels"),
    ],
)
def test_a_label_is_minus_100_or_a_token_id(label: int, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    directory = write(tmp_path / "a", [{"input_ids": [1, 2], "labels": [-100, label]}], labels_dtype="int64")
    for fields in (["input_ids", "labels"], ["input_ids"]):  # looked at in any case: they are counted
        with (
            load(stoker.Stream(local=directory), fields=fields, **changes) as loader,
            pytest.raises(stoker.CorruptShardError, match=message),
        ):
            next(iter(loader))


def test_a_stream_without_any_loss_is_refused(tmp_path: Path) -> None:
    directory = write(tmp_path / "a", [{"input_ids": [1, 2], "labels": [-100, -100]}])
    with pytest.raises(ValueError, match=f"stream 'a' has no loss token: all labels in {directory} are -100"):
        load(stoker.Stream(local=directory))


def test_samples_without_loss_are_counted(tmp_path: Path) -> None:
    samples = [{"input_ids": [1, 2], "labels": [-100, x]} for x in (2, -100, -100, 2)]
    with load(stoker.Stream(local=write(tmp_path / "a", samples)), layout="pad", batch_size=4) as loader:
        next(iter(loader))
        assert loader.batch_info["loss_tokens"] == {"a": 2}
        assert loader.stats()["streams"]["a"]["no_loss_samples"] == 2


@pytest.mark.parametrize("layout", ["pad", "concat", "pack"])
def test_a_kind_that_the_columns_contradict_is_refused(layout: str, tmp_path: Path) -> None:
    text = write(tmp_path / "text", [{"tokens": [1] * 9}])
    chat = write(tmp_path / "chat", [{"input_ids": [1] * 9, "labels": [1] * 9}])
    load(stoker.Stream(local=text, kind="text"), layout=layout)
    load(stoker.Stream(local=chat, kind="finetuning"), layout=layout)
    with pytest.raises(
        ValueError, match="'text' is said to be of kind 'finetuning', but its columns are those of 'text'"
    ):
        load(stoker.Stream(local=text, kind="finetuning"), layout=layout)
    with pytest.raises(
        ValueError, match="'chat' is said to be of kind 'text', but its columns are those of 'finetuning'"
    ):
        load(stoker.Stream(local=chat, kind="text"), layout=layout)
    with pytest.raises(ValueError, match="has kind='chat': it must be one of 'text', 'finetuning'"):
        stoker.Stream(local=chat, kind="chat")


def test_a_stream_of_which_every_sample_is_dropped_is_an_error(tmp_path: Path) -> None:
    long = stoker.Stream(local=write_dataset(tmp_path, "long", [[20] * 5]), overflow="drop")
    short = stoker.Stream(local=write_dataset(tmp_path, "short", [[2] * 5]))
    with (
        load([long, short], epoch_size=10**6) as loader,
        pytest.raises(
            ValueError, match=r'stream "long" delivers nothing: \d+ of its samples in a row have more than seq_len'
        ),
    ):
        for _ in loader:
            pass
    with (
        load(long, epoch_size=10**6) as loader,
        pytest.raises(ValueError, match=r"delivers nothing|finds no token"),
    ):
        next(iter(loader))


def test_a_sample_that_is_too_long_is_an_error_where_that_is_asked_for(tmp_path: Path) -> None:
    stream = stoker.Stream(local=write_dataset(tmp_path, "a", [[3, 20]]), overflow="error")
    with (
        load(stream) as loader,
        pytest.raises(ValueError, match=r'stream "a": sample 1 of .* has 20 tokens, more than seq_len 8'),
    ):
        list(loader)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pack_window": 0}, "pack_window is 0: it must be a whole number from 1"),
        ({"max_samples_per_row": 0}, "max_samples_per_row is 0"),
        ({"pad_to_multiple": 3}, "pad_to_multiple is 3: it must divide seq_len, 8"),
        ({"mix_in_rows": "all"}, "mix_in_rows is 'all'"),
        ({"packing": "first_fit"}, "packing is 'first_fit'"),
        ({"packing": "foundry"}, "packing='foundry' needs packing_ratio"),
        ({"packing": "foundry", "packing_ratio": 1 << 20, "batch_size": 99}, "a raw batch may have 16,777,216 samples"),
        ({"packing": "foundry", "packing_ratio": 0.5}, "a number of at least 1; it is 0.5"),
        (
            {"packing": "foundry", "packing_ratio": 2, "lanes": 3, "shuffle": True},
            "needs as many lanes as ranks.*are 3",
        ),
        (
            {"packing": "foundry", "packing_ratio": 2, "rank": 0, "world_size": 2},
            "are 1, as always with shuffle=False, and",
        ),
        ({"packing": "foundry", "packing_ratio": 2, "pack_window": 9}, "use packing='best_fit'"),
        ({"layout": "pad", "packing_ratio": 2}, "packing_ratio=2 needs layout 'pack'"),
        ({"layout": "concat", "overflow": "split"}, "overflow='split' does not go with layout 'concat'"),
        ({"packing": "foundry", "packing_ratio": 2, "overflow": "split"}, "which packing='foundry' does not have"),
        ({"packing": "foundry", "packing_ratio": 2, "max_samples_per_row": 2}, "use packing='best_fit'"),
        ({"packing_ratio": 2}, "packing_ratio=2 needs packing='foundry'"),
        ({"drop_last": False}, "drop_last=False does not go with layout 'pack'"),
        ({"layout": "pad", "max_samples_per_row": 2}, "max_samples_per_row=2 needs layout 'pack'"),
        ({"layout": "concat", "weights_in": "samples"}, "weights_in='samples' does not go with layout 'concat'"),
        ({"weights_in": "bytes"}, "weights_in is 'bytes'"),
        ({"cu_seqlens_capacity": 0}, "cu_seqlens_capacity is 0"),
        ({"overflow": "wrap"}, "overflow is 'wrap'"),
    ],
)
def test_options_of_pack_that_break_their_rule_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    stream = stoker.Stream(local=write_dataset(tmp_path, "a", [[10] * 10]))
    with pytest.raises(ValueError, match=message):
        load(stream, **changes)


def test_pack_needs_token_totals_which_stoker_index_counts_with_labels(tmp_path: Path) -> None:
    directory = write_dataset(tmp_path, "a", [[5, 6], [7]], labels="int32", totals=False, compression="zstd")
    with pytest.raises(ValueError, match="does not tell how many tokens"):
        load(stoker.Stream(local=directory))
    totals = count_tokens(directory)
    assert totals.tokens == [11, 7]
    assert totals.loss_tokens == [
        sum(int((labels_at("a", k, x, n) != -100).sum()) for x, n in enumerate(samples))
        for k, samples in enumerate([[5, 6], [7]])
    ]
    assert first_batch(load(stoker.Stream(local=directory)))["input_ids"][0][0] in [
        int(tokens_at("a", k, x, n)[0]) for k, samples in enumerate([[5, 6], [7]]) for x, n in enumerate(samples)
    ]


def test_a_damaged_hint_is_told(tmp_path: Path) -> None:
    stream = stoker.Stream(local=write_dataset(tmp_path, "a", [[3] * 50]))
    with load(stream) as loader:
        next(iter(loader))
        state = loader.state_dict()
    many = (1 << 40) - 1
    wrong = [[[0, 0, 10_000]], [[0, many, 1]], [[0, -1, 1]], [[0, 0]], [[7, 0, 1]], [[0, "x"]], ["x"], [1], {"0": 1}, 1]
    for hints in wrong:
        with load(stream) as loader, pytest.raises(ValueError, match="the state is damaged"):
            loader.load_state_dict({**state, "hints": hints})
            next(iter(loader))
    with load(stream) as loader, pytest.raises(ValueError, match="the state is damaged"):
        loader.load_state_dict({**state, "hints_row": 2})


def test_damaged_leftovers_of_a_hint_are_told(tmp_path: Path) -> None:
    stream = stoker.Stream(local=write_dataset(tmp_path, "a", [[3, 20] * 25]))
    arguments: dict[str, Any] = {"packing": "foundry", "packing_ratio": 2, "epoch_size": 1000}
    with load(stream, **arguments) as loader:
        for _ in zip(range(4), loader, strict=False):
            pass
        state = loader.state_dict()
    begin, rows = state["hints"][0][1:3]
    assert begin == 6
    for bins in ([[0, 1, 2, 3, 4, 5]], [[begin]], [[0], [0]], [[]], [["x"]], [0], [[-1]]):
        with load(stream, **arguments) as loader, pytest.raises(ValueError, match="the state is damaged"):
            loader.load_state_dict({**state, "hints": [[0, begin, rows, *bins]]})
            next(iter(loader))


def test_a_state_without_hints_walks_the_lanes_again_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream = stoker.Stream(local=write_dataset(tmp_path, "a", [[3, 5, 2, 4] * 30]))
    with load(stream, shuffle=True, lanes=3) as loader:
        batches = iter(loader)
        for _ in range(7):
            next(batches)
        state = loader.state_dict()
        want = [next(batches)["input_ids"].tolist() for _ in range(6)]
    assert [hint[0] for hint in state["hints"]] == [0, 1, 2]
    for hints, told in ((state["hints"], None), ([], "3 of the 3 lanes"), (state["hints"][1:2], "2 of the 3")):
        caplog.clear()
        with load(stream, shuffle=True, lanes=3) as loader:
            loader.load_state_dict({**state, "hints": hints})
            batches = iter(loader)
            assert [next(batches)["input_ids"].tolist() for _ in range(6)] == want
        assert (told or "") in caplog.text and bool(told) == bool(caplog.text)


def test_a_state_of_foundrys_packing_needs_the_same_number_of_ranks(tmp_path: Path) -> None:
    stream = stoker.Stream(local=write_dataset(tmp_path, "a", [[3, 5, 2, 4] * 30]))
    arguments: dict[str, Any] = {"packing": "foundry", "packing_ratio": 2, "epoch_size": 1000, "shuffle": True}
    with load(stream, batch_size=4, **arguments) as loader:
        next(iter(loader))
        state = loader.state_dict()
    with (
        load(stream, batch_size=2, rank=0, world_size=2, **arguments) as loader,
        pytest.raises(stoker.StateMismatchError, match="lanes was 1 and is 2"),
    ):
        loader.load_state_dict(state)


def test_a_batch_of_padding_has_max_seqlen_too(tmp_path: Path) -> None:
    stream = stoker.Stream(local=write_dataset(tmp_path, "a", [[3] * 5]))
    fields = ["input_ids", "cu_seqlens"]
    with load(stream, layout="pad", drop_last=False, rank=3, world_size=4, batch_size=2, fields=fields) as loader:
        batch = next(iter(loader))  # rows 3 and 7 of 8, of which 5 are samples
        assert batch["cu_seqlens"].tolist() == [0, 3, 8, 16, 16] and batch["max_seqlen"] == 8
    with load(stream, layout="pad", drop_last=False, rank=3, world_size=4, batch_size=1, fields=fields) as loader:
        assert [b["max_seqlen"] for b in loader] == [5, 8]  # of which the second is rows 5 to 7 only


def test_epochs_of_pack_follow_each_other_without_a_gap(tmp_path: Path) -> None:
    """And a state from the end of one, and an epoch left in the middle, go on where the order says."""
    stream = stoker.Stream(local=write_dataset(tmp_path, "a", [[3, 5, 2, 6, 4] * 8]), repeat=1)
    arguments: dict[str, Any] = {"batch_size": 3, "pack_window": 7, "shuffle": True, "lanes": 2}
    with load(stream, **arguments) as loader:
        rows = [row for b in range(20) for row in loader.order(b)]
        units, got, lengths = len(loader.dataset), [], set()
        for _ in range(3):
            lengths.add(len(loader))
            for batch in loader:
                got += batch["input_ids"].tolist()
        assert len(got) == 3 * units // 3 * 3 and len(lengths) == 2  # 20 rows an epoch, in batches of 3
        for row, segments in zip(got, rows, strict=False):
            want = [t for s in segments for t in tokens_at("a", s.shard, s.sample, [3, 5, 2, 6, 4][s.sample % 5])]
            assert row == want + [PAD] * (8 - len(want))
        state = loader.state_dict()
    with load(stream, **arguments) as loader:
        loader.load_state_dict(state)
        after = next(iter(loader))["input_ids"].tolist()
    with load(stream, **arguments) as loader:
        for _ in range(3):
            next(iter(loader))  # each epoch is left at once
        assert next(iter(loader))["input_ids"].tolist() == after


def test_an_epoch_left_early_goes_on_from_its_hints(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stream = stoker.Stream(local=write_dataset(tmp_path, "a", [[3, 5, 2, 6, 4] * 8]), repeat=3)
    with load(stream) as loader:
        for _ in zip(range(4), loader, strict=False):
            pass
        next(iter(loader))
        state = loader.state_dict()
        next(iter(loader))
    assert "there are no hints" not in caplog.text
    with load(stream) as loader:
        loader.load_state_dict({**state, "hints": []})
        again = next(iter(loader))["input_ids"].tolist()
        assert "there are no hints of 1 of the 1 lanes" in caplog.text
    with load(stream) as loader:
        loader.load_state_dict(state)
        assert next(iter(loader))["input_ids"].tolist() == again


@given(packings())
def test_a_windows_rows_depend_on_its_samples_alone(packing: dict[str, Any]) -> None:
    """They are best fit of its samples, whatever comes before or after."""
    lengths, window = packing.pop("lengths"), packing["pack_window"]
    packing["overflow"] = "split"
    most = packing.pop("max_samples_per_row")
    with tempfile.TemporaryDirectory() as root:
        stream = stoker.Stream(local=write_dataset(Path(root), "a", lengths), choose=10**6)
        plain = {name: packing[name] for name in ("shuffle", "shuffle_block", "seed")}
        with load(stream, layout="pad", lanes=1, **plain) as order:
            samples = [order.order(b)[0][0][1:3] for b in range(4 * window)]
        want: Counter[Any] = Counter()
        for begin in range(0, 4 * window, window):
            pieces = [
                (0, *sample, b, min(b + 8, n))
                for sample in samples[begin : begin + window]
                for n in [lengths[sample[0]][sample[1]]]
                for b in range(0, n, 8)
            ]
            sizes = [piece[4] - piece[3] for piece in pieces]
            want.update(tuple(pieces[i][1:] for i in row) for row in best_fit(sizes, 8, max_samples_per_row=most))
        with load(stream, lanes=1, max_samples_per_row=most, **packing) as loader:
            rows = [loader.order(b)[0] for b in range(want.total())]
        assert Counter(tuple(s[1:] for s in row) for row in rows) == want
