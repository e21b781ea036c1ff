"""Reading MDS token shards: what MosaicML Streaming itself wrote, and every form we know of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import stoker
from mds import tokens_at, write_dataset
from stoker.cli import main
from stoker.dataset import stream_files
from stoker.index import read_index


def read_all(directory: Path, bytes_dtype: str = "int64") -> list[dict[str, list[int]]]:
    from stoker import _core

    index = read_index(str(directory), bytes_dtype)
    store = _core.ShardStore([stream_files("any", index)], 1 << 20)
    return [
        {name: values.tolist() for name, values in store.read_sample(0, shard, sample).items()}
        for shard, samples in enumerate(index.samples)
        for sample in range(samples)
    ]


@pytest.mark.parametrize(
    ("name", "bytes_dtype"),
    [
        ("bytes_i64", "int64"),
        ("bytes_u16_empty_samples", "uint16"),
        ("extra_columns", "int64"),
        ("i32_zstd", "int64"),
        ("input_ids_labels", "int64"),
        ("u16_dynamic", "int64"),
        ("u16_static", "int64"),
    ],
)
def test_golden_tokens_read_back_exactly(golden: Path, name: str, bytes_dtype: str) -> None:
    expected = json.loads((golden / "golden_tokens" / "expected.json").read_text())[name]
    columns = {"input_ids": "tokens", "tokens": "tokens", "labels": "labels"}
    want = [{columns[k]: v for k, v in sample.items() if k in columns} for sample in expected]
    assert read_all(golden / "golden_tokens" / name, bytes_dtype) == want


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
@pytest.mark.parametrize("encoding", ["ndarray", "ndarray?", "bytes"])
@pytest.mark.parametrize("other_column", [False, True])
@pytest.mark.parametrize("zstd", [{}, {"compression": "zstd"}, {"compression": "zstd", "frame_bytes": 700}])
@pytest.mark.parametrize("layout", ["pad", "concat"])
def test_every_form_gives_the_same_batches(
    tmp_path: Path, dtype: str, encoding: str, other_column: bool, zstd: dict[str, Any], layout: str
) -> None:
    lengths = [[3, 0, 300, 255, 256], [], [65_536, 1], [7] * 9]
    arguments: dict[str, Any] = {"seq_len": 97, "batch_size": 4, "layout": layout, "shuffle_block": 3}
    plain = write_dataset(tmp_path / "plain", "web", lengths)
    form = {"dtype": dtype, "encoding": encoding, "other_column": other_column, **zstd}
    other = write_dataset(tmp_path / "other", "web", lengths, **form)
    with stoker.DataLoader(stoker.Stream(local=plain), **arguments) as want:
        with stoker.DataLoader(stoker.Stream(local=other, bytes_dtype=dtype), **arguments) as got:
            assert len(got) == len(want) > 2
            for a, b in zip(got, want, strict=True):
                assert all((a[name] == b[name]).all() for name in ("input_ids", "labels"))


def test_token_totals_come_from_the_bytes_of_the_shards_where_the_columns_allow_it(golden: Path) -> None:
    expected = json.loads((golden / "golden_tokens" / "expected.json").read_text())
    for name, dtype in [("bytes_i64", "int64"), ("bytes_u16_empty_samples", "uint16"), ("u16_static", "int64")]:
        index = read_index(str(golden / "golden_tokens" / name), dtype)
        assert index.tokens is not None
        assert index.tokens.sum() == sum(len(sample["tokens"]) for sample in expected[name])
    assert read_index(str(golden / "golden_tokens" / "u16_dynamic"), "int64").tokens is None


@pytest.mark.parametrize("form", [{}, {"compression": "zstd"}, {"other_column": True}])
def test_stoker_index_counts_what_the_index_does_not_tell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: dict[str, Any]
) -> None:
    lengths = [[3, 300], [], [9, 9]]
    directory = write_dataset(tmp_path, "web", lengths, totals=False, **form)
    arguments: dict[str, Any] = {"seq_len": 8, "batch_size": 2}
    with pytest.raises(ValueError, match=f"run `stoker index {directory}` once"):
        stoker.DataLoader(stoker.Stream(local=directory), **arguments)
    assert main(["index", str(directory)]) == 0
    assert "321 tokens in 3 shards" in capsys.readouterr().out
    with stoker.DataLoader(stoker.Stream(local=directory), **arguments) as loader:
        assert len(loader) == 321 // 8 // 2
        assert sum(1 for _ in loader) == len(loader)
    assert json.loads((directory / "stoker.json").read_text())["longest_sample"] == [300, 0, 9]

    index = json.loads((directory / "index.json").read_text())
    (directory / "index.json").write_text(json.dumps(index, indent=1))
    with pytest.raises(ValueError, match="run `stoker index` on the directory again"):
        stoker.DataLoader(stoker.Stream(local=directory), **arguments)
    assert main(["index", str(directory)]) == 0
    stoker.DataLoader(stoker.Stream(local=directory), **arguments)


def test_stoker_index_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(tmp_path)]) == 1
    assert f"there is no {tmp_path}/index.json" in capsys.readouterr().err


def test_a_total_that_a_shard_does_not_have_is_an_error(tmp_path: Path) -> None:
    directory = write_dataset(tmp_path, "web", [[3, 300]])
    index = json.loads((directory / "index.json").read_text())
    index["stoker"]["tokens"] = [304]
    (directory / "index.json").write_text(json.dumps(index))
    loader = stoker.DataLoader(stoker.Stream(local=directory), seq_len=8, batch_size=2)
    with pytest.raises(stoker.CorruptShardError, match="holds 303 tokens but the index says 304"):
        next(iter(loader))


def test_a_shard_decompressed_beside_its_compressed_file_is_used(tmp_path: Path) -> None:
    plain = write_dataset(tmp_path / "plain", "web", [[30, 20]])
    directory = write_dataset(tmp_path, "web", [[30, 20]], compression="zstd")
    (zipped,) = (directory / "0").iterdir()
    zipped.unlink()
    index = json.loads((directory / "index.json").read_text())
    raw = (plain / "0" / "shard.00000.mds").read_bytes()
    index["shards"][0]["raw_data"]["bytes"] = len(raw)  # the config in the plain shard is a few bytes shorter
    (directory / "index.json").write_text(json.dumps(index))
    (directory / "0" / "shard.00000.mds").write_bytes(raw)
    with stoker.DataLoader(stoker.Stream(local=directory), seq_len=10, batch_size=5, shuffle=False) as loader:
        assert next(iter(loader))["input_ids"].flatten().tolist() == [
            *tokens_at("web", 0, 0, 30),
            *tokens_at("web", 0, 1, 20),
        ]


def test_a_working_set_beyond_cache_memory_is_expanded_to_files_and_used_again(tmp_path: Path) -> None:
    directory = write_dataset(tmp_path, "web", [[100] * 20] * 3, compression="zstd")
    cache = tmp_path / "elsewhere"
    batches = []
    for cache_memory in ("1gb", 100, 100):
        with stoker.DataLoader(
            stoker.Stream(local=directory), seq_len=50, batch_size=4, cache_memory=cache_memory, cache_dir=cache
        ) as loader:
            batches.append([batch["input_ids"].numpy() for batch in loader])
        files = sorted(path for path in cache.rglob("*") if path.is_file())
        assert len(files) == (0 if cache_memory == "1gb" else 3)
    for other in batches[1:]:
        np.testing.assert_array_equal(batches[0], other)


def test_lanes_of_a_state_decide_what_is_expanded_as_lanes_given_do(tmp_path: Path) -> None:
    """On fewer ranks than a run began with, each plans many lanes, whose working sets do not fit."""
    directory = write_dataset(tmp_path, "web", [[100] * 20] * 9, compression="zstd")
    cache = tmp_path / "cache"
    arguments: dict[str, Any] = {"seq_len": 50, "batch_size": 4, "shuffle_block": 5, "cache_dir": cache}
    arguments["cache_memory"] = 20_000
    with stoker.DataLoader(stoker.Stream(local=directory), lanes=1, **arguments) as loader:
        next(iter(loader))
    assert not cache.exists()
    state = stoker.DataLoader(stoker.Stream(local=directory), lanes=9, **arguments).state_dict()
    with stoker.DataLoader(stoker.Stream(local=directory), **arguments) as loader:
        loader.load_state_dict(state)
        next(iter(loader))
    assert cache.exists()


def test_dataset_reads_single_samples(tmp_path: Path) -> None:
    directory = write_dataset(tmp_path, "web", [[5, 6], [7]], compression="zstd")
    loader = stoker.DataLoader(stoker.Stream(local=directory), seq_len=8, batch_size=2)
    sample = loader.dataset.read("web", 0, 1)
    assert sample["tokens"].dtype == np.uint16
    assert sample["tokens"].tolist() == tokens_at("web", 0, 1, 6).tolist()
    for stream, shard, number, what in [
        ("code", 0, 0, "there is no stream 'code'"),
        ("web", 2, 0, "shard of stream 'web' is 2"),
        ("web", 1, 1, "sample of shard 1 is 1"),
    ]:
        with pytest.raises(ValueError, match=what):
            loader.dataset.read(stream, shard, number)


@pytest.mark.parametrize("name", ["../../escape", "/escape", "a" * 300, "naïve/ü", ".."])
def test_expanded_shards_stay_inside_the_cache_directory(tmp_path: Path, name: str) -> None:
    directory = write_dataset(tmp_path, "web", [[100] * 20] * 3, compression="zstd")
    cache = tmp_path / "very" / "deep" / "cache"
    stream = stoker.Stream(local=directory, name=name)
    before = {p for p in tmp_path.rglob("*") if cache not in p.parents}
    with stoker.DataLoader(stream, seq_len=50, batch_size=4, cache_memory=0, cache_dir=cache) as loader:
        assert sum(1 for _ in loader) == len(loader)
    assert len([p for p in cache.rglob("*") if p.is_file()]) == 3
    assert {p for p in tmp_path.rglob("*") if cache not in p.parents} <= before | {cache, *cache.parents}


def test_a_total_counted_for_another_bytes_dtype_is_refused(tmp_path: Path) -> None:
    directory = write_dataset(tmp_path, "web", [[8, 16]], encoding="bytes", totals=False, other_column=True)
    assert main(["index", str(directory), "--bytes-dtype", "uint16"]) == 0
    assert len(stoker.DataLoader(stoker.Stream(local=directory, bytes_dtype="uint16"), seq_len=8, batch_size=1)) == 3
    with pytest.raises(ValueError, match="counted for bytes_dtype uint16, but the stream is read with int64"):
        stoker.DataLoader(stoker.Stream(local=directory), seq_len=8, batch_size=1)
