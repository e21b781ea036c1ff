"""How shards of the MDS format may be compressed, done and undone by the libraries of each way."""

from __future__ import annotations

import bz2
import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from zstandard import ZstdDecompressor


def is_known(code: str) -> bool:
    """Whether the format has a compression of this name."""
    return code in _DECOMPRESSORS


def codes() -> list[str]:
    """Their names, which files end in."""
    return list(_DECOMPRESSORS)


def compressions() -> list[str]:
    """All that may be given to `compress`: names alone, and with a level behind a colon."""
    levels = [(code, range(level.least, level.most + 1)) for code, level in _LEVELS.items()]
    return [*codes(), *(f"{code}:{level}" for code, of_code in levels for level in of_code)]


def find_compression(compression: str) -> tuple[str, int]:
    """The name and the level of a compression, such as "zstd" or "gz:6".

    Returns:
        code: Its name, which its files end in.
        level: The default one where none is given; 0 where it has no levels.

    Raises:
        ValueError: There is no such compression, or it has no such level.
    """
    code, colon, text = compression.partition(":")
    level = _LEVELS.get(code)
    if is_known(code) and not colon:
        return code, 0 if level is None else level.default
    if level is not None and text.isdecimal() and text == str(int(text)) and level.least <= int(text) <= level.most:
        return code, int(text)
    raise ValueError(f"{compression} is not a supported compression algorithm. Known are {in_words()}.")


def in_words() -> str:
    """All compressions, for errors."""
    return ", ".join(f"{code} ({level.least} to {level.most})" for code, level in _LEVELS.items()) + " and snappy"


def compress(data: bytes, compression: str) -> bytes:
    """A file of a compressed shard. zstd is one frame: `MDSWriter` cuts shards into several.

    Args:
        data: The shard.
        compression: Such as "gz" or "br:5".

    Raises:
        ValueError: There is no such compression.
        ModuleNotFoundError: A package is missing; the message says which.
    """
    code, level = find_compression(compression)
    if code == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(level=level).compress(data)
    if code == "gz":
        return gzip.compress(data, level, mtime=0)  # else it would be another file every time
    if code == "bz2":
        return bz2.compress(data, level)
    if code == "br":
        return bytes(_brotli_module().compress(data, quality=level))
    return bytes(_snappy_module().compress(data))


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


def _brotli_module() -> Any:
    try:
        import brotli
    except ModuleNotFoundError:
        raise ModuleNotFoundError('shards of brotli need its package: pip install "stoker[brotli]".') from None
    return brotli


def _brotli(data: bytes) -> bytes:
    brotli = _brotli_module()
    try:
        return bytes(brotli.decompress(data))
    except brotli.error as error:
        raise ValueError(error) from None


def _snappy_module() -> Any:
    try:
        import snappy
    except ModuleNotFoundError:
        raise ModuleNotFoundError('shards of snappy need its package: pip install "stoker[snappy]".') from None
    return snappy


def _snappy(data: bytes) -> bytes:
    """A raw block, without the framing format."""
    snappy = _snappy_module()
    try:
        return bytes(snappy.uncompress(data))
    except snappy.UncompressError as error:
        raise ValueError(error) from None


class _Levels(NamedTuple):
    """Of a compression."""

    least: int
    most: int
    default: int


_LEVELS = {"zstd": _Levels(1, 22, 3), "gz": _Levels(0, 9, 9), "bz2": _Levels(1, 9, 9), "br": _Levels(0, 11, 11)}
_DECOMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "br": _brotli,
    "bz2": bz2.decompress,
    "gz": gzip.decompress,
    "snappy": _snappy,
    "zstd": _zstd,
}
