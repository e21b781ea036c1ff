"""MDSWriter against what MosaicML Streaming wrote from the same samples."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import stoker
from stoker import writer as writer_module

ARRAYS = {"ndarray:uint16": np.uint16, "ndarray:uint16:16": np.uint16, "ndarray:int32": np.int32}
ARRAYS |= {"ndarray:uint32": np.uint32, "ndarray:int64": np.int64}


def rewrite(golden_dir: Path, out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes a golden data set again with its own arguments; returns both indexes."""
    index = json.loads((golden_dir / "index.json").read_text())
    samples = json.loads((golden_dir.parent / "expected.json").read_text())[golden_dir.name]
    entry = index["shards"][0]
    columns = dict(zip(entry["column_names"], entry["column_encodings"], strict=True))
    bytes_dtype = np.uint16 if golden_dir.name == "bytes_u16_empty_samples" else np.int64
    with stoker.MDSWriter(
        columns=columns,
        out=out,
        compression=entry["compression"],
        hashes=entry["hashes"],
        size_limit=entry["size_limit"],
    ) as writer:
        for sample in samples:
            values = {}
            for name, value in sample.items():
                if columns[name] == "bytes":
                    value = np.array(value, bytes_dtype).tobytes()
                elif columns[name] in ARRAYS:
                    value = np.array(value, ARRAYS[columns[name]])
                values[name] = value
            writer.write(values)
    return index, json.loads((out / "index.json").read_text())


@pytest.mark.parametrize(
    "name", ["bytes_i64", "bytes_u16_empty_samples", "extra_columns", "input_ids_labels", "u16_dynamic", "u16_static"]
)
def test_raw_shards_and_index_are_the_references_byte_for_byte(golden: Path, tmp_path: Path, name: str) -> None:
    directory = golden / "golden_tokens" / name
    theirs, ours = rewrite(directory, tmp_path / "out")
    totals = ours.pop("stoker", None)
    assert (totals is None) == name.startswith("bytes")
    assert json.dumps(ours, sort_keys=True) == (directory / "index.json").read_text()
    for shard in theirs["shards"]:
        basename = shard["raw_data"]["basename"]
        assert (tmp_path / "out" / basename).read_bytes() == (directory / basename).read_bytes()


def test_compressed_shards_hold_the_references_bytes_in_frames_with_checksums(golden: Path, tmp_path: Path) -> None:
    directory = golden / "golden_tokens" / "i32_zstd"
    theirs, ours = rewrite(directory, tmp_path / "out")
    assert [s["raw_data"] for s in ours["shards"]] == [s["raw_data"] for s in theirs["shards"]]  # hashes too
    for shard in ours["shards"]:
        content = (tmp_path / "out" / shard["zip_data"]["basename"]).read_bytes()
        assert len(content) == shard["zip_data"]["bytes"]
        assert zstandard.get_frame_parameters(content).has_checksum
        assert len(zstandard.decompress(content)) == shard["raw_data"]["bytes"]


def test_totals_count_tokens_loss_tokens_and_the_longest_sample(tmp_path: Path) -> None:
    columns = {"input_ids": "ndarray:int32", "labels": "ndarray:int32"}
    with stoker.MDSWriter(columns=columns, out=tmp_path, size_limit=400, compression="zstd:7") as writer:
        for n in (5, 9, 60):
            labels = np.arange(n, dtype=np.int32)
            labels[:2] = -100
            writer.write({"input_ids": np.arange(n, dtype=np.int32), "labels": labels, "more": 1})
    totals = json.loads((tmp_path / "index.json").read_text())["stoker"]
    assert totals == {
        "version": 1,
        "tokens": [14, 60],
        "loss_tokens": [10, 58],
        "longest_sample": [9, 60],
        "zstd_frame_bytes": 1 << 20,
    }


def frames_of(content: bytes) -> list[tuple[int, bytes]]:
    """Of each zstd frame its compressed size, and what is in it."""
    frames = []
    while content:
        decompressor = zstandard.ZstdDecompressor().decompressobj()
        raw = decompressor.decompress(content)
        frames.append((len(content) - len(decompressor.unused_data), raw))
        content = decompressor.unused_data
    return frames


def test_large_shards_are_cut_into_frames_of_a_mebibyte(tmp_path: Path) -> None:
    with stoker.MDSWriter(columns={"tokens": "ndarray:uint8"}, out=tmp_path, compression="zstd") as writer:
        writer.write({"tokens": np.random.default_rng(0).integers(0, 9, 3_500_000).astype(np.uint8)})
    sizes = [len(raw) for _, raw in frames_of((tmp_path / "shard.00000.mds.zstd").read_bytes())]
    assert sizes[:3] == [1 << 20] * 3 and len(sizes) == 4


