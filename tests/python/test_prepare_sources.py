"""Sources of preparation that are more than rows of text: token ids, long text files, data sets of Hugging Face."""

from __future__ import annotations

import bz2
import gzip
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

import stoker
from preparing import END, contents, samples_of, write_lines, write_tokenizer
from stoker.encodings import parse_encoding
from stoker.preparation import sources
from stoker.preparation.sources import BadRowError, Reading, Row, find_parts, read_rows, text_files, token_files
from texts import END as END_TEXT
from texts import TEXTS, ids_of

VOCAB_SIZE = 1002
READING = Reading(eos_token_id=END, vocab_size=VOCAB_SIZE)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A tokenizer whose end-of-sequence token is END."""
    folder = tmp_path / "words"
    folder.mkdir()
    write_tokenizer(folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return folder


def documents(number: int = 40, seed: int = 0) -> list[list[int]]:
    """Ids of words, each document with END behind it."""
    rng = np.random.default_rng(seed)
    return [[*rng.integers(2, VOCAB_SIZE, rng.integers(0, 30)).tolist(), END] for _ in range(number)]


def line_of(found: Sequence[Sequence[int]]) -> list[int]:
    return [token for one in found for token in one]


def tokens_of(directory: Path) -> list[list[int]]:
    return [sample["tokens"] for sample in samples_of(directory)]


# ---------------------------------------------------------------- writers of token files
def write_npy(path: Path, found: Sequence[Sequence[int]], dtype: str = "uint16") -> Path:
    np.save(path / "a.npy", np.array(line_of(found), dtype))
    return path / "a.npy"


def write_nanogpt(path: Path, found: Sequence[Sequence[int]], dtype: str = "uint16") -> Path:
    """As nanoGPT's prepare.py: nothing but tokens."""
    np.array(line_of(found), dtype).tofile(path / "train.bin")
    return path / "train.bin"


def write_llmc(path: Path, found: Sequence[Sequence[int]], *, is_wide: bool = False) -> Path:
    """As llm.c's dev/data/data_common.py."""
    header = np.zeros(256, np.int32)
    header[:3] = (20240801, 7, len(line_of(found))) if is_wide else (20240520, 1, len(line_of(found)))
    tokens = np.array(line_of(found), np.uint32 if is_wide else np.uint16)
    (path / "fineweb.bin").write_bytes(header.tobytes() + tokens.tobytes())
    return path / "fineweb.bin"


def write_llmc_wide(path: Path, found: Sequence[Sequence[int]]) -> Path:
    return write_llmc(path, found, is_wide=True)


def write_megatron(path: Path, found: Sequence[Sequence[int]], dtype: str = "uint16") -> Path:
    """As Megatron-LM's IndexedDatasetBuilder: every other document is two sequences, if it is long enough."""
    sequences, starts = [], [0]
    for number, document in enumerate(found):
        cut = 3 if number % 2 and len(document) > 3 else len(document)
        sequences += [document[:cut], document[cut:]] if cut < len(document) else [document]
        starts.append(len(sequences))
    codes = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}
    itemsize = np.dtype(dtype).itemsize
    sizes = np.array([len(s) for s in sequences], np.int32)
    pointers = np.concatenate([[0], np.cumsum(sizes[:-1].astype(np.int64) * itemsize)])[: len(sizes)]
    (path / "text_document.idx").write_bytes(
        b"MMIDIDX\0\0"
        + struct.pack("<QBQQ", 1, codes[dtype], len(sizes), len(starts))
        + sizes.tobytes()
        + pointers.astype(np.int64).tobytes()
        + np.array(starts, np.int64).tobytes()
    )
    np.array(line_of(sequences), dtype).tofile(path / "text_document.bin")
    return path / "text_document.bin"


WRITERS = [write_npy, write_nanogpt, write_llmc, write_llmc_wide, write_megatron]


