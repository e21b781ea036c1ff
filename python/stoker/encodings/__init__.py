"""Encodings of MDS columns: from a value to bytes and back, byte for byte as MosaicML Streaming has them."""

from __future__ import annotations

from stoker.encodings.arrays import EMPTY_ARRAY
from stoker.encodings.base import Encoding
from stoker.encodings.registry import (
    get_mds_encoded_size,
    get_mds_encodings,
    is_mds_encoding,
    is_mds_encoding_safe,
    mds_decode,
    mds_encode,
    parse_encoding,
    register_encoding,
)

__all__ = [
    "EMPTY_ARRAY",
    "Encoding",
    "get_mds_encoded_size",
    "get_mds_encodings",
    "is_mds_encoding",
    "is_mds_encoding_safe",
    "mds_decode",
    "mds_encode",
    "parse_encoding",
    "register_encoding",
]
