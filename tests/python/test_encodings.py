"""Encodings, compressions and hashes, both ways, against what MosaicML Streaming wrote and read."""

from __future__ import annotations

import hashlib
import io
import json
import math
import pickle
import shutil
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stoker
from stoker import encodings
from stoker.compressions import compress, compressions, decompress, find_compression
from stoker.encodings import (
    Encoding,
    get_mds_encoded_size,
    get_mds_encodings,
    is_mds_encoding,
    is_mds_encoding_safe,
    mds_decode,
    mds_encode,
    parse_encoding,
    register_encoding,
)
from stoker.encodings.samples import SampleLayout, read_offsets
from stoker.hashes import get_hash

Image = pytest.importorskip("PIL.Image")

PIXELS = Image.frombytes("L", (3, 2), bytes(range(6)))
COLOURS = Image.frombytes("RGB", (2, 2), bytes(range(12)))
SCALARS = ["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]
# Values of the records that their repr does not tell.
ARRAYS = {
    "array([[0., 1., 2.],": np.arange(6, dtype=np.float32).reshape(2, 3),
    "array([0, 1, 2], dtype=int16)": np.arange(3, dtype=np.int16),
    "array([[1, 1, 1],": np.ones((2, 3), np.uint8),
    "array([[0, 0, 0, 0, 0,": np.zeros((1, 256), np.int8),
    "array([[0, 0, 0, ...,": np.zeros((1, 65536), np.uint8),
}


def records(golden: Path) -> list[tuple[str, Any, str]]:
    """Encoding, value and hexadecimal bytes of each record."""
    images = iter([PIXELS, COLOURS])
    out = []
    for name, text, hexadecimal in json.loads((golden / "golden_encodings.json").read_text()):
        arrays = [array for head, array in ARRAYS.items() if text.startswith(head)]
        if name == "pil":
            value: Any = next(images)
        elif name == "list[pil]":
            value = [PIXELS, COLOURS]
        elif name == "jpegarray":
            value = [b"abc", b"de"]
        else:
            value = arrays[0] if arrays else eval(text, {"Decimal": Decimal})
        out.append((name, value, hexadecimal))
    return out


def assert_same(got: Any, want: Any) -> None:
    """Of one type and value; images by their pixels."""
    assert type(got) is type(want)
    if isinstance(want, np.ndarray):
        assert got.dtype == want.dtype and np.array_equal(got, want)
    elif isinstance(want, list):
        assert len(got) == len(want)
        for one, other in zip(got, want):
            assert_same(one, other)
    elif isinstance(want, Image.Image):
        assert (got.mode, got.size, got.tobytes()) == (want.mode, want.size, want.tobytes())
    else:
        assert got == want


# ---------------------------------------------------------------- records of the reference
def test_values_become_the_recorded_bytes(golden: Path) -> None:
    for name, value, hexadecimal in records(golden):
        encoded = mds_encode(name, value).hex()
        assert encoded[:64] + "..." == hexadecimal if hexadecimal.endswith("...") else encoded == hexadecimal
        assert get_mds_encoded_size(name) in (None, len(encoded) // 2)
    assert len(records(golden)) == 29


def test_recorded_bytes_become_the_values(golden: Path) -> None:
    for name, value, hexadecimal in records(golden):
        if hexadecimal.endswith("...") or name == "jpegarray":  # cut; or no files of JPEG
            continue
        want = getattr(np, name)(value) if name in SCALARS else value
        assert_same(mds_decode(name, bytes.fromhex(hexadecimal)), want)


def golden_sample(k: int) -> dict[str, Any]:
    """Sample k of golden_mds (tests/golden/README.md)."""
    return {
        "b": b"\xff" * k,
        "f32": np.float32(1.5 * k),
        "i": 7 - k,
        "js": {"a": [k, None]},
        "l": [PIXELS, COLOURS][: k % 3],
        "nd": k * np.arange(6, dtype=np.float32).reshape(2, 3),
        "nds": np.full((2, 3), k, np.uint8),
        "ndt": np.arange(k + 1, dtype=np.int16),
        "pil": PIXELS,
        "s": "hé" * k,
        "sd": Decimal(f"{k}.{k}0"),
        "sf": k * 0.1,
        "si": 10 ** (10 + k),
        "u8": np.uint8(k),
    }


@pytest.mark.parametrize("folder", ["plain", "zstd"])
def test_recorded_samples_are_read(golden: Path, folder: str) -> None:
    directory = golden / "golden_mds" / folder
    got = []
    for entry in json.loads((directory / "index.json").read_text())["shards"]:
        files = [entry["raw_data"], entry["zip_data"]]
        content = (directory / (files[1] or files[0])["basename"]).read_bytes()
        raw = content if files[1] is None else decompress(content, entry["compression"])
        for file, data in zip(files, (raw, content)):
            for algorithm, digest in (file or {"hashes": {}})["hashes"].items():
                assert get_hash(algorithm)(data) == digest
        layout = SampleLayout(entry["column_names"], entry["column_encodings"], entry["column_sizes"])
        offsets = read_offsets(raw, entry["samples"], entry["raw_data"]["bytes"])
        assert offsets is not None
        got += [layout.decode(raw[offsets[i] : offsets[i + 1]]) for i in range(entry["samples"])]
    assert len(got) == 6
    for k, sample in enumerate(got):
        want = golden_sample(k)
        assert list(sample) == list(want)
        for name, value in want.items():
            assert_same(sample[name], value)


@pytest.mark.parametrize("folder", ["plain", "zstd"])
def test_recorded_samples_are_written_byte_for_byte(golden: Path, tmp_path: Path, folder: str) -> None:
    directory = golden / "golden_mds" / folder
    index = json.loads((directory / "index.json").read_text())
    entry = index["shards"][0]
    columns = dict(zip(entry["column_names"], entry["column_encodings"]))
    arguments = {name: entry[name] for name in ("compression", "hashes", "size_limit")}
    with stoker.MDSWriter(columns=columns, out=tmp_path, **arguments) as out:
        for k in range(6):
            out.write(golden_sample(k))
    if folder == "plain":
        assert (tmp_path / "index.json").read_bytes() == (directory / "index.json").read_bytes()
    for ours, theirs in zip(json.loads((tmp_path / "index.json").read_text())["shards"], index["shards"]):
        assert {**ours, "zip_data": None} == {**theirs, "zip_data": None}  # the hashes of the raw bytes, too


# ---------------------------------------------------------------- encodings
def test_the_names_are_those_of_the_format() -> None:
    others = ["bytes", "str", "int", "ndarray", "str_int", "str_float", "str_decimal", "pkl", "json"]
    images = ["pil", "jpeg", "png", "jpeg_array", "jpegarray", "list[pil]", "list[jpeg]", "list[png]"]
    assert get_mds_encodings() == {*others, *images, *SCALARS}
    assert [name for name in get_mds_encodings() if not is_mds_encoding_safe(name)] == ["pkl"]
    for name in (*get_mds_encodings(), "ndarray:uint16", "ndarray:uint16:2,3", "ndarray:"):
        assert is_mds_encoding(name)
    for name in ("float", "ndarray:bool", "ndarray::2", "ndarray:int8:0", "ndarray:int8:x", "ndarray:int8:", "str:3"):
        assert not is_mds_encoding(name)
        with pytest.raises(ValueError, match=rf"Unsupported encoding: {name}\."):
            mds_decode(name, b"")


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("int", np.int64(3), AttributeError, "data should be of type <class 'int'>, but instead, found as"),
        ("int", 1 << 63, OverflowError, "too large"),
        ("str", 5, AttributeError, "data should be of type <class 'str'>"),
        ("str", "\ud800", UnicodeEncodeError, "surrogates"),
        ("bytes", "x", AttributeError, "data should be of type <class 'bytes'>"),
        ("uint8", 256, OverflowError, "out of bounds"),
        ("str_int", 1.0, AttributeError, "int"),
        ("str_float", 1, AttributeError, "float"),
        ("str_decimal", 1.0, AttributeError, "Decimal"),
        ("pil", "x", AttributeError, "Image"),
        ("jpeg", "x", AttributeError, "Image"),
        ("list[png]", (PIXELS,), AttributeError, "list"),
        ("json", {1, 2}, TypeError, "not JSON serializable"),
        ("ndarray", [1], AttributeError, "ndarray"),
        ("ndarray", np.array(3), ValueError, "Attempting to encode a scalar with NDArray encoding"),
        ("ndarray", np.array([]), ValueError, "Attempting to encode a numpy array with 0 elements"),
        ("ndarray", np.array([True]), ValueError, "Unsupported dtype: bool"),
        ("ndarray", np.ones([1] * 64, np.int8), ValueError, "too many axes"),
        ("ndarray:uint16", np.array([1], np.int32), ValueError, "Wrong dtype: expected uint16, got int32"),
        ("ndarray:uint16:2", np.array([1], np.uint16), ValueError, "Wrong shape: expected \\(2,\\), got \\(1,\\)"),
    ],
)
def test_values_that_do_not_suit_are_refused(name: str, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mds_encode(name, value)


def test_what_is_bytes_already_stays_so() -> None:
    for name in get_mds_encodings():
        assert mds_encode(name, b"as it is") == b"as it is"


@pytest.mark.parametrize("name", ["ndarray", "ndarray:int16", "ndarray:int16:2"])
def test_big_endian_arrays_are_written_little_endian(name: str) -> None:
    array = np.array([1, 300], ">i2")
    assert mds_encode(name, array) == mds_encode(name, array.astype("<i2"))
    assert_same(mds_decode(name, mds_encode(name, array)), array.astype("<i2"))


@given(
    st.sampled_from(SCALARS),
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
    st.sampled_from(["all", "dtype", "none"]),
    st.booleans(),
)
def test_arrays_come_back(dtype: str, shape: list[int], told: str, in_fortran_order: bool) -> None:
    name = {"all": f"ndarray:{dtype}:{','.join(map(str, shape))}", "dtype": f"ndarray:{dtype}", "none": "ndarray"}[told]
    array = np.random.default_rng(len(shape)).integers(0, 100, shape).astype(dtype)
    content = mds_encode(name, np.asfortranarray(array) if in_fortran_order else array)
    got = mds_decode(name, content)
    assert_same(got, array)
    assert not got.flags.writeable and got.flags.aligned
    for broken in (content[:-1], content + b"\0", b""):
        with pytest.raises(ValueError, match="an array"):
            mds_decode(name, broken)


def test_empty_arrays_are_read_where_others_wrote_them() -> None:
    assert mds_decode("ndarray:int16", encodings.EMPTY_ARRAY).tolist() == []


@given(st.one_of(st.integers(), st.floats(allow_nan=False), st.decimals(allow_nan=False)))
def test_numbers_as_text_come_back_exactly(value: Any) -> None:
    name = {int: "str_int", float: "str_float", Decimal: "str_decimal"}[type(value)]
    assert_same(mds_decode(name, mds_encode(name, value)), value)


def test_json_holds_what_python_writes_and_arrays_as_lists() -> None:
    assert mds_encode("json", {"é": [math.nan, np.array([1]).tolist()]}) == b'{"\\u00e9": [NaN, [1]]}'
    assert mds_decode("json", mds_encode("json", np.arange(4).reshape(2, 2))) == [[0, 1], [2, 3]]


def test_pickles_hold_anything() -> None:
    value = {"a": {1, 2}, "b": Decimal("1.0")}
    assert mds_encode("pkl", value) == pickle.dumps(value)
    assert mds_decode("pkl", mds_encode("pkl", value)) == value


@pytest.mark.parametrize("name", ["int", "uint16", "float64", "str_int", "str_float", "str_decimal", "json", "pil"])
def test_bytes_that_no_value_has_are_refused(name: str) -> None:
    with pytest.raises(ValueError):
        mds_decode(name, b"\xff\xff\xff")


# ---------------------------------------------------------------- images
def test_images_come_back(tmp_path: Path) -> None:
    for name, exact in (("pil", True), ("png", True), ("jpeg", False)):
        for image in (PIXELS, COLOURS):
            got = mds_decode(name, mds_encode(name, image))
            assert (got.mode, got.size) == (image.mode, image.size)
            assert not exact or got.tobytes() == image.tobytes()
            (of_list,) = mds_decode(f"list[{name}]", mds_encode(f"list[{name}]", [image]))
            assert of_list.tobytes() == got.tobytes()
    assert mds_decode("list[pil]", mds_encode("list[pil]", [])) == []


def test_a_jpeg_that_was_read_from_a_file_is_copied(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    COLOURS.save(path, format="JPEG", quality=10)
    content = path.read_bytes() + b"behind its end"
    path.write_bytes(content)
    image = Image.open(path)
    assert mds_encode("jpeg", image) == content
    image.load()
    path.unlink()
    encoded = mds_encode("jpeg", image)
    assert encoded != content and Image.open(io.BytesIO(encoded)).size == (2, 2)
    assert mds_encode("jpeg", image.convert("RGB")) == encoded


def test_arrays_of_jpeg_files_are_lists_of_images() -> None:
    files = [mds_encode("jpeg", image) for image in (PIXELS, COLOURS)]
    for name in ("jpegarray", "jpeg_array"):
        content = mds_encode(name, files)
        assert [image.size for image in mds_decode(name, content)] == [(3, 2), (2, 2)]
        for broken in (b"", bytes(4), content[:-1], content[:6], content + b"\0"):
            with pytest.raises(ValueError, match="images"):
                mds_decode(name, broken)


def test_without_pillow_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ModuleNotFoundError, match=r"stoker\[images\]"):
        mds_decode("png", b"")
    assert get_mds_encoded_size("png") is None  # the index is read without it


# ---------------------------------------------------------------- encodings of one's own
class Complex(Encoding):
    """A complex number, of which a part may be left out."""

    size = 16

    def __init__(self, part: str = "both") -> None:
        self.part = part

    @classmethod
    def from_str(cls, text: str) -> Complex:
        return cls(text)

    def encode(self, obj: complex) -> bytes:
        return np.complex128(obj.real if self.part == "real" else obj).tobytes()

    def decode(self, data: bytes) -> complex:
        return complex(np.frombuffer(data, np.complex128)[0])


@pytest.fixture
def _registered() -> Any:
    register_encoding("complex", Complex)
    yield
    del encodings.registry._ENCODINGS["complex"]
    parse_encoding.cache_clear()


@pytest.mark.usefixtures("_registered")
def test_encodings_of_ones_own_are_written_and_read(tmp_path: Path) -> None:
    assert "complex" in get_mds_encodings() and is_mds_encoding_safe("complex")
    assert mds_decode("complex:real", mds_encode("complex:real", 1 + 2j)) == 1
    with stoker.MDSWriter(columns={"z": "complex"}, out=tmp_path) as out:
        out.write({"z": 1 + 2j})
    (entry,) = json.loads((tmp_path / "index.json").read_text())["shards"]
    assert (entry["column_encodings"], entry["column_sizes"]) == (["complex"], [16])
    content = (tmp_path / "shard.00000.mds").read_bytes()
    assert SampleLayout(["z"], ["complex"], [16]).decode(content[-16:]) == {"z": 1 + 2j}


def test_only_encodings_can_be_registered() -> None:
    with pytest.raises(TypeError, match="is no class of"):
        register_encoding("x", str)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="can't be called 'a:b'"):
        register_encoding("a:b", Complex)


