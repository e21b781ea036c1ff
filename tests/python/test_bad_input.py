"""Bad input is a sentence that names the path, the rule and the value: never a crash, a hang, or wrong tokens."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

import stoker
from mds import write_dataset

LENGTHS = [[30, 4, 300], [25] * 8]


def open_loader(directory: Path, **changes: Any) -> stoker.DataLoader:
    arguments = {"seq_len": 10, "batch_size": 4, "layout": "pad", "epoch_size": 44, **changes}
    return stoker.DataLoader(stoker.Stream(local=directory, **arguments.pop("stream", {})), **arguments)


def edit_index(directory: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Changes index.json; what `edit` returns, if anything, takes the place of the whole."""
    path = directory / "index.json"
    index = json.loads(path.read_text())
    index = edit(index) or index
    path.write_text(index if isinstance(index, str) else json.dumps(index))


def setter(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets index[keys[0]][keys[1]]... to a value."""

    def edit(index: Any) -> None:
        for key in keys[:-1]:
            index = index[key]
        index[keys[-1]] = value

    return edit


# ---------------------------------------------------------------- the index
def test_a_missing_directory_or_index_says_where_it_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name in ("nowhere", "empty", "file"):
        with pytest.raises(
            FileNotFoundError, match=f"there is no {tmp_path / name}/index\\.json: a stream is a directory"
        ):
            open_loader(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"empty/train/index\.json"):
        open_loader(tmp_path / "empty", stream={"split": "train"})


ENTRY = ("shards", 0)
BAD_INDEXES: list[tuple[Any, str]] = [
    (lambda index: " ", "is not what it should be: .*truncated"),
    (lambda index: "{]", "is not what it should be: .*malformed"),
    (lambda index: "[1, 2]", "is not what it should be: Expected `object`, got `array`"),
    (lambda index: json.dumps(index)[:-40], "is not what it should be: .*truncated"),
    (lambda index: json.dumps(index).replace("mds", "\0"), "is not what it should be: .*invalid character"),
    (lambda index: {"version": 2}, "missing required field `shards`"),
    (setter("version", value=1), "has version 1: stoker reads version 2"),
    (setter("version", value="2"), "Expected `int`, got `str`"),
    (setter("shards", value={}), r"Expected `array`, got `object` - at `\$.shards`"),
    (setter(*ENTRY, "format", value="jsonl"), "shard 0 of .* is of format 'jsonl', version 2"),
    (setter(*ENTRY, "version", value=3), "shard 0 of .* is of format 'mds', version 3"),
    (setter(*ENTRY, "samples", value=-1), "shard 0 of .* has -1 samples: a shard has 0 to"),
    (setter(*ENTRY, "samples", value=2**32), "has 4294967296 samples"),
    (setter(*ENTRY, "samples", value=2**70), "has 1180591620717411303424 samples"),
    (setter(*ENTRY, "samples", value=1.5), "Expected `int`, got `float`"),
    (setter(*ENTRY, "raw_data", value=None), "Expected `object`, got `null`"),
    (setter(*ENTRY, "raw_data", "bytes", value=-1), "shard.00000.mds has -1 bytes: a file has 1 to 4294967295"),
    (setter(*ENTRY, "raw_data", "bytes", value=2**32), "has 4294967296 bytes"),
    (setter(*ENTRY, "raw_data", "basename", value="../x"), "has the file name '../x': it must stay inside"),
    (setter(*ENTRY, "raw_data", "basename", value="a/../../x"), "has the file name 'a/../../x'"),
    (setter(*ENTRY, "raw_data", "basename", value="/etc/passwd"), "has the file name '/etc/passwd'"),
    (
        setter(*ENTRY, "zip_data", value={"basename": "../x.zstd", "bytes": 9, "hashes": {}}),
        "has the file name '../x.zstd': it must stay inside",
    ),
    (setter(*ENTRY, "raw_data", "basename", value=""), "has the file name ''"),
    (setter(*ENTRY, "raw_data", "basename", value="a\0b"), r"has the file name 'a\\x00b'"),
    (setter(*ENTRY, "compression", value="zstd"), "has compression 'zstd' but zip_data None"),
    (setter(*ENTRY, "column_names", value=["tokens", "x"]), "lists 2 column names, 1 encodings and 1 sizes"),
    (setter(*ENTRY, "column_names", value=["text"]), "has the columns text, but none of tokens, input_ids"),
    (setter(*ENTRY, "column_encodings", value=["str"]), "has a column 'tokens' of encoding 'str'"),
    (setter(*ENTRY, "column_encodings", value=["ndarray:float32"]), "of encoding 'ndarray:float32'"),
    (setter(*ENTRY, "column_encodings", value=["ndarray:uint16:x"]), "of encoding 'ndarray:uint16:x'"),
    (setter(*ENTRY, "column_encodings", value=["ndarray:uint16:10"]), "and size variable"),
    (setter(*ENTRY, "column_encodings", value=["ndarray:uint16:2,5"]), "a one-dimensional `ndarray`"),
    (setter(*ENTRY, "column_sizes", value=[-5]), r"has the column sizes \[-5\]"),
    (
        setter("stoker", "version", value=2),
        "must be of version 1 and have one total from 0 to 4294967295 for each shard",
    ),
    (setter("stoker", "zstd_frame_bytes", value=-5), "has zstd_frame_bytes -5: it is null or 1 to 4294967295"),
    (setter("stoker", "tokens", value=[1]), "one total from 0 to 4294967295 for each shard"),
    (setter("stoker", "tokens", value=[1, -1]), "one total from 0 to 4294967295 for each shard"),
    (setter("stoker", "tokens", value=[2**62, 2**62]), "one total from 0 to 4294967295 for each shard"),
    (lambda index: {"version": 2, "shards": []}, "is empty: .* lists no sample"),
]


@pytest.mark.parametrize(("edit", "message"), BAD_INDEXES)
def test_an_index_that_breaks_its_rule_is_refused(tmp_path: Path, edit: Any, message: str) -> None:
    directory = write_dataset(tmp_path, "web", LENGTHS)
    edit_index(directory, edit)
    with pytest.raises(ValueError, match=message) as error:
        open_loader(directory)
    assert str(directory / "index.json") in str(error.value)


def test_a_compression_that_the_format_does_not_have_says_what_to_do(tmp_path: Path) -> None:
    directory = write_dataset(tmp_path, "web", LENGTHS)
    zipped = {"basename": "0/shard.00000.mds.lz4", "bytes": 5, "hashes": {}}
    edit_index(directory, setter(*ENTRY, "zip_data", value=zipped))
    edit_index(directory, setter(*ENTRY, "compression", value="lz4:1"))
    with pytest.raises(ValueError, match=r"compressed with 'lz4'.*decompress 0/shard\.00000\.mds\.lz4"):
        open_loader(directory)


@pytest.mark.parametrize("layout", ["pad", "concat"])
def test_an_empty_stream_is_refused(tmp_path: Path, layout: str) -> None:
    for name, lengths in {"none": [], "empty": [[]], "no tokens": [[0, 0]]}.items():
        directory = write_dataset(tmp_path, name, lengths)
        if (name, layout) == ("no tokens", "pad"):
            continue  # samples, if empty ones
        with pytest.raises(ValueError, match=f"stream '{name}' is empty.*{directory}"):
            open_loader(directory, layout=layout)


# ---------------------------------------------------------------- shards
def shard_of(directory: Path) -> Path:
    (path,) = (directory / "0").iterdir()
    return path


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def put(offset: int, content: bytes) -> Callable[[Path], None]:
    """Overwrites bytes; from the end where `offset` is negative."""

    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        at = offset if offset >= 0 else len(data) + offset
        data[at : at + len(content)] = content
        path.write_bytes(data)

    return damage


def leads_out(path: Path) -> None:
    outside = path.parent.parent.parent / "outside.mds"
    path.rename(outside)
    path.symlink_to(outside)


def is_a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def put_in_sample(offset: int, content: bytes) -> Callable[[Path], None]:
    """Overwrites bytes of the first sample: size word, type where the encoding has none, shape, values."""

    def damage(path: Path) -> None:
        put(struct.unpack("<I", path.read_bytes()[4:8])[0] + offset, content)(path)

    return damage


FRAME_OF_TERABYTES = bytes([0x28, 0xB5, 0x2F, 0xFD, 0xE0, 0, 0, 0, 0, 0, 4, 0, 0, 1, 0, 0])
FRAME = {"compression": "zstd"}
Corrupt = stoker.CorruptShardError
BAD_SHARDS: list[tuple[str, dict[str, Any], Callable[[Path], Any], type[Exception], str]] = [
    ("missing", {}, Path.unlink, FileNotFoundError, "cannot open this file: No such file"),
    (
        "a directory",
        {},
        lambda p: (p.unlink(), p.mkdir()),
        IsADirectoryError,
        "this is a directory, but a shard is a regular file",
    ),
    ("a loop of links", {}, is_a_loop, OSError, "cannot open this file: Too many levels"),
    ("a link that leads out", {}, leads_out, Corrupt, "symbolic link that leads out"),
    ("shorter", {}, cut, Corrupt, "is 884 bytes long but index.json says 885"),
    ("longer", {}, lambda p: os.truncate(p, 900), Corrupt, "is 900 bytes long"),
    ("empty", {}, lambda p: os.truncate(p, 0), Corrupt, "is 0 bytes long"),
    ("another count", {}, put(0, b"\x04"), Corrupt, "holds 4 samples but index.json says 3"),
    ("falling offsets", {}, put(8, b"\1\0\0\0"), Corrupt, "sample 0 of .* ends at byte 1, before it begins at byte"),
    ("an offset past the end", {}, put(8, b"\xff" * 4), Corrupt, "sample 1 of .*, before it begins at byte 4294967295"),
    ("an offset in the head", {}, put(4, b"\4\0\0\0"), Corrupt, "first sample at byte 4, inside its"),
    ("wrong last offset", {}, put(16, b"\xf0\xff\xff\xff"), Corrupt, "end at byte 4294967280 but"),
    ("ndim 2", {}, put_in_sample(4, b"\x08"), Corrupt, "sample 0 of .* ndarray of 2 dimensions; tokens have 1"),
    ("ndim 0", {}, put_in_sample(4, b"\x00"), Corrupt, "ndarray of 0 dimensions"),
    ("wrong shape", {}, put_in_sample(5, b"\x1f"), Corrupt, "states 31 values of type uint16 but holds 60"),
    ("wrong size word", {}, put_in_sample(0, b"\xff" * 4), Corrupt, "column of 4294967295 bytes"),
    ("unknown dtype", {"encoding": "ndarray?"}, put_in_sample(4, b"\x63"), Corrupt, "dtype code 99"),
    ("float dtype", {"encoding": "ndarray?"}, put_in_sample(4, b"\x12"), Corrupt, "dtype code 18"),
    ("odd bytes", {"encoding": "bytes", "bytes_dtype": "int64"}, lambda p: None, Corrupt, "is 64 bytes long, which no"),
    ("a large id", {"dtype": "int32"}, put(-4, b"\xff\xff\xff\x7f"), ValueError, "2147483647 among .* is 50000"),
    ("a negative id", {"dtype": "int32"}, put(-4, b"\xff" * 4), ValueError, "sample 2 of .* a negative number"),
    ("a corrupt frame", FRAME, put(-1, b"\0"), Corrupt, "has a corrupt zstd frame"),
    ("no frame", FRAME, put(0, b"MDS!"), Corrupt, "is not valid zstd data"),
    ("a cut frame", FRAME, cut, Corrupt, "bytes long but index.json says"),
]


@pytest.mark.parametrize("num_workers", [0, 3])
@pytest.mark.parametrize(
    ("form", "damage", "error", "message"), [case[1:] for case in BAD_SHARDS], ids=[case[0] for case in BAD_SHARDS]
)
def test_a_damaged_shard_is_an_error_that_names_it(
    tmp_path: Path, num_workers: int, form: dict[str, Any], damage: Any, error: type[Exception], message: str
) -> None:
    form = dict(form)
    stream = {"bytes_dtype": form.pop("bytes_dtype", "int64")}
    directory = write_dataset(tmp_path, "web", LENGTHS, **form)
    path = shard_of(directory)
    with open_loader(directory, num_workers=num_workers, stream=stream, vocab_size=50_000, seq_len=300) as loader:
        damage(path)  # behind the loader's back, as it may happen at any time
        with pytest.raises(error, match=message) as first:
            list(loader)
        assert str(path) in str(first.value)
        if isinstance(first.value, stoker.CorruptShardError):
            assert first.value.path == str(path)
            assert "web" in str(first.value)


def zstd_index(directory: Path) -> None:
    """Makes the index say what the compressed file's size is now."""
    path = shard_of(directory)
    edit_index(directory, setter(*ENTRY, "zip_data", "bytes", value=path.stat().st_size))


def unsized(raw: bytes) -> bytes:
    """A frame that does not state its content's size."""
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return compressor.compress(raw) + compressor.flush()


ZSTD_DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "more than the index says": (
        lambda raw: zstandard.compress(raw) + zstandard.compress(b"x"),
        "claims more than the 887 bytes|holds more when decompressed",
    ),
    "less than the index says": (
        lambda raw: zstandard.compress(raw[:-1]),
        "holds 886 bytes when decompressed but index.json says 887|ends before all",
    ),
    "terabytes": (lambda raw: zstandard.compress(raw) + FRAME_OF_TERABYTES, "claims more|not valid zstd data"),
    "terabytes first": (lambda raw: FRAME_OF_TERABYTES + zstandard.compress(raw), "not valid zstd data"),
    "more, sizes not stated": (lambda raw: unsized(raw + b"x"), "holds more when decompressed"),
    "less, sizes not stated": (lambda raw: unsized(raw[:-1]), "holds 886 bytes when|ends before all"),
    "cut, sizes not stated": (lambda raw: unsized(raw)[:-1], "has no whole zstd frame|ends before all"),
    "corrupt at the end": (lambda raw: checked(raw)[:-1] + b"\0", "checksum"),
    "nothing": (lambda raw: b"", "a file has 1 to"),
}


