"""Rows of raw data: files and folders of JSON, CSV, Parquet, text and MDS shards, cut into pieces that are read
independently."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

_LEAST_PART, _MOST_PART = 4 << 20, 32 << 20  # bytes of a part; a shard or more comes out of each
_INDEX = "index.json"
_COMPRESSIONS = (".zst", ".zstd", ".gz")
_FORMATS = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}


class BadRowError(ValueError):
    """A row that is not what its file's format says. The message begins with where it is."""


@dataclass(frozen=True)
class Piece:
    """A part of a source that is read on its own.

    Attributes:
        path: The file.
        format: "lines" (of JSON), "json" (one array, or one object), "csv", "parquet", "text" (one document) or "mds"
            (whose path is that of index.json).
        begin, end: Of lines, bytes of the decompressed file: the lines that begin in [begin, end). Of Parquet, row
            groups; of MDS, shards. Of others, the whole file.
        size_bytes: How much there is to read, for the progress.
    """

    path: str
    format: str
    begin: int
    end: int
    size_bytes: int


@dataclass(frozen=True)
class Row:
    """A row and its place.

    Attributes:
        values: Columns by name. Of text, `text`.
        path: Its file.
        unit: What `number` counts: "line", "object", "row" or "sample"; "byte": where its line begins; "": it is the
            whole file.
        number: Its place.
    """

    values: dict[str, Any]
    path: str
    unit: str
    number: int

    @property
    def where(self) -> str:
        """In words. The number of a line is counted when somebody wants to see it."""
        if self.unit == "byte":
            return f"{self.path}, line {_line_number(Path(self.path), self.number)}"
        return f"{self.path}, {self.unit} {self.number}" if self.unit else self.path


Part = tuple[Piece, ...]  # pieces, one behind the other, that one process does


