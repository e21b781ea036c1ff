"""The exceptions that stoker raises beside ValueError and OSError."""

from __future__ import annotations

import pickle


class CorruptShardError(ValueError):
    """The bytes of a shard break their format, or the shard has changed under the loader.

    Attributes:
        path: The shard's file.
        sample: The zero-based sample in the shard, or None where the whole shard is meant.
    """

    def __init__(self, message: str, path: str, sample: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.sample = sample

    def __reduce__(self) -> tuple[type[CorruptShardError], tuple[str, str, int | None]]:
        return type(self), (str(self), self.path, self.sample)


class MissingShardError(OSError):
    """A shard of a remote stream can't be had, whatever was tried.

    Attributes:
        stream: The stream's name.
        shard: Its zero-based number, in the order of index.json.
        url: Where it should be.
        attempts: How often the request that failed last was made.
    """

    def __init__(self, message: str, stream: str = "", shard: int = 0, url: str = "", attempts: int = 0) -> None:
        super().__init__(message)
        self.stream, self.shard, self.url, self.attempts = stream, shard, url, attempts

    def __reduce__(self) -> tuple[type[MissingShardError], tuple[str, str, int, str, int]]:
        return type(self), (str(self), self.stream, self.shard, self.url, self.attempts)


class StateMismatchError(ValueError):
    """A loader's state was taken from other data or another specification than the loader has."""


class LoaderClosedError(RuntimeError):
    """The loader was closed, or its threads belong to another process."""


def pickled(error: BaseException) -> bytes:
    """An exception as it is raised again elsewhere; one that can't be pickled as a RuntimeError that says the same."""
    try:
        return pickle.dumps(error)
    except Exception:  # noqa: BLE001  # whatever its own pickling raises
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