# ---------------------------------------------------------------- token files
@pytest.mark.parametrize("write", WRITERS)
def test_documents_of_token_files_are_those_that_were_written(
    write: Callable[..., Path], words: Path, tmp_path: Path
) -> None:
    found = documents()
    counts = stoker.prepare(write(tmp_path, found), tmp_path / "out", words, processes=1)
    assert tokens_of(tmp_path / "out") == found
    assert counts.samples == len(found) and counts.tokens == len(line_of(found)) and not counts.bad


@pytest.mark.parametrize("write", WRITERS)
@given(st.integers(1, 200), st.integers(1, 8), st.booleans())
def test_pieces_of_token_files_hold_each_document_once(
    write: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, piece_bytes: int, most: int, is_open: bool
) -> None:
    found = documents(20, seed=piece_bytes)
    if is_open:  # the last document does not end
        found[-1] = [5, 6, 7]
    path = str(write(tmp_path_factory.mktemp("tokens"), found))
    form = next(f for f in sources.FORMATS if f.find(path, is_named=True))
    pieces = form.cut(path, form.measure(path, READING), piece_bytes, READING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_files, "MOST_TOKENS", most)
        rows = [row for piece in pieces for row in read_rows(piece)]
    assert all(isinstance(row, Row) and len(row.values["tokens"]) <= most for row in rows)
    joined: list[list[int]] = []
    for row in rows:
        assert isinstance(row, Row)
        if row.is_begin:
            joined.append([])
        joined[-1] += row.values["tokens"].tolist()
    assert joined == found
    assert sum(row.is_end for row in rows if isinstance(row, Row)) == len(found)


def test_rows_of_a_two_dimensional_array_are_documents(words: Path, tmp_path: Path) -> None:
    array = np.arange(2, 62, dtype=np.int32).reshape(6, 10)
    np.save(tmp_path / "a.npy", array)
    stoker.prepare(tmp_path / "a.npy", tmp_path / "out", words, processes=1)
    assert tokens_of(tmp_path / "out") == array.tolist()


def test_without_an_end_a_token_file_is_one_document(tmp_path: Path) -> None:
    found = documents(5)
    path = write_npy(tmp_path, found)
    reading = Reading(eos_token_id=None, vocab_size=VOCAB_SIZE)
    rows = [row for part in find_parts([path], reading) for piece in part for row in read_rows(piece)]
    assert [row.values["tokens"].tolist() for row in rows if isinstance(row, Row)] == [line_of(found)]


def test_only_what_is_asked_for_stands_around_ids(words: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"tokens": [2, 3]}, {"tokens": [4]}])
    stoker.prepare(source, tmp_path / "plain", words, processes=1)
    stoker.prepare(source, tmp_path / "around", words, processes=1, bos_text="<s>", eos_text="<|endoftext|>")
    assert tokens_of(tmp_path / "plain") == [[2, 3], [4]]
    assert tokens_of(tmp_path / "around") == [[1, 2, 3, END], [1, 4, END]]


