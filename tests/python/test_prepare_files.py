"""Which files of a folder are data, how files are cut into pieces, and how much of them is in memory."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

import stoker
from preparing import write_lines
from stoker.preparation import sources
from stoker.preparation.sources import BadRowError, Row, find_parts, read_rows


def paths_of(*given: Path) -> list[str]:
    """The files that are read, without what is above the first source."""
    parts = find_parts(given)
    return [str(Path(piece.path).relative_to(given[0].parent)) for part in parts for piece in part]


# ---------------------------------------------------------------- folders
def test_a_folder_that_leads_back_to_itself_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "data" / "inner").mkdir(parents=True)
    write_lines(tmp_path / "data" / "inner" / "a.jsonl", [{"text": "x"}])
    (tmp_path / "data" / "inner" / "self").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "later").symlink_to(tmp_path / "data" / "inner")
    assert paths_of(tmp_path / "data") == ["data/inner/a.jsonl"]


def test_a_data_set_that_two_names_lead_to_is_read_once(tmp_path: Path) -> None:
    with stoker.MDSWriter(columns={"text": "str"}, out=tmp_path / "data" / "mds") as out:
        out.write({"text": "x"})
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data" / "mds")
    assert paths_of(tmp_path / "data") == ["data/again/index.json"]


def test_what_stands_beside_data_in_a_folder_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tmp_path / "data"
    for name in (".cache/a.jsonl", ".a.jsonl", "README.md", "dataset_info.json", "in/dataset_infos.json", "in/b.jsonl"):
        write_lines(data / name, [{"text": "x"}])
    for name in ("a.bin", "in/b.bin", "in/c.BIN.gz", "in/scores.xlsx", "LICENSE", "notes.md"):
        (data / name).write_bytes(b"x")
    with caplog.at_level(logging.WARNING, "stoker"):
        assert paths_of(data) == ["data/in/b.jsonl", "data/notes.md"]
    (record,) = caplog.records
    told = f"{data}: 8 files are not read: 3 .bin, 1 .xlsx, 1 README.md, 1 dataset_info.json, 1 dataset_infos.json, "
    assert record.getMessage() == told + "1 without a suffix."


@pytest.mark.parametrize("name", ["README.md", ".hidden.jsonl", "dataset_info.json"])
def test_what_the_user_names_is_data(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_lines(tmp_path / name, [{"text": "x"}])
    assert paths_of(path) == [name] and not caplog.records


# ---------------------------------------------------------------- compressed files
@pytest.mark.parametrize("compress", [zstandard.compress, gzip.compress])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_compressed_file_is_cut_into_few_pieces(
    compress: Callable[[bytes], bytes], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them decompresses all that is before it."""
    monkeypatch.setattr(sources, "_LEAST_PART", 100)
    monkeypatch.setattr(sources, "_MOST_PART", 200)
    monkeypatch.setattr(sources.text_files, "_MOST_WHOLE", 100)
    content = "".join(json.dumps({"text": f"word {i}"}) + "\n" for i in range(1000))
    (tmp_path / name).write_text(content)
    assert len([piece for part in find_parts([tmp_path / name]) for piece in part]) > 100
    path = tmp_path / f"{name}.{'zst' if compress is zstandard.compress else 'gz'}"
    path.write_bytes(compress(content.encode()))
    pieces = [piece for part in find_parts([path]) for piece in part]
    assert len(pieces) == 16
    texts = [row.values["text"] for piece in pieces for row in read_rows(piece) if isinstance(row, Row)]
    assert texts == [f"word {i}" for i in range(1000)] if "jsonl" in name else "".join(texts) == content


def test_a_zstd_frame_may_have_any_window(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28)  # as `zstd --long=28`
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    content = compressor.compress(b'{"text": "x"}\n') + compressor.flush()
    assert zstandard.get_frame_parameters(content).window_size == 1 << 28
    (tmp_path / "a.jsonl.zst").write_bytes(content)
    ((piece,),) = find_parts([tmp_path / "a.jsonl.zst"])
    assert [row.values for row in read_rows(piece) if isinstance(row, Row)] == [{"text": "x"}]


# ---------------------------------------------------------------- Parquet
@pytest.fixture
def write_parquet(tmp_path: Path) -> Callable[..., Path]:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def write(columns: dict[str, Any], **options: Any) -> Path:
        parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet", **options)
        return tmp_path / "a.parquet"

    return write


def test_a_large_row_group_is_not_read_into_memory(write_parquet: Callable[..., Path]) -> None:
    import pyarrow

    texts = [f"{i} " * 2000 for i in range(5000)]
    path = write_parquet({"text": texts}, use_dictionary=False, compression="none", write_batch_size=64)
    ((piece,),) = find_parts([path])
    assert piece.size_bytes > 40 << 20
    del texts
    before = pyarrow.total_allocated_bytes()
    most = max(pyarrow.total_allocated_bytes() - before for _ in itertools.islice(read_rows(piece), 0, None, 100))
    assert most < 20 << 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: b"no such file", "a.parquet is no Parquet file, or is cut"),
        (lambda content: content[: len(content) // 2], "a.parquet is no Parquet file, or is cut"),
        (lambda content: content[:100] + b"\xff" * 400 + content[500:], "a.parquet: from row 0 on"),
    ],
)
def test_a_parquet_file_that_is_broken_is_named(
    change: Callable[[bytes], bytes], message: str, write_parquet: Callable[..., Path], tokenizer: Path, tmp_path: Path
) -> None:
    path = write_parquet({"text": [f"text {i}" for i in range(1000)]}, compression="snappy")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        stoker.prepare(path, tmp_path / "out", tokenizer, processes=1)


def test_a_text_of_parquet_that_is_no_utf8_is_one_bad_row(write_parquet: Callable[..., Path]) -> None:
    path = write_parquet({"text": ["good", "bad!", "good"]}, compression="none", use_dictionary=False)
    path.write_bytes(path.read_bytes().replace(b"bad!", b"bad\xff"))
    ((piece,),) = find_parts([path])
    first, second, third = read_rows(piece)
    assert isinstance(first, Row) and isinstance(second, BadRowError) and isinstance(third, Row)
    assert str(second).startswith(f"{path}, row 1: ") and (third.number, third.values) == (2, {"text": "good"})
