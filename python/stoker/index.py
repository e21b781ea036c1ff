"""Reads index.json of an MDS directory: which shards there are, and how many tokens they hold."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from stoker.compressions import is_known
from stoker.schema import TOKEN_COLUMNS, Schema, parse_schema

INDEX_FILE = "index.json"
TOTALS_FILE = "stoker.json"  # what `stoker index` writes beside index.json
_MAX_BYTES = (1 << 32) - 1  # offsets in a shard are u32
_MAX_SAMPLES = _MAX_BYTES // 4  # an offset each

_T = TypeVar("_T")


class ShardFile(msgspec.Struct, gc=False):
    """A file of a shard, relative to the directory of its index."""

    basename: str
    bytes: int


class Entry(msgspec.Struct, gc=False):
    """A shard, as index.json lists it."""

    format: str
    samples: int
    raw_data: ShardFile
    version: int = 2
    column_names: list[str] = []
    column_encodings: list[str] = []
    column_sizes: list[int | None] = []
    compression: str | None = None
    zip_data: ShardFile | None = None
    hashes: list[str] = []
    size_limit: int | None = None

    def config_bytes(self) -> int:
        """Length of the config JSON that the writer put into the shard (MDS format)."""
        config = {
            "column_encodings": self.column_encodings,
            "column_names": self.column_names,
            "column_sizes": self.column_sizes,
            "compression": self.compression,
            "format": self.format,
            "hashes": self.hashes,
            "size_limit": self.size_limit,
            "version": self.version,
        }
        return len(json.dumps(config, sort_keys=True))


class TokenizerIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """The tokenizer that shards were made with: the digest of what makes ids of texts (of the contents of its
    tokenizer.json or model, or of the ranks and pattern of tiktoken), its vocabulary (ids are below it), and the ids of
    its special tokens, as they stand in the shards."""

    sha256: str
    vocab_size: int
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None


class Totals(msgspec.Struct, kw_only=True):
    """Token totals, one entry a shard: the `stoker` object of index.json, or the file stoker.json beside it."""

    version: int = 1
    tokens: list[int] = []  # none of all three, where shards are no token shards
    loss_tokens: list[int] = []
    longest_sample: list[int] = []
    zstd_frame_bytes: int | None = None  # raw bytes a frame of compressed shards, where they were written so
    tokenizer: TokenizerIdentity | None = None  # index.json of `stoker prepare`
    index_sha256: str | None = None  # stoker.json: of the index.json that was counted
    bytes_dtype: str | None = None  # stoker.json: what `bytes` columns were taken for


class _Index(msgspec.Struct):
    version: int
    shards: list[Entry]
    stoker: Totals | None = None


@dataclass(frozen=True)
class StreamIndex:
    """The index of one directory, as parallel lists over its shards.

    Attributes:
        directory: Where index.json lies.
        sha256: Hex digest of index.json.
        raw_basenames: Uncompressed file of each shard, relative to the directory.
        zip_basenames: Compressed file of each shard, "" where there is none.
        samples, raw_bytes, zip_bytes: uint32, uint64, uint64.
        schemas: The distinct schemas.
        schema_indexes: uint32, into `schemas`.
        tokens: uint64, exact tokens of each shard; None where the index files do not tell.
        loss_tokens: uint64, those of them with a label that is not -100; None where the index files do not tell.
        frame_bytes: Raw bytes a zstd frame; None where a shard may be one frame.
        tokenizer: What the shards were made with, where the index tells.
        is_made: Whether the shards are raw, and token shards are made of them: `schemas` are those of the token shards.
        is_expanded: Whether some shards are compressed in a way that the core does not read, and are not there as they
            were before.
    """

    directory: str
    sha256: str
    raw_basenames: list[str]
    zip_basenames: list[str]
    samples: npt.NDArray[np.uint32]
    raw_bytes: npt.NDArray[np.uint64]
    zip_bytes: npt.NDArray[np.uint64]
    schemas: list[Schema]
    schema_indexes: npt.NDArray[np.uint32]
    tokens: npt.NDArray[np.uint64] | None
    loss_tokens: npt.NDArray[np.uint64] | None
    frame_bytes: int | None
    tokenizer: TokenizerIdentity | None
    is_made: bool = False
    is_expanded: bool = False


def digest_of(index: bytes) -> str:
    """What tells an index.json from others: the hex digest of its content."""
    return hashlib.sha256(index).hexdigest()


def index_path(directory: str) -> str:
    """The path of a directory's index."""
    return os.path.join(directory, INDEX_FILE)


