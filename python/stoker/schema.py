"""Which columns of an MDS shard hold tokens, and how the core has to read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stoker import _core

INTEGER_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
KINDS = ("text", "finetuning")
TOKEN_COLUMNS = ("tokens", "input_ids")  # the two names that token ids go by; labels stand beside input_ids only


@dataclass(frozen=True)
class Schema:
    """The columns of a shard, in their physical order.

    Attributes:
        columns: For the core.
        kind: "text", or "finetuning" where there are labels.
        token_type: Integer type of token ids; None where each sample's array says it.
        fixed_tokens: Tokens a sample, where the encoding fixes them.
        overhead_bytes: Bytes of a sample that are not token values, where the encodings alone tell them and
            `token_bytes`; else None.
        token_bytes: Bytes a token over all columns.
        reads_bytes: Whether a token column is `bytes`, whose integer type the index does not tell.
        is_told_by_head: Whether the offsets in the head of a shard tell the lengths of its samples.
    """

    columns: list[_core.Column]
    kind: str
    token_type: str | None
    fixed_tokens: int | None
    overhead_bytes: int | None
    token_bytes: int
    reads_bytes: bool
    is_told_by_head: bool


def parse_schema(
    columns: tuple[list[str], list[str], list[int | None]], where: str, *, bytes_dtype: str, labels_dtype: str
) -> Schema:
    """Reads the column lists of a shard's index entry.

    Args:
        columns: Names, encodings and sizes: parallel lists, as in index.json.
        where: The path of the index, for errors.
        bytes_dtype: Integer type of a column of tokens whose encoding is `bytes`.
        labels_dtype: The same of a column of labels.

    Raises:
        ValueError: No column holds tokens, or one has an encoding that can't.
    """
    names, encodings, sizes = columns
    if not len(names) == len(encodings) == len(sizes):
        raise ValueError(f"{where} lists {len(names)} column names, {len(encodings)} encodings and {len(sizes)} sizes.")
    tokens = next((name for name in TOKEN_COLUMNS if name in names), None)
    if tokens is None:
        raise ValueError(
            f"{where} has the columns {', '.join(names)}, but none of {', '.join(TOKEN_COLUMNS)}: stoker reads token "
            "shards. Give the loader a `tokenizer`, or tokenize the data set first with `stoker prepare`."
        )
    labels = "labels" if tokens == "input_ids" and "labels" in names else None
    for_core: list[_core.Column] = []
    fixed_tokens: int | None = None
    overhead: int | None = 0
    token_bytes = 0
    token_type: str | None = None
    is_told_by_head = True
    for name, encoding, size in zip(names, encodings, sizes, strict=True):
        fixed_size = size or 0  # the format treats 0 as variable
        role = "tokens" if name == tokens else "labels" if name == labels else "other"
        if role == "other":
            for_core.append(_core.Column(role, "opaque", None, fixed_size))
            overhead = None if overhead is None or not fixed_size else overhead + fixed_size
            is_told_by_head = is_told_by_head and fixed_size > 0
            continue
        of_bytes = bytes_dtype if role == "tokens" else labels_dtype
        how, dtype = _token_encoding(name, encoding, fixed_size, where=where, bytes_dtype=of_bytes)
        for_core.append(_core.Column(role, how, dtype, fixed_size))
        token_type = dtype if role == "tokens" else token_type
        is_told_by_head = is_told_by_head and dtype is not None
        if how == "static_array":
            assert dtype is not None
            if role == "tokens":
                fixed_tokens = fixed_size // np.dtype(dtype).itemsize
            overhead = None if overhead is None else overhead + fixed_size
        elif how == "bytes":
            overhead = None if overhead is None else overhead + 4
            token_bytes += np.dtype(dtype).itemsize
        else:
            overhead = None
    return Schema(
        columns=for_core,
        kind="text" if labels is None else "finetuning",
        token_type=token_type,
        fixed_tokens=fixed_tokens,
        overhead_bytes=overhead,
        token_bytes=token_bytes,
        reads_bytes=any(e == "bytes" for n, e in zip(names, encodings, strict=True) if n in (tokens, labels)),
        is_told_by_head=is_told_by_head,
    )


def _token_encoding(
    name: str, encoding: str, fixed_size: int, *, where: str, bytes_dtype: str
) -> tuple[str, str | None]:
    """How the core reads a token column: its kind of encoding and its integer type, if that is known."""
    base, _, rest = encoding.partition(":")
    dtype, _, shape = rest.partition(":")
    if encoding == "bytes":
        return "bytes", bytes_dtype
    if encoding == "ndarray":
        return "array", None
    if base == "ndarray" and dtype in INTEGER_TYPES:
        if not shape:
            return "array", dtype
        if shape.isdecimal() and fixed_size == int(shape) * np.dtype(dtype).itemsize > 0:
            return "static_array", dtype
    raise ValueError(
        f"{where} has a column {name!r} of encoding {encoding!r} and size {fixed_size or 'variable'}: tokens are "
        "`bytes` or a one-dimensional `ndarray` of an integer type."
    )
