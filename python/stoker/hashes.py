"""The hashes that an MDS index may hold of its files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

_HASHLIB = (
    *("blake2b", "blake2s", "md5", "sha1", "sha224", "sha256", "sha384", "sha512"),
    *("sha3_224", "sha3_256", "sha3_384", "sha3_512"),
)
_CHUNK_BYTES = 1 << 20  # that are read at once
_XXHASH = ("xxh32", "xxh64", "xxh128", "xxh3_64", "xxh3_128")


def hash_file(name: str, path: str) -> str:
    """The hex digest of a file.

    Raises:
        ValueError, ModuleNotFoundError: As `get_hash`.
        OSError: The file can't be read.
    """
    hasher = _find(name)()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
    return str(hasher.hexdigest())


def get_hash(name: str) -> Callable[[bytes], str]:
    """A function from bytes to the hex digest of a named hash.

    Raises:
        ValueError: MDS has no such hash.
        ModuleNotFoundError: It is one of xxhash's, and xxhash is not installed.
    """
    hasher = _find(name)
    return lambda data: str(hasher(data).hexdigest())


def _find(name: str) -> Any:
    """The constructor of a named hash."""
    module: Any
    if name in _HASHLIB:
        module = hashlib
    elif name in _XXHASH:
        try:
            import xxhash as module
        except ModuleNotFoundError:
            raise ModuleNotFoundError(f"hash {name!r} needs the package xxhash: pip install xxhash.") from None
    else:
        raise ValueError(f"Invalid hash: {name}. Known are {', '.join(_HASHLIB + _XXHASH)}.")
    return getattr(module, name)