def read_index(
    directory: str,
    bytes_dtype: str,
    labels_dtype: str | None = None,
    *,
    with_totals: bool = True,
    made_columns: Callable[[Sequence[str], bool], Mapping[str, str] | None] = lambda names, is_stokers: None,
) -> StreamIndex:
    """Reads and checks the index of an MDS directory. Opens no shard.

    Args:
        directory: Holds index.json, and maybe stoker.json.
        bytes_dtype: Integer type of token columns whose encoding is `bytes`.
        labels_dtype: The same of labels. Default: as bytes_dtype.
        with_totals: False: whatever is known about tokens is left alone.
        made_columns: Of the columns of a shard, and whether stoker has written it, those of the token shard that is
            made of it, with their encodings; None where it is one.

    Raises:
        FileNotFoundError: There is no index.json.
        ValueError: It breaks the format; the message names the shard and the rule.
    """
    path = index_path(directory)
    index, content = _read(path)
    schemas: list[Schema] = []
    numbers: dict[object, int] = {}
    schema_indexes = []
    raw_names = index.shards[0].column_names if index.shards else []
    made = made_columns(raw_names, index.stoker is not None)
    for number, entry in enumerate(index.shards):
        what = f"shard {number} of {path}"
        if made is not None:
            if entry.column_names != raw_names:
                raise ValueError(
                    f"{what} has the columns {', '.join(entry.column_names)}, the first one {', '.join(raw_names)}: "
                    "make two streams of them."
                )
            names, encodings = list(made), list(made.values())
            entry.column_names, entry.column_encodings, entry.column_sizes = names, encodings, [None] * len(names)
        _check_entry(entry, what)
        key = (*entry.column_names, *entry.column_encodings, *entry.column_sizes)
        if key not in numbers:
            numbers[key] = len(schemas)
            columns = (entry.column_names, entry.column_encodings, entry.column_sizes)
            types = {"bytes_dtype": bytes_dtype, "labels_dtype": labels_dtype or bytes_dtype}
            schemas.append(parse_schema(columns, path, **types))
        schema_indexes.append(numbers[key])
    tokens, loss_tokens = None, None
    if with_totals and made is None:
        tokens, loss_tokens = _totals(index, content, path, [schemas[i] for i in schema_indexes], bytes_dtype)
    return StreamIndex(
        directory=directory,
        sha256=digest_of(content),
        raw_basenames=[e.raw_data.basename for e in index.shards],
        zip_basenames=[e.zip_data.basename if e.zip_data else "" for e in index.shards],
        samples=np.array([e.samples for e in index.shards], np.uint32),
        raw_bytes=np.array([e.raw_data.bytes for e in index.shards], np.uint64),
        zip_bytes=np.array([e.zip_data.bytes if e.zip_data else 0 for e in index.shards], np.uint64),
        schemas=schemas,
        schema_indexes=np.array(schema_indexes, np.uint32),
        tokens=tokens,
        loss_tokens=loss_tokens,
        frame_bytes=index.stoker.zstd_frame_bytes if index.stoker else None,
        tokenizer=index.stoker.tokenizer if index.stoker else None,
        is_made=made is not None,
        is_expanded=made is None and any(_is_foreign(entry, directory) for entry in index.shards),
    )


def read_entries(path: str) -> list[Entry]:
    """The shards that an index.json lists, of any columns. Opens none of them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It breaks the format; the message names the shard and the rule.
    """
    entries = _read(path)[0].shards
    for number, entry in enumerate(entries):
        _check_entry(entry, f"shard {number} of {path}")
    return entries


def read_tokenizer(path: str) -> TokenizerIdentity | None:
    """The tokenizer of the token ids that are in the shards of an index.json, of any columns; None where it does not
    tell.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It breaks the format.
    """
    totals = _read(path)[0].stoker
    return None if totals is None else totals.tokenizer


def made_of_any(names: Sequence[str], is_stokers: bool = False) -> Mapping[str, str] | None:
    """As `made_columns` of `read_index`: shards of any columns are taken, and what would be made of them is left
    open."""
    return None if set(names) & set(TOKEN_COLUMNS) else {"tokens": "ndarray"}