def find_parts(sources: Sequence[str | os.PathLike[str]]) -> list[Part]:
    """The parts of files and folders, in the order given; files of a folder, and of those in it, by their names. They
    depend on the files alone, so that what comes out of them does: a sixteenth of the whole, within limits.

    Raises:
        FileNotFoundError: There is no such file or folder, or nothing in it that can be read.
        ValueError: A file's name does not tell a format that is known.
    """
    files: list[tuple[Path, str, int]] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found = list(_files_of(path))
            if not found:
                raise FileNotFoundError(
                    f"{path} holds no file that can be read: {', '.join(_FORMATS)}, also compressed."
                )
        elif path.is_file():
            found = [path]
        else:
            raise FileNotFoundError(f"there is no file or folder {path}.")
        files += [(file, *_measure(file)) for file in found]
    part_bytes = min(max(sum(size for *_, size in files) // 16, _LEAST_PART), _MOST_PART)
    pieces = [piece for file in files for piece in _pieces_of(*file, part_bytes)]
    parts: list[Part] = []
    waiting: list[Piece] = []
    waiting_bytes = 0
    for piece in pieces:
        waiting.append(piece)
        waiting_bytes += piece.size_bytes
        if waiting_bytes >= part_bytes:
            parts.append(tuple(waiting))
            waiting, waiting_bytes = [], 0
    return [*parts, tuple(waiting)] if waiting else parts


def find_shard(directory: str | os.PathLike[str], shard: int) -> Piece:
    """The piece of one shard of a data set of MDS shards; `shard` counts those of its index.json from zero."""
    path = Path(directory) / _INDEX
    return Piece(str(path), "mds", shard, shard + 1, _mds_entries(path)[shard]["raw_data"]["bytes"])


def _files_of(folder: Path) -> Iterator[Path]:
    """The files of a folder, and of those in it, by their names. A data set of MDS shards is its index.json."""
    if (folder / _INDEX).is_file():
        yield folder / _INDEX
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _files_of(path)
        elif _format_of(path) is not None:
            yield path


def _format_of(path: Path) -> str | None:
    if path.name == _INDEX:
        return "mds"
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return _FORMATS.get(suffixes[-1]) if suffixes else None


def _measure(path: Path) -> tuple[str, int]:
    """The format of a file, and its bytes, decompressed."""
    form = _format_of(path)
    if form is None:
        raise ValueError(
            f"{path} is of no known format: its name must end in {', '.join(_FORMATS)}, and may have "
            f"{', '.join(_COMPRESSIONS)} behind that."
        )
    if form == "mds":
        return form, sum(entry["raw_data"]["bytes"] for entry in _mds_entries(path))
    if form == "json" and _is_lines(path):
        form = "lines"
    return form, _size_of(path)


def _pieces_of(path: Path, form: str, size: int, piece_bytes: int) -> list[Piece]:
    if form == "parquet":
        groups = _parquet(path).metadata
        sizes = [groups.row_group(i).total_byte_size for i in range(groups.num_row_groups)]
        return [Piece(str(path), form, i, i + 1, size) for i, size in enumerate(sizes)]
    if form == "mds":
        entries = enumerate(_mds_entries(path))
        return [Piece(str(path), form, i, i + 1, entry["raw_data"]["bytes"]) for i, entry in entries]
    if form != "lines":
        return [Piece(str(path), form, 0, size, size)]
    bounds = [*range(0, size, piece_bytes), size]
    return [Piece(str(path), form, b, e, e - b) for b, e in itertools.pairwise(bounds)]


def _open(path: Path) -> BinaryIO:
    """A file, decompressed."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    if suffix in (".zst", ".zstd"):
        import zstandard

        file = path.open("rb")
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True, closefd=True)
        return io.BufferedReader(reader, 1 << 20)
    return path.open("rb")


def _size_of(path: Path) -> int:
    """Bytes of a file, decompressed.

    Raises:
        ValueError: A compressed file is cut or damaged: reading it later would end early, without a word.
    """
    suffix = path.suffix.lower()
    if suffix not in _COMPRESSIONS:
        return path.stat().st_size
    try:
        return _size_of_gzip(path) if suffix == ".gz" else _size_of_zstd(path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is cut or damaged: {error}. Fetch or write it again.") from None


def _size_of_gzip(path: Path) -> int:
    with gzip.open(path) as file:
        return sum(map(len, iter(lambda: file.read(1 << 20), b"")))


def _size_of_zstd(path: Path) -> int:
    """Frame after frame: zstandard's stream reader takes a frame that is cut for the end of the file."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor()
    size = 0
    try:
        with path.open("rb") as file:
            data = file.read(1 << 20)
            while data:
                frame = decompressor.decompressobj()
                while not frame.eof:
                    if not data:
                        raise EOFError("its last zstd frame does not end")
                    size += len(frame.decompress(data))
                    data = frame.unused_data if frame.eof else file.read(1 << 20)
                data = data or file.read(1 << 20)
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from None
    return size


def _is_lines(path: Path) -> bool:
    """Whether a .json file has an object a line: its first line is one."""
    with _open(path) as file:
        for line in file:
            if line.strip():
                try:
                    return isinstance(json.loads(line), dict)
                except ValueError:
                    return False
    return True


def _parquet(path: str | Path) -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise ModuleNotFoundError('Parquet files need the package pyarrow: pip install "stoker[prepare]".') from None
    return pyarrow.parquet.ParquetFile(path)


def read_rows(piece: Piece) -> Iterator[Row | BadRowError]:
    """The rows of a piece, in the order of the file. One that is broken is given as an error, and reading goes on
    behind it where the format allows.

    Raises:
        OSError: The file can't be read.
        BadRowError: What is broken is not one row.
    """
    readers: dict[str, Callable[[Piece], Iterator[Row | BadRowError]]] = {
        "lines": _read_lines,
        "json": _read_json,
        "csv": _read_csv,
        "parquet": _read_parquet,
        "mds": _read_mds,
        "text": _read_text,
    }
    try:
        yield from readers[piece.format](piece)
    except UnicodeDecodeError as error:
        raise BadRowError(f"{piece.path} contains chars that cannot be utf-8 decoded: {error}") from None


def _read_lines(piece: Piece) -> Iterator[Row | BadRowError]:
    path = Path(piece.path)
    decode = msgspec.json.Decoder().decode
    with _open(path) as file:
        at = 0
        if piece.begin > 0:  # the line that goes on there is of the piece before
            _skip(file, piece.begin - 1)
            at = piece.begin - 1 + len(file.readline())
        while at < piece.end:
            line = file.readline()
            if not line:
                return
            begin, at = at, at + len(line)
            if line.isspace():
                continue
            try:
                values = decode(line)
                if not isinstance(values, dict):
                    raise ValueError(f"a line must hold an object, not {type(values).__name__}")
            except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
                yield BadRowError(f"{path}, line {_line_number(path, begin)}: {error}")
                continue
            yield Row(values, piece.path, "byte", begin)


def _skip(file: BinaryIO, size: int) -> None:
    if isinstance(file, io.BufferedReader) and isinstance(file.raw, io.FileIO):
        file.seek(size)
        return
    while size > 0 and (chunk := file.read(min(size, 1 << 20))):
        size -= len(chunk)


def _line_number(path: Path, begin: int) -> int:
    """Of the line that begins at a byte of the decompressed file; the first is 1."""
    number = 1
    with _open(path) as file:
        while begin > 0 and (chunk := file.read(min(begin, 1 << 20))):
            number += chunk.count(b"\n")
            begin -= len(chunk)
    return number


def _read_json(piece: Piece) -> Iterator[Row | BadRowError]:
    """An array of objects, or one object, read through a window that holds one object at a time."""
    decoder = json.JSONDecoder()
    path = Path(piece.path)
    with io.TextIOWrapper(_open(path), encoding="utf-8") as file:
        window, number = file.read(1 << 20).lstrip("\ufeff \t\r\n"), 0
        is_array = window.startswith("[")
        at = 1 if is_array else 0
        while True:
            while at < len(window) and window[at] in " \t\r\n,":
                at += 1
            if at == len(window):
                window, at = file.read(1 << 20), 0
                if not window and is_array:
                    raise BadRowError(f"{path}: its array does not end behind {number} objects. Write it again.")
                if not window:
                    return
                continue
            if is_array and window[at] == "]":
                return
            try:
                values, at = decoder.raw_decode(window, at)
            except json.JSONDecodeError as error:
                more = file.read(max(1 << 20, len(window)))
                if not more:
                    raise BadRowError(f"{path}, object {number}: {error}") from None
                window, at = window[at:] + more, 0
                continue
            if isinstance(values, dict):
                yield Row(values, piece.path, "object", number)
            else:
                yield BadRowError(f"{path}, object {number}: it is no object.")
            number += 1


def _read_csv(piece: Piece) -> Iterator[Row | BadRowError]:
    path = Path(piece.path)
    csv.field_size_limit(1 << 31)
    with io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if ".tsv" in path.name.lower() else ",", strict=True)
        while True:
            try:
                values = next(reader, None)
            except csv.Error as error:
                yield BadRowError(f"{path}, line {reader.line_num}: {error}")
                continue
            if values is None:
                return
            if None in values or None in values.values():
                yield BadRowError(f"{path}, line {reader.line_num}: it has other columns than the head of the file.")
            else:
                yield Row(values, piece.path, "line", reader.line_num)


def _read_parquet(piece: Piece) -> Iterator[Row]:
    groups = _parquet(piece.path)
    before = sum(groups.metadata.row_group(i).num_rows for i in range(piece.begin))
    for batch in groups.iter_batches(batch_size=1024, row_groups=list(range(piece.begin, piece.end))):
        for values in batch.to_pylist():
            yield Row(values, piece.path, "row", before)
            before += 1


# ---------------------------------------------------------------- MDS
def _mds_entries(path: Path) -> list[dict[str, Any]]:
    """The shards that an index.json lists.

    Raises:
        ValueError: It is no index of MDS shards.
    """
    try:
        entries = json.loads(path.read_bytes())["shards"]
        if all(entry["format"] == "mds" and entry["raw_data"]["bytes"] > 0 for entry in entries):
            return list(entries)
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(f"{path} is not the index of a data set of MDS shards.")


def _read_mds(piece: Piece) -> Iterator[Row | BadRowError]:
    """Columns of text, JSON and whole numbers; bytes stay bytes, and others are left out (the MDS format of
    mosaicml-streaming: sample count, offsets, then samples)."""
    for entry in _mds_entries(Path(piece.path))[piece.begin : piece.end]:
        path, content = _mds_content(Path(piece.path).parent, entry)
        num_samples = int.from_bytes(content[:4], "little")
        is_whole = len(content) == entry["raw_data"]["bytes"] and num_samples == entry["samples"]
        ends = np.frombuffer(content, "<u4", num_samples + 1, 4) if is_whole else np.zeros(1)
        if not is_whole or np.any(np.diff(ends.astype(np.int64)) < 0) or ends[-1] > len(content):
            raise BadRowError(f"{path} is not the shard that its index.json describes. Fetch or write it again.")
        for number in range(num_samples):
            try:
                values = _mds_values(content[ends[number] : ends[number + 1]], entry)
            except ValueError as error:
                yield BadRowError(f"{path}, sample {number}: {error}")
            else:
                yield Row(values, str(path), "sample", number)


def _mds_content(directory: Path, entry: dict[str, Any]) -> tuple[Path, bytes]:
    """A shard's file, and what is in it, decompressed."""
    path = directory / entry["raw_data"]["basename"]
    if not path.is_file() and entry.get("zip_data"):
        path = directory / entry["zip_data"]["basename"]
        code = str(entry["compression"]).partition(":")[0]
        if code not in ("zstd", "gz"):
            raise BadRowError(
                f"{path} is compressed with {code!r}, which is not read: decompress it to {path.stem} beside it."
            )
    with _open(path) as file:
        return path, file.read()


def _mds_values(sample: bytes, entry: dict[str, Any]) -> dict[str, Any]:
    """The columns of a sample: size words of those of varying size, then all of them."""
    names, encodings, sizes = (entry[f"column_{what}"] for what in ("names", "encodings", "sizes"))
    num_words = sum(size is None for size in sizes)
    if len(sample) < 4 * num_words:
        raise ValueError("it is cut.")
    words = iter(np.frombuffer(sample, "<u4", num_words).tolist())
    at = 4 * num_words
    values: dict[str, Any] = {}
    for name, encoding, fixed in zip(names, encodings, sizes, strict=True):
        size = next(words) if fixed is None else fixed
        data = sample[at : at + size]
        if len(data) < size:
            raise ValueError(f"column {name} is cut.")
        at += size
        if encoding == "str":
            values[name] = data.decode("utf-8")
        elif encoding == "json":
            values[name] = json.loads(data)
        elif encoding == "bytes":
            values[name] = data
        elif encoding == "int":
            values[name] = int.from_bytes(data, "little", signed=True)
    return values


def _read_text(piece: Piece) -> Iterator[Row]:
    with _open(Path(piece.path)) as file:
        yield Row({"text": file.read().decode("utf-8")}, piece.path, "", 0)