def checked(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(raw)


@pytest.mark.parametrize("cache_memory", ["1gb", 0])
@pytest.mark.parametrize("name", ZSTD_DAMAGES)
def test_frames_that_disagree_with_the_index_are_refused(tmp_path: Path, name: str, cache_memory: Any) -> None:
    make, message = ZSTD_DAMAGES[name]
    directory = write_dataset(tmp_path, "web", LENGTHS, compression="zstd")
    path = shard_of(directory)
    path.write_bytes(make(zstandard.decompress(path.read_bytes())))
    zstd_index(directory)
    with pytest.raises(ValueError, match=message) as error:
        list(open_loader(directory, cache_memory=cache_memory, cache_dir=tmp_path / "cache"))
    assert "shard.00000.mds" in str(error.value)


def test_links_that_lead_out_are_followed_where_that_is_asked_for(tmp_path: Path) -> None:
    directory = write_dataset(tmp_path, "web", LENGTHS)
    want = [batch["input_ids"].tolist() for batch in open_loader(directory)]
    linked = tmp_path / "link to web"
    linked.symlink_to(directory)  # the directory itself may be a link
    assert [b["input_ids"].tolist() for b in open_loader(linked, stream={"name": "web"})] == want
    (directory / "2").symlink_to(directory / "0")  # and so may what stays inside
    edit_index(directory, setter(*ENTRY, "raw_data", "basename", value="2/shard.00000.mds"))
    assert [b["input_ids"].tolist() for b in open_loader(directory)] == want
    leads_out(shard_of(directory))
    with pytest.raises(stoker.CorruptShardError, match=r"leads out of .*/web, to .*outside.mds.*follow_links=True"):
        list(open_loader(directory))
    assert [b["input_ids"].tolist() for b in open_loader(directory, stream={"follow_links": True})] == want


# ---------------------------------------------------------------- between construction and use
@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("change", ["delete", "truncate", "replace"])
def test_a_shard_that_changes_while_it_is_used_is_an_error_in_its_place_or_no_matter(
    tmp_path: Path, change: str, num_workers: int, compression: str | None
) -> None:
    """Batches that come are right. A deleted file that is mapped is still there; a cut one is an error, not SIGBUS."""
    lengths = [[3000] * 40, [3000] * 40]
    directory = write_dataset(tmp_path, "web", lengths, compression=compression, frame_bytes=20_000)
    arguments: dict[str, Any] = {
        "num_workers": num_workers,
        "prefetch_factor": 1,
        "layout": "concat",
        "epoch_size": None,
    }
    with open_loader(directory, **arguments) as loader:
        want = [batch["input_ids"] for batch in loader]
    with open_loader(directory, **arguments) as loader:
        iterator = iter(loader)
        got = [next(iterator)["input_ids"]]
        for path in [p for number in ("0", "1") for p in (directory / number).iterdir()]:
            if change == "delete":
                path.unlink()
            elif change == "truncate":
                os.truncate(path, 4096 if compression is None else 10)
            else:
                other = path.with_name("other")
                other.write_bytes(os.urandom(path.stat().st_size))
                other.replace(path)
        error = None
        try:
            got += [batch["input_ids"] for batch in iterator]
        except (stoker.CorruptShardError, OSError) as caught:
            error = caught
    assert all((a == b).all() for a, b in zip(got, want[: len(got)], strict=True))
    assert error is None or str(directory) in str(error)
    if change == "truncate" and compression is None:
        assert "was cut, or its disk failed, while it was being read" in str(error) or "bytes long" in str(error)
    if compression == "zstd" and num_workers == 0:  # with workers all may have been decoded ahead
        rules = {"delete": "No such file", "truncate": "is another file than it was", "replace": "is another file"}
        assert rules[change] in str(error)
    if error is None:
        assert len(got) == len(want)


# ---------------------------------------------------------------- states
def test_a_world_size_that_does_not_divide_the_global_batch_is_refused(tmp_path: Path) -> None:
    directory = write_dataset(tmp_path, "web", LENGTHS)
    with open_loader(directory, batch_size=4, rank=0, world_size=2) as loader:
        state = loader.state_dict()
    with open_loader(directory, batch_size=2, rank=0, world_size=3) as loader:
        with pytest.raises(
            stoker.StateMismatchError,
            match=r"global batch is 8 rows, .*6.*: 3 ranks do not divide it, 1, 2, 4 and 8 do",
        ):
            loader.load_state_dict(state)
    with open_loader(directory, batch_size=2, rank=0, world_size=4) as loader:
        loader.load_state_dict(state)


# ---------------------------------------------------------------- anything
def mutate(data: bytes, rng: random.Random) -> bytes:
    """Flips, cuts, lengthens, repeats or swaps in the way of a fuzzer."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(out) or 1)
        how = rng.randrange(6)
        if how == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif how == 1 and out:
            out[at] = rng.choice(b'\0\xff{}[]",:-.0129eE\\ntu')
        elif how == 2:
            del out[at : at + rng.choice([1, 4, 40])]
        elif how == 3:
            out[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice([1, 4])))
        elif how == 4:
            out[at:at] = out[at : at + rng.randrange(60)]
        else:
            out[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 2**31, 2**32 - 1, rng.randrange(2**32)]))
    return bytes(out)


@pytest.mark.parametrize("seed", range(8))
def test_a_mutated_index_is_refused_or_right_or_fails_in_its_place(tmp_path: Path, seed: int) -> None:
    """Nothing but the loader's own errors comes, and a batch that comes holds tokens of the shards."""
    rng = random.Random(seed)
    directory = write_dataset(
        tmp_path, "web", LENGTHS, compression=rng.choice([None, "zstd"]), other_column=seed % 2 > 0
    )
    original = (directory / "index.json").read_bytes()
    with open_loader(directory) as loader:
        rows = {tuple(row) for batch in loader for row in batch["input_ids"].tolist()}
    errors = []
    for _ in range(150):
        (directory / "index.json").write_bytes(mutate(original, rng))
        try:
            with open_loader(directory, num_workers=0) as loader:
                for batch in loader:
                    assert {tuple(row) for row in batch["input_ids"].tolist()} <= rows | {(0,) * 10}
        except (ValueError, OSError) as error:
            errors.append(str(error))
    assert len(errors) > 20
    assert all(str(directory) in error or "'web'" in error for error in errors)


@pytest.mark.parametrize("seed", range(8))
def test_a_mutated_shard_is_refused_or_differs_in_token_values_only(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    compression = rng.choice([None, "zstd"])
    directory = write_dataset(tmp_path, "web", LENGTHS, compression=compression, frame_bytes=200)
    path = shard_of(directory)
    original = path.read_bytes()
    errors = []
    for _ in range(150):
        path.write_bytes(mutate(original, rng))
        field = "raw_data" if compression is None else "zip_data"
        edit_index(directory, setter(*ENTRY, field, "bytes", value=path.stat().st_size))
        try:
            with open_loader(directory, num_workers=rng.choice([0, 2])) as loader:
                for batch in loader:
                    assert np.all(batch["input_ids"].numpy() < 1 << 16)
        except (ValueError, OSError) as error:
            errors.append(str(error))
    assert len(errors) > 20
    assert all(str(path) in error for error in errors)