def test_a_token_file_without_a_header_in_a_folder_is_none(words: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    write_nanogpt(tmp_path / "raw", documents(3))
    with pytest.raises(FileNotFoundError, match=r".bin without a header must be named itself"):
        stoker.prepare(tmp_path / "raw", tmp_path / "out", words, processes=1)
    found = documents(4, seed=1)
    write_llmc(tmp_path / "raw", found)
    stoker.prepare(tmp_path / "raw", tmp_path / "out", words, processes=1)
    assert tokens_of(tmp_path / "out") == found


def test_both_files_of_megatron_are_one_data_set(words: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    path = write_megatron(tmp_path / "raw", found := documents(), dtype="int32")
    ways: list[Any] = [path, path.with_suffix(".idx"), [path, path.with_suffix(".idx")], tmp_path / "raw"]
    for number, source in enumerate(ways):
        stoker.prepare(source, tmp_path / f"out{number}", words, processes=1)
        assert tokens_of(tmp_path / f"out{number}") == found


@pytest.mark.parametrize(
    ("write", "break_it", "message"),
    [
        (write_npy, lambda content: content[:-1], "is no array of NumPy, or is cut"),
        (write_npy, lambda content: content + b"\0", "which are more than its array"),
        (write_npy, lambda content: b"\0" + content[1:], "is no array of NumPy"),
        (write_npy, lambda content: content.replace(b"<u2", b"<f2"), "holds an array of float16"),
        (write_nanogpt, lambda content: content[:-1], "is no whole number of uint16 tokens"),
        (write_nanogpt, lambda content: content[:-2] + b"\xff\xff", "has 65535 at 0, which is not in a vocabulary"),
        (write_llmc, lambda content: content[:-2], "bytes long. Fetch or write it again"),
        (write_llmc, lambda content: content[:4] + b"\2" + content[5:], "it should be version 1"),
        (write_megatron, lambda content: content[:-2], "they do not belong together"),
        (write_megatron, lambda content: b"", "they do not belong together"),
    ],
)
def test_token_files_that_are_broken_are_refused(
    write: Callable[..., Path], break_it: Callable[[bytes], bytes], message: str, words: Path, tmp_path: Path
) -> None:
    path = write(tmp_path, [*documents(3), [7]])
    path.write_bytes(break_it(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        stoker.prepare(path, tmp_path / "out", words, processes=1)


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, b"X", "is of no known format|must be named"),
        (9, b"\2", "it has version 2"),
        (17, b"\6", "type 6"),
        (17, b"\4", "do not lie one behind the other"),
        (18, b"\xff\xff\xff\xff\xff\xff\xff\xff", "is cut"),
        (34, b"\xff\xff\xff\xff", "do not lie one behind the other"),
        (-8, b"\x00", "are not made of its"),
        (-16, b"\xff", "are not made of its"),
    ],
)
def test_an_index_of_megatron_that_is_broken_is_refused(
    at: int, value: bytes, message: str, words: Path, tmp_path: Path
) -> None:
    path = write_megatron(tmp_path, documents(10)).with_suffix(".idx")
    content = bytearray(path.read_bytes())
    at = at % len(content)
    content[at : at + len(value)] = value
    path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        stoker.prepare(path, tmp_path / "out", words, processes=1)


def test_the_type_of_a_file_without_a_header_can_be_told(words: Path, tmp_path: Path) -> None:
    path = write_nanogpt(tmp_path, found := documents(), dtype="int64")
    stoker.prepare(path, tmp_path / "out", words, processes=1, token_dtype="int64")
    assert tokens_of(tmp_path / "out") == found
    with pytest.raises(ValueError, match="token_dtype is 'float32': it must be one of"):
        stoker.prepare(path, tmp_path / "out", words, processes=1, token_dtype="float32")


def test_a_vocabulary_that_is_too_large_for_uint16_needs_a_type(tmp_path: Path) -> None:
    path = write_nanogpt(tmp_path, documents())
    with pytest.raises(ValueError, match="does not fit into uint16: say by token_dtype what it holds"):
        find_parts([path], Reading(vocab_size=1 << 17))


def test_concatenated_rows_are_cut_from_token_files(words: Path, tmp_path: Path) -> None:
    path = write_npy(tmp_path, found := documents())
    stoker.prepare(path, tmp_path / "out", words, concat=16, processes=1)
    line = line_of(found)
    assert tokens_of(tmp_path / "out") == [line[at : at + 16] for at in range(0, len(line) - 15, 16)]


# ---------------------------------------------------------------- rows of ids
def test_a_token_data_set_is_prepared_again_in_another_form(words: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"text": "w1 w2"}, {"text": "w3"}])
    stoker.prepare(source, tmp_path / "one", words, processes=1)
    counts = stoker.prepare(
        tmp_path / "one", tmp_path / "two", words, processes=1, foundry_compatible=True, compression=None
    )
    assert tokens_of(tmp_path / "two") == tokens_of(tmp_path / "one") == [[3, 4, END], [5, END]]
    assert counts.text_bytes == 0
    index = json.loads((tmp_path / "two" / "index.json").read_text())
    assert index["shards"][0]["column_encodings"] == ["ndarray:int32"] and not index["shards"][0]["compression"]


