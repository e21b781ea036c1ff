"""What is imported from `streaming.base.format.mds.encodings`."""

from __future__ import annotations

from stoker.encodings import (
    Encoding,
    get_mds_encoded_size,
    get_mds_encodings,
    is_mds_encoding,
    is_mds_encoding_safe,
    mds_decode,
    mds_encode,
    registry,
)

_encodings = registry._ENCODINGS  # users add theirs: `_encodings["name"] = Class`

__all__ = [
    "Encoding",
    "_encodings",
    "get_mds_encoded_size",
    "get_mds_encodings",
    "is_mds_encoding",
    "is_mds_encoding_safe",
    "mds_decode",
    "mds_encode",
]