# ---------------------------------------------------------------- samples
def test_samples_that_are_cut_or_too_long_are_refused() -> None:
    layout = SampleLayout(["a", "b", "c"], ["int", "str", "bytes"], [8, None, 0])
    sample = b"\2\0\0\0\1\0\0\0" + bytes(8) + b"hi" + b"!"
    assert layout.decode(sample) == {"a": 0, "b": "hi", "c": b"!"}
    for size in range(len(sample)):
        with pytest.raises(ValueError, match="cut"):
            layout.decode(sample[:size])
    with pytest.raises(ValueError, match="1 bytes behind its columns"):
        layout.decode(sample + b"\0")
    with pytest.raises(ValueError, match="column b: 'utf-8' codec"):
        layout.decode(sample[:-3] + b"\xff\xff!")
    with pytest.raises(ValueError, match="there are 2 columns, 1 encodings"):
        SampleLayout(["a", "b"], ["int"], [8])
    assert SampleLayout(["a"], ["nobody's"], [None], leaves_out=["a"]).decode(b"\1\0\0\0x") == {}


# ---------------------------------------------------------------- compressions and hashes
def test_there_are_58_compressions_that_come_back(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 4, 20_000).astype(np.uint8).tobytes()
    names = compressions()
    assert len(set(names)) == 58
    for name in names:
        assert decompress(compress(data, name), name) == data
    assert compress(data, "gz") == compress(data, "gz:9")  # the same each time
    assert len(compress(data, "gz:0")) > len(data) > len(compress(data, "gz:1"))
    assert [find_compression(n) for n in ("zstd", "br", "bz2", "snappy", "gz:0")] == [
        ("zstd", 3),
        ("br", 11),
        ("bz2", 9),
        ("snappy", 0),
        ("gz", 0),
    ]