@given(
    st.lists(st.tuples(st.integers(1, 40), st.booleans()), min_size=1, max_size=12), st.sampled_from([1, 3]), st.data()
)
def test_no_frame_is_as_large_as_two_or_more_behind_it_together(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, bool]], level: int, data: st.DataObject
) -> None:
    """Which is what the package zstd 1.5.7.2 reads. The runs are random bytes, or all the same."""
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    raw = b"".join(rng.bytes(25 * length) if is_random else bytes(25 * length) for length, is_random in runs)
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer_module, "ZSTD_FRAME_BYTES", data.draw(st.sampled_from([100, 250])))
        options: dict[str, Any] = {"compression": f"zstd:{level}", "hashes": ["sha256"]}
        with stoker.MDSWriter(columns={"x": "bytes"}, out=out, **options) as writer:
            writer.write({"x": raw})
    (shard,) = json.loads((out / "index.json").read_text())["shards"]
    frames = frames_of((out / shard["zip_data"]["basename"]).read_bytes())
    whole = b"".join(raw for _, raw in frames)
    assert hashlib.sha256(whole).hexdigest() == shard["raw_data"]["hashes"]["sha256"]
    sizes = [size for size, _ in frames]
    assert all(sizes[i] < sum(sizes[i + 1 :]) for i in range(len(sizes) - 2))


def test_a_first_sample_larger_than_the_limit_leaves_an_empty_shard_as_the_reference_does(tmp_path: Path) -> None:
    with stoker.MDSWriter(columns={"tokens": "ndarray:uint8"}, out=tmp_path, size_limit=200) as writer:
        writer.write({"tokens": np.ones(1000, np.uint8)})
        writer.write({"tokens": np.ones(2, np.uint8)})
    shards = json.loads((tmp_path / "index.json").read_text())["shards"]
    assert [s["samples"] for s in shards] == [0, 1, 1]
    with stoker.DataLoader(stoker.Stream(local=tmp_path, name="x"), seq_len=501, batch_size=2) as loader:
        assert next(iter(loader))["input_ids"].sum() == 1002


def test_an_exception_in_the_block_leaves_no_index(tmp_path: Path) -> None:
    with pytest.raises(KeyError), stoker.MDSWriter(columns={"tokens": "ndarray:uint8"}, out=tmp_path) as writer:
        writer.write({"tokens": np.ones(3, np.uint8)})
        writer.write({})
    assert not (tmp_path / "index.json").exists()
    with pytest.raises(ValueError, match="finished"):
        writer.write({"tokens": np.ones(3, np.uint8)})


def test_no_sample_gives_an_empty_index(tmp_path: Path) -> None:
    stoker.MDSWriter(columns={"x": "int"}, out=tmp_path).finish()
    assert (tmp_path / "index.json").read_text() == '{"shards": [], "version": 2}'


def test_a_directory_that_holds_something_is_left_alone_unless_told(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(FileExistsError, match="Directory is not empty"):
        stoker.MDSWriter(columns={"x": "int"}, out=tmp_path)
    stoker.MDSWriter(columns={"x": "int"}, out=tmp_path, exist_ok=True).finish()
    assert [p.name for p in tmp_path.iterdir()] == ["index.json"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"columns": {"x": "float"}},
            TypeError,
            "passed column `x` with encoding `float` is unsupported. Supported enc",
        ),
        ({"columns": {"x": "ndarray:bool"}}, TypeError, "unsupported"),
        ({"columns": {"x": "ndarray:int8:0"}}, TypeError, "unsupported"),
        ({"columns": {"x": "ndarray::3"}}, TypeError, "unsupported"),
        ({"columns": {}}, ValueError, "columns is empty"),
        ({"compression": "zstd:23"}, ValueError, "Invalid compression: zstd:23"),
        ({"compression": "lzma"}, ValueError, "Invalid compression: lzma"),
        ({"hashes": ["sha1", "md5"]}, ValueError, "Hashes must be unique and in sorted order"),
        ({"hashes": ["crc"]}, ValueError, "Invalid hash: crc"),
        ({"size_limit": "4gb"}, ValueError, r"`size_limit` must be less than 2\*\*32"),
        ({"size_limit": -1}, ValueError, "`size_limit` must be greater than zero, instead, found as -1"),
        ({"out": ("a", "b", "c")}, ValueError, "Invalid `out` argument"),
        ({"size_limit": "4 apples"}, ValueError, "is not a size in bytes"),
        ({"colour": 1}, ValueError, "Invalid Writer argument"),
    ],
)
def test_arguments_that_break_their_rule_are_refused(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        stoker.MDSWriter(**{"columns": {"x": "int"}, "out": tmp_path, **arguments})


def test_bytes_of_the_wrong_size_for_a_fixed_column_are_refused(tmp_path: Path) -> None:
    writer = stoker.MDSWriter(columns={"x": "int"}, out=tmp_path)
    with pytest.raises(KeyError, match="Unexpected data size"):
        writer.write({"x": b"123"})