def test_labels_beside_ids_are_kept(words: Path, tmp_path: Path) -> None:
    rows = [
        {"input_ids": [2, 3, 4], "labels": [-100, 3, 4]},
        {"input_ids": [5], "labels": [-100]},
        {"input_ids": [], "labels": []},
        {"input_ids": [6, 7]},
    ]
    source = write_lines(tmp_path / "a.jsonl", rows)
    counts = stoker.prepare(source, tmp_path / "out", words, processes=1)
    assert samples_of(tmp_path / "out") == [
        {"tokens": [2, 3, 4], "labels": [-100, 3, 4]},
        {"tokens": [6, 7], "labels": [6, 7]},
    ]
    assert counts.bad == {"NoLoss": 1, "EmptyText": 1} and counts.loss_tokens == 4
    stoker.prepare(tmp_path / "out", tmp_path / "again", words, processes=1)
    assert samples_of(tmp_path / "again") == samples_of(tmp_path / "out")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": [1, 2000]}, "column tokens has 2000 at 1, which is not in a vocabulary of 1002"),
        ({"tokens": [-1]}, "column tokens has -1 at 0"),
        ({"tokens": [1.5]}, "column tokens holds list, not a list of token ids"),
        ({"tokens": [True]}, "column tokens holds list, not a list of token ids"),
        ({"tokens": [[1], [2]]}, "column tokens holds list, not a list of token ids"),
        ({"tokens": [[1], [2, 3]]}, "column tokens holds list, not a list of token ids"),
        ({"tokens": 5}, "column tokens holds int, not a list of token ids"),
        ({"tokens": "w1"}, "column tokens holds str, not a list of token ids"),
        ({"tokens": None}, "column tokens holds NoneType, not a list of token ids"),
        ({"tokens": [1, None]}, "column tokens holds list, not a list of token ids"),
        ({"tokens": [1 << 70]}, "column tokens holds list, not a list of token ids"),
        ({"input_ids": [1, 2], "labels": [1]}, "there are 2 input_ids and 1 labels"),
        ({"input_ids": [1, 2], "labels": [1, -101]}, "column labels has -101 at 1"),
        ({"input_ids": [1, 2], "labels": "no"}, "column labels holds str"),
    ],
)
def test_ids_that_are_none_are_refused_with_their_place(
    row: dict[str, Any], message: str, words: Path, tmp_path: Path
) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{key: [1] for key in row}, row])
    with pytest.raises(ValueError, match=rf"a.jsonl, line 2: {message}"):
        stoker.prepare(source, tmp_path / "out", words, processes=1)
    counts = stoker.prepare(source, tmp_path / "skipped", words, processes=1, on_error="skip")
    assert counts.samples == 1 and counts.bad == {"BadExample": 1}


def test_columns_of_ids_can_be_named(words: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", [{"x": [2, 3], "y": [-100, 3]}])
    stoker.prepare(source, tmp_path / "out", words, columns={"input_ids": "x", "labels": "y"}, processes=1)
    assert samples_of(tmp_path / "out") == [{"tokens": [2, 3], "labels": [-100, 3]}]


def test_lists_of_parquet_are_ids(words: Path, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    found = documents(2000)
    for number, kind in enumerate((pa.list_(pa.uint16()), pa.large_list(pa.int64()))):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"tokens": pa.array(found, kind)}), path, row_group_size=300)
        stoker.prepare(path, tmp_path / f"out{number}", words, processes=1)
        assert tokens_of(tmp_path / f"out{number}") == found