@pytest.mark.parametrize(
    "name", ["zstd:0", "zstd:23", "gz:10", "gz:", "gz:01", "gz:-1", "snappy:1", "lzma", "", "br:²"]
)
def test_other_compressions_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is not a supported compression algorithm"):
        compress(b"", name)
    if name:
        with pytest.raises(ValueError, match=f"^Invalid compression: {name}. stoker writes zstd"):
            stoker.MDSWriter(columns={"x": "int"}, out=tmp_path, compression=name)


@pytest.mark.parametrize("compression", ["zstd:1", "gz:1", "bz2:1", "br:0", "snappy"])
def test_shards_of_every_compression_are_written_with_all_hashes(tmp_path: Path, compression: str) -> None:
    hashes = sorted({*(h for h in hashlib.algorithms_guaranteed if not h.startswith("shake")), "xxh32", "xxh3_128"})
    hashes += [h for h in ("xxh128", "xxh3_64", "xxh64") if h not in hashes]
    plain, zipped = tmp_path / "plain", tmp_path / "zipped"
    for out, code in ((plain, None), (zipped, compression)):
        with stoker.MDSWriter(
            columns={"x": "str"}, out=out, compression=code, hashes=sorted(hashes), size_limit=3000
        ) as writer:
            for i in range(50):
                writer.write({"x": str(i) * 50})
    assert len(hashes) == 17
    ours = json.loads((zipped / "index.json").read_text())["shards"]
    assert len(ours) > 1
    for entry, of_plain in zip(ours, json.loads((plain / "index.json").read_text())["shards"]):
        code = compression.partition(":")[0]
        assert entry["zip_data"]["basename"] == f"{entry['raw_data']['basename']}.{code}"
        content = (zipped / entry["zip_data"]["basename"]).read_bytes()
        raw = decompress(content, compression)
        assert (entry["samples"], len(raw)) == (of_plain["samples"], entry["raw_data"]["bytes"])
        for name in hashes:
            assert get_hash(name)(content) == entry["zip_data"]["hashes"][name]
            assert get_hash(name)(raw) == entry["raw_data"]["hashes"][name]
        assert not (zipped / entry["raw_data"]["basename"]).exists()
    shutil.rmtree(zipped)