def _read(path: str) -> tuple[_Index, bytes]:
    """An index, and what is in its file."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"there is no {path}: a stream is a directory with index.json and the shards that it lists. Check `local` "
            "and `split`."
        ) from None
    index = _decode(content, _Index, path)
    if index.version != 2:
        raise ValueError(f"{path} has version {index.version}: stoker reads version 2 of the MDS format.")
    return index, content


def _decode(content: bytes, type: type[_T], path: str) -> _T:
    try:
        return msgspec.json.decode(content, type=type)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not what it should be: {error}. Restore it or write the data set again.") from None


def _is_foreign(entry: Entry, directory: str) -> bool:
    """Whether the core can read the file of a shard neither as it is nor as it was before."""
    if (entry.compression or "").partition(":")[0] in ("", "zstd"):
        return False
    return not os.path.exists(os.path.join(directory, entry.raw_data.basename))


def is_inside(basename: str) -> bool:
    """Whether the name of a file, as an index has it, stays inside the directory."""
    return bool(basename) and not basename.startswith("/") and ".." not in basename.split("/") and "\0" not in basename


def _check_entry(entry: Entry, what: str) -> None:
    """Checks what the core relies on; `what` begins the error sentences."""
    if entry.format != "mds" or entry.version != 2:
        raise ValueError(
            f"{what} is of format {entry.format!r}, version {entry.version}: stoker reads 'mds', version 2. Convert "
            "the data set to MDS first."
        )
    files = [entry.raw_data] if entry.zip_data is None else [entry.raw_data, entry.zip_data]
    for file in files:
        if not is_inside(file.basename):
            raise ValueError(f"{what} has the file name {file.basename!r}: it must stay inside the directory.")
        if not 0 < file.bytes <= _MAX_BYTES:
            raise ValueError(f"{what} says {file.basename} has {file.bytes} bytes: a file has 1 to {_MAX_BYTES}.")
    if not 0 <= entry.samples <= _MAX_SAMPLES:
        raise ValueError(f"{what} has {entry.samples} samples: a shard has 0 to {_MAX_SAMPLES}.")
    if any(size is not None and not 0 <= size <= _MAX_BYTES for size in entry.column_sizes):
        raise ValueError(f"{what} has the column sizes {entry.column_sizes}: they are null or 0 to {_MAX_BYTES}.")
    codec = (entry.compression or "").partition(":")[0]
    if codec and not is_known(codec):
        raise ValueError(
            f"{what} is compressed with {codec!r}, which the MDS format does not have: decompress "
            f"{entry.zip_data and entry.zip_data.basename}, and write an index without it."
        )
    if bool(codec) != (entry.zip_data is not None):
        raise ValueError(f"{what} has compression {entry.compression!r} but zip_data {entry.zip_data}.")


_Tokens = npt.NDArray[np.uint64] | None


def _totals(
    index: _Index, content: bytes, path: str, schemas: list[Schema], bytes_dtype: str
) -> tuple[_Tokens, _Tokens]:
    """Exact tokens and loss tokens of each shard: from the index, from stoker.json, or from the shards' bytes."""
    totals, where = index.stoker, f"the `stoker` object of {path}"
    if totals is None:
        where = os.path.join(os.path.dirname(path), TOTALS_FILE)
        try:
            with open(where, "rb") as file:
                totals = _decode(file.read(), Totals, where)
        except FileNotFoundError:
            if any(schema.kind != "text" for schema in schemas):
                return None, None  # how many have loss stands in the shards
            tokens = _tokens_from_bytes(index.shards, schemas)
            return tokens, tokens
        if any(schema.reads_bytes for schema in schemas) and totals.bytes_dtype != bytes_dtype:
            raise ValueError(
                f"{where} was counted for bytes_dtype {totals.bytes_dtype}, but the stream is read with {bytes_dtype}: "
                "give the right one to both."
            )
        if totals.index_sha256 != digest_of(content):
            raise ValueError(f"{where} was counted for another {path}: run `stoker index` on the directory again.")
    lists = (totals.tokens, totals.loss_tokens, totals.longest_sample)
    if totals.version != 1 or any(
        len(x) != len(index.shards) or any(not 0 <= n <= _MAX_BYTES for n in x) for x in lists
    ):
        raise ValueError(f"{where} must be of version 1 and have one total from 0 to {_MAX_BYTES} for each shard.")
    if totals.zstd_frame_bytes is not None and not 0 < totals.zstd_frame_bytes <= _MAX_BYTES:
        raise ValueError(f"{where} has zstd_frame_bytes {totals.zstd_frame_bytes}: it is null or 1 to {_MAX_BYTES}.")
    return np.array(totals.tokens, np.uint64), np.array(totals.loss_tokens, np.uint64)


def _tokens_from_bytes(entries: list[Entry], schemas: list[Schema]) -> _Tokens:
    """What the sizes of shards tell, where nothing but token values varies in size. The core checks it on opening."""
    out = []
    for entry, schema in zip(entries, schemas, strict=True):
        if schema.fixed_tokens is not None:
            out.append(entry.samples * schema.fixed_tokens)
            continue
        if schema.overhead_bytes is None:
            return None
        head = 4 + 4 * (entry.samples + 1) + entry.config_bytes()
        values = entry.raw_data.bytes - head - entry.samples * schema.overhead_bytes
        if values < 0 or values % schema.token_bytes:
            return None  # written by another writer: its config has another length
        out.append(values // schema.token_bytes)
    return np.array(out, np.uint64)
