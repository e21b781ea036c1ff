"""How shards of the MDS format may be compressed, undone by the libraries of each way."""

from __future__ import annotations

import bz2
import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zstandard import ZstdDecompressor


def is_known(code: str) -> bool:
    """Whether the format has a compression of this name."""
    return code in _DECOMPRESSORS


def decompress(data: bytes, compression: str) -> bytes:
    """What a compressed shard holds.

    Args:
        data: The file's bytes.
        compression: As index.json has it, such as "zstd" or "gz:6".

    Raises:
        ValueError: The data is cut or damaged, or the format knows no such compression.
        ModuleNotFoundError: A package is missing; the message says which.
    """
    code = compression.partition(":")[0]
    if not is_known(code):
        raise ValueError(f"it is compressed with {code!r}: known are {', '.join(_DECOMPRESSORS)}")
    try:
        return _DECOMPRESSORS[code](data)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise ValueError(f"it is cut or damaged: {error}") from None


def zstd_decompressor() -> ZstdDecompressor:
    """One that takes windows of up to 2 GiB, which `zstd --long=31` makes: by default they may have 128 MiB."""
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=1 << 31)


def decompress_zstd(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Decompresses frame after frame. zstandard's stream reader takes a frame that is cut for the end of the file.

    Raises:
        EOFError: It is cut or damaged.
    """
    import zstandard

    decompressor = zstd_decompressor()
    frame = decompressor.decompressobj()
    is_inside = False
    try:
        for chunk in chunks:
            data = chunk
            while data:
                is_inside = True
                yield frame.decompress(data)
                data = b""
                if frame.eof:
                    data = frame.unused_data
                    frame, is_inside = decompressor.decompressobj(), False
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from None
    if is_inside:
        raise EOFError("its last zstd frame does not end")


def _zstd(data: bytes) -> bytes:
    return b"".join(decompress_zstd([data]))


def _brotli(data: bytes) -> bytes:
    try:
        import brotli
    except ModuleNotFoundError:
        raise ModuleNotFoundError('shards of brotli need its package: pip install "stoker[brotli]".') from None
    try:
        return bytes(brotli.decompress(data))
    except brotli.error as error:
        raise ValueError(error) from None


def _snappy(data: bytes) -> bytes:
    """A raw block, without the framing format."""
    try:
        import snappy
    except ModuleNotFoundError:
        raise ModuleNotFoundError('shards of snappy need its package: pip install "stoker[snappy]".') from None
    try:
        return bytes(snappy.uncompress(data))
    except snappy.UncompressError as error:
        raise ValueError(error) from None


_DECOMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "br": _brotli,
    "bz2": bz2.decompress,
    "gz": gzip.decompress,
    "snappy": _snappy,
    "zstd": _zstd,
}