@given(st.integers(0, 3), st.sampled_from(["", ":int32", ":uint16", ":int32:2,3"]), st.data())
def test_arrays_of_mds_come_back(seed: int, type_: str, data: st.DataObject) -> None:
    shape = (2, 3) if type_.count(":") == 2 else tuple(data.draw(st.lists(st.integers(1, 300), min_size=1, max_size=2)))
    dtype = type_.split(":")[1] if type_ else "int64"
    array = np.random.default_rng(seed).integers(0, 1000, shape).astype(dtype)
    encoding = parse_encoding(f"ndarray{type_}")
    content = encoding.encode(array)
    back = encoding.decode(content)
    assert back.dtype == array.dtype and np.array_equal(back, array)
    for cut in (content[:-1], content + b"\0", b""):
        with pytest.raises(ValueError, match="an array"):
            encoding.decode(cut)


# ---------------------------------------------------------------- MDS shards of any compression
def _compress(how: str, content: bytes) -> bytes:
    if how == "br":
        return bytes(pytest.importorskip("brotli").compress(content))
    if how == "snappy":
        return bytes(pytest.importorskip("snappy").compress(content))
    return {"bz2": bz2.compress, "gz": gzip.compress, "zstd": zstandard.compress}[how](content)


@pytest.mark.parametrize("how", ["br", "bz2", "gz", "snappy", "zstd"])
def test_mds_shards_of_every_compression_are_read(how: str, tokenizer: Path, tmp_path: Path) -> None:
    """As mosaicml-streaming writes them: a compressed file beside the index, which has both sizes."""
    with stoker.MDSWriter(columns={"text": "str"}, out=tmp_path / "mds") as out:
        for text in TEXTS:
            out.write({"text": text})
    index = json.loads((tmp_path / "mds" / "index.json").read_text())
    (entry,) = index["shards"]
    plain = tmp_path / "mds" / entry["raw_data"]["basename"]
    content = _compress(how, plain.read_bytes())
    plain.unlink()
    zipped = plain.with_name(f"{plain.name}.{how}")
    zipped.write_bytes(content)
    entry["zip_data"] = {"basename": zipped.name, "bytes": len(content), "hashes": {}}
    entry["compression"] = how
    (tmp_path / "mds" / "index.json").write_text(json.dumps(index))
    stoker.prepare(tmp_path / "mds", tmp_path / "out", tokenizer, processes=1)
    end = ids_of(tokenizer, END_TEXT)
    assert tokens_of(tmp_path / "out") == [ids_of(tokenizer, text) + end for text in TEXTS]

    zipped.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=rf"has {len(content) - 1} bytes, not {len(content)} as its index.json says"):
        stoker.prepare(tmp_path / "mds", tmp_path / "cut", tokenizer, processes=1)
    zipped.write_bytes(content[: len(content) // 2].ljust(len(content), b"\xff"))
    with pytest.raises(BadRowError, match=r"is cut or damaged|is not the shard that its index.json describes"):
        stoker.prepare(tmp_path / "mds", tmp_path / "damaged", tokenizer, processes=1)


# ---------------------------------------------------------------- long text files
LONG = "".join(f"{text} \r\n word{i}, 数{i}…\n\n" for i in range(200) for text in TEXTS)


@pytest.mark.parametrize("suffix", ["", ".zst", ".gz"])
def test_a_long_text_file_in_pieces_has_the_tokens_of_the_whole(
    suffix: str, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "_MOST_WHOLE", 1000)
    monkeypatch.setattr(sources, "_LEAST_PART", 700)
    path = tmp_path / f"long.txt{suffix}"
    path.write_bytes({"": bytes, ".zst": zstandard.compress, ".gz": gzip.compress}[suffix](LONG.encode()))
    counts = stoker.prepare(path, tmp_path / "out", tokenizer, processes=1, bos_text="<s>")
    found = tokens_of(tmp_path / "out")
    whole = [*ids_of(tokenizer, "<s>"), *ids_of(tokenizer, LONG), *ids_of(tokenizer, END_TEXT)]
    assert len(found) == counts.samples > 10
    assert line_of(found) == whole


@given(
    st.text(alphabet="ab1. \n\t\u00e9\u6570", max_size=200), st.integers(1, 30), st.integers(2, 20), st.integers(1, 40)
)
def test_pieces_of_text_are_the_whole_text(
    tmp_path_factory: pytest.TempPathFactory, text: str, piece_bytes: int, farthest: int, at_once: int
) -> None:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text.encode())
    (form,) = (f for f in sources.FORMATS if f.name == "text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "_MOST_WHOLE", 0)
        patch.setattr(text_files, "_MOST_AT_ONCE", at_once)
        patch.setattr(text_files, "FARTHEST", farthest)
        pieces = form.cut(str(path), len(text.encode()), piece_bytes, READING)
        rows = [row for piece in pieces for row in read_rows(piece)]
    assert all(isinstance(row, Row) for row in rows)
    assert "".join(row.values["text"] for row in rows if isinstance(row, Row)) == text
    ends = [(row.is_begin, row.is_end) for row in rows if isinstance(row, Row)]
    if text:
        assert [number for number, (begins, _) in enumerate(ends) if begins] == [0]
        assert [number for number, (_, is_end) in enumerate(ends) if is_end] == [len(ends) - 1]


def test_the_place_of_a_bad_byte_in_a_long_text_file_is_told(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "_MOST_WHOLE", 1000)
    content = bytearray(LONG.encode())
    content[5000:5000] = b" \xff "
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(BadRowError, match=r"a.txt contains chars that cannot be utf-8 decoded: byte 5001 of it"):
        stoker.prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer, processes=1)


# ---------------------------------------------------------------- Hugging Face
@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = pytest.importorskip("datasets")
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    module.disable_progress_bars()
    return module


def test_a_saved_data_set_is_read_split_by_split(
    datasets: Any, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_LEAST_PART", 100)
    first, second = (datasets.Dataset.from_dict({"text": texts}) for texts in (TEXTS, TEXTS[::-1]))
    first.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": first, "test": second}).save_to_disk(str(tmp_path / "both"))
    end = ids_of(tokenizer, END_TEXT)
    forward = [ids_of(tokenizer, text) + end for text in TEXTS]
    for source, split, want in (("one", None, forward), ("both", None, forward), ("both", "test", forward[::-1])):
        out = tmp_path / f"{source}-{split}"
        stoker.prepare(tmp_path / source, out, tokenizer, processes=1, split=split)
        assert tokens_of(out) == want
    with pytest.raises(ValueError, match="has the splits train, test: choose one of them instead of 'dev'"):
        stoker.prepare(tmp_path / "both", tmp_path / "out", tokenizer, processes=1, split="dev")


def test_a_data_set_by_name_is_what_load_dataset_makes_of_it(
    datasets: Any, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    rows = [{"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": t}]} for t in TEXTS]
    write_lines(tmp_path / "folder" / "train.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (tokenizer / "chat_template.jinja").write_text(template)
    try:
        stoker.prepare("hf:./folder", tmp_path / "by_name", tokenizer, processes=2)
        stoker.prepare(tmp_path / "folder" / "train.jsonl", tmp_path / "by_file", tokenizer, processes=1)
    finally:
        (tokenizer / "chat_template.jinja").unlink()
    assert samples_of(tmp_path / "by_name") == samples_of(tmp_path / "by_file")


def test_another_data_set_in_its_place_is_another_plan(datasets: Any, tokenizer: Path, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "saved"))
    stoker.prepare(tmp_path / "saved", tmp_path / "out", tokenizer, processes=1)
    before = contents(tmp_path / "out")
    stoker.prepare(tmp_path / "saved", tmp_path / "out", tokenizer, processes=1)
    assert contents(tmp_path / "out") == before
    datasets.Dataset.from_dict({"text": TEXTS[::-1]}).save_to_disk(str(tmp_path / "other"))
    (tmp_path / "saved").rename(tmp_path / "was")
    (tmp_path / "other").rename(tmp_path / "saved")
    with pytest.raises(FileExistsError, match="holds a data set of other sources or arguments"):
        stoker.prepare(tmp_path / "saved", tmp_path / "out", tokenizer, processes=1)
