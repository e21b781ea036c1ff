"""Remote stores: objects of S3, Google Cloud, Azure and HTTP servers, and of whatever fsspec knows, by ranges of bytes.

`open_store` decides what serves a URL: obstore, where it is installed and knows the scheme, since it reads in native
threads without the GIL; else fsspec.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from stoker.files import copy_atomically, write_atomically

# Which clouds have for their own machines; what else has no credentials asks there.
_METADATA_SERVICE = "169.254.169.254"
Buffer = Any  # bytes, or what has their buffer protocol
# The processes in which obstore has made requests, this one and those that it is a fork of: there its threads are gone,
# and nothing but a note that is forked, too, tells.
_USED_IN: set[int] = set()

# Schemes that obstore knows, by the names that MosaicML Streaming's URLs have for some of them.
_NATIVE = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "gcs": "gs",
    "az": "az",
    "abfs": "az",
    "abfss": "abfss",
    "azure": "az",
    "http": "http",
    "https": "https",
}
_FOREIGN = {"gcs": "gs", "azure": "az", "azure-dl": "az", "s3a": "s3"}  # what fsspec calls them
# Environment variables of MosaicML Streaming beside those that the stores heed themselves.
_OF_STREAMING = {
    "s3": {"S3_ENDPOINT_URL": "endpoint"},
    "az": {"AZURE_ACCOUNT_NAME": "account_name", "AZURE_ACCOUNT_ACCESS_KEY": "account_key"},
}


# What file systems of fsspec call it to have no credentials; the others have none.
_ANONYMOUS: dict[str, dict[str, Any]] = {
    "s3": {"anon": True},
    "gs": {"token": "anon"},
    "az": {"anon": True},
    "abfs": {"anon": True},
    "abfss": {"anon": True},
    "hf": {"token": False},
}


class StoreError(OSError):
    """A request to a remote store has failed; it may succeed when it is made again."""


class RangeNotSupportedError(StoreError):
    """A server gives whole objects only."""


@dataclass(frozen=True)
class Part:
    """Bytes of an object.

    Attributes:
        data: The bytes; fewer than asked for where the object is shorter.
        object_bytes: Of the whole object; None: the store does not tell.
    """

    data: Buffer
    object_bytes: int | None


@dataclass(frozen=True)
class ObjectInfo:
    """What a store tells of an object.

    Attributes:
        size_bytes: Its size.
        version: Tells it from what else is or was at its place, such as an ETag; "": the store does not.
    """

    size_bytes: int
    version: str


class Store(Protocol):
    """Objects by path. Thread-safe. Requests are made once, and raise FileNotFoundError, PermissionError or StoreError.

    Attributes:
        url: Of the root, without a slash at the end.
    """

    url: str

    def stat(self, path: str) -> ObjectInfo:
        """What the store tells of an object, without reading it."""

    def read(self, path: str, begin: int = 0, end: int | None = None) -> Part:
        """Bytes [begin, end) of an object, or all from `begin` on. Raises RangeNotSupportedError where only the whole
        can be had."""

    def write(self, path: str, source: bytes | str) -> None:
        """Writes an object, of bytes or of the file of a name."""

    def delete(self, path: str) -> None:
        """Removes an object."""


def is_url(place: str) -> bool:
    """Whether a place is in a store, and no local path."""
    return "://" in place and not place.startswith("file://")


def open_store(url: str, options: Mapping[str, Any] | None = None, *, timeout_s: float = 60.0) -> Store:
    """The store that a URL is in. It is kept for the next one that asks for the same.

    Args:
        url: Such as "s3://bucket/data"; a local path is a store, too.
        options: Of the package that serves it, see docs/remote.md; for both `anon`: without credentials.
        timeout_s: That a request may take.

    Raises:
        ModuleNotFoundError: A package is missing; the message says which.
        ValueError: There is no such scheme, or an option is not known.
    """
    options_as_json = json.dumps(dict(options or {}), sort_keys=True)
    if urlsplit(url).scheme in _NATIVE and _USED_IN - {os.getpid()}:
        from stoker.store_helper import HelperStore  # which needs this module

        return HelperStore(url.rstrip("/"), options_as_json, timeout_s)
    return _open(url.rstrip("/"), options_as_json, timeout_s)


@functools.lru_cache(maxsize=1024)
def _open(url: str, options_as_json: str, timeout_s: float) -> Store:
    if not is_url(url):
        return LocalStore(os.path.abspath(url.removeprefix("file://")))
    scheme = urlsplit(url).scheme
    if scheme in _NATIVE:
        try:
            return open_native(url, options_as_json, timeout_s)
        except ModuleNotFoundError:
            pass
    return FsspecStore(url, scheme, json.loads(options_as_json))


@functools.lru_cache(maxsize=1024)
def open_native(url: str, options_as_json: str, timeout_s: float) -> NativeStore:
    """The store of obstore that a URL is in, for a process that is no fork of one that has used obstore."""
    return NativeStore(url, urlsplit(url).scheme, json.loads(options_as_json), timeout_s)


class LocalStore:
    """A local directory, such as of a network file system."""

    def __init__(self, directory: str) -> None:
        self.url = directory

    def stat(self, path: str) -> ObjectInfo:
        with self._telling(path):
            status = os.stat(os.path.join(self.url, path))
            return ObjectInfo(status.st_size, str(status.st_mtime_ns))

    def read(self, path: str, begin: int = 0, end: int | None = None) -> Part:
        with self._telling(path), open(os.path.join(self.url, path), "rb", buffering=0) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            file.seek(begin)
            return Part(file.read((size_bytes if end is None else end) - begin), size_bytes)

    def write(self, path: str, source: bytes | str) -> None:
        target = os.path.join(self.url, path)
        with self._telling(path):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if isinstance(source, bytes):
                write_atomically(target, source)
            else:
                copy_atomically(source, target)

    def delete(self, path: str) -> None:
        with self._telling(path):
            os.unlink(os.path.join(self.url, path))

    @contextlib.contextmanager
    def _telling(self, path: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"there is no {self.url}/{path}.") from None
        except PermissionError as error:
            raise PermissionError(f"{self.url}/{path} may not be read or written: {error}") from None
        except OSError as error:
            raise StoreError(f"{self.url}/{path}: {error}") from error


class NativeStore:
    """A store of obstore, whose threads a fork does not have."""

    def __init__(self, url: str, scheme: str, options: dict[str, Any], timeout_s: float) -> None:
        import obstore
        from obstore.store import from_url

        self._errors = obstore.exceptions
        self.url = url
        kind = _NATIVE[scheme]
        for variable, name in _OF_STREAMING.get(kind, {}).items():
            if os.environ.get(variable):
                options.setdefault(name, os.environ[variable])
        if options.pop("anon", False) and kind not in ("http", "https"):  # these have no credentials
            options["skip_signature"] = True
        client = {"timeout": f"{timeout_s}s", "connect_timeout": f"{min(timeout_s, 20)}s", "allow_http": True}
        given = options.pop("client_options", {})
        once = {
            "max_retries": 0,  # who asks makes requests again, counts them and tells
            "retry_timeout": datetime.timedelta(seconds=timeout_s),
        }
        base, self._prefix = _split(url, kind)
        if kind == "s3":
            _find_s3_credentials(options)
        try:
            opened: Any = from_url(base, client_options={**client, **given}, retry_config=once, **options)  # type: ignore[call-overload]
        except (self._errors.BaseError, TypeError, ValueError) as error:
            raise ValueError(f"{url} can't be opened: {_in_short(error)}") from None
        self._store = opened

    def stat(self, path: str) -> ObjectInfo:
        with self._telling(path):
            meta = self._store.head(self._prefix + path)
            return ObjectInfo(int(meta["size"]), meta.get("e_tag") or "")

    def read(self, path: str, begin: int = 0, end: int | None = None) -> Part:
        asked = {"offset": begin} if end is None else (begin, end)
        with self._telling(path):
            got = self._store.get(self._prefix + path, options={} if (begin, end) == (0, None) else {"range": asked})
            return Part(got.bytes(), int(got.meta["size"]))

    def write(self, path: str, source: bytes | str) -> None:
        with self._telling(path):
            self._store.put(self._prefix + path, source if isinstance(source, bytes) else Path(source))

    def delete(self, path: str) -> None:
        with self._telling(path):
            self._store.delete(self._prefix + path)

    @contextlib.contextmanager
    def _telling(self, path: str) -> Iterator[None]:
        """Raises errors of obstore as those that `Store` promises.

        Raises:
            RuntimeError: This is a fork of a process that uses obstore: a request would never come to an end.
        """
        where = f"{self.url}/{path}"
        if _USED_IN - {os.getpid()}:
            raise RuntimeError(
                f"{where} can't be had in a fork of a process that has used obstore: start processes by 'spawn' or "
                "'forkserver', or open the stream behind the fork."
            )
        _USED_IN.add(os.getpid())
        try:
            yield
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no {where}.") from None
        except (self._errors.PermissionDeniedError, self._errors.UnauthenticatedError) as error:
            raise PermissionError(
                f"{where} may not be read or written with these credentials: {_in_short(error)}"
            ) from None
        except self._errors.NotSupportedError as error:
            raise RangeNotSupportedError(f"{where}: {_in_short(error)}") from None
        except (self._errors.BaseError, OSError, ValueError) as error:
            if _METADATA_SERVICE in str(error):
                raise PermissionError(
                    f"there are no credentials for {where}: set them in the environment, as the store's own tools take "
                    "them, or give storage_options={'anon': True} for what is public."
                ) from None
            raise StoreError(f"{where}: {_in_short(error)}") from None


class FsspecStore:
    """A file system of fsspec."""

    def __init__(self, url: str, scheme: str, options: dict[str, Any]) -> None:
        try:
            import fsspec
        except ModuleNotFoundError:
            needs = 'obstore: pip install "stoker[remote]"' if scheme in _NATIVE else "fsspec: pip install fsspec"
            raise ModuleNotFoundError(f"{url} needs the package {needs}.") from None
        self.url = url
        name = _FOREIGN.get(scheme, scheme)
        if options.pop("anon", False):
            options |= _ANONYMOUS.get(name, {})
        known = url.replace(f"{scheme}://", f"{name}://", 1)
        try:
            self._system, self._root = fsspec.core.url_to_fs(known, **options)
        except ImportError as error:
            raise ModuleNotFoundError(f"{url} needs another package: {error}.") from None
        except (ValueError, TypeError) as error:
            raise ValueError(f"{url} can't be opened: {error}.") from None

    def stat(self, path: str) -> ObjectInfo:
        with self._telling(path):
            info = self._system.info(self._at(path))
            version = next(
                (info[key] for key in ("ETag", "etag", "mtime", "LastModified", "sha256") if info.get(key)), ""
            )
            return ObjectInfo(int(info["size"]), str(version))

    def read(self, path: str, begin: int = 0, end: int | None = None) -> Part:
        with self._telling(path):
            # Asked once, at the beginning.
            size_bytes = None if begin else int(self._system.info(self._at(path))["size"])
            data = self._system.cat_file(self._at(path), start=begin or None, end=end)
            if end is not None and len(data) > end - begin:  # what its file system for HTTP does not tell
                raise RangeNotSupportedError(f"{self.url}/{path}: {len(data)} bytes came, not {end - begin}.")
            return Part(data, size_bytes)

    def write(self, path: str, source: bytes | str) -> None:
        with self._telling(path):
            at = self._at(path)
            self._system.makedirs(posixpath.dirname(at), exist_ok=True)
            if isinstance(source, bytes):
                self._system.pipe_file(at, source)
            else:
                self._system.put_file(source, at)

    def delete(self, path: str) -> None:
        with self._telling(path):
            self._system.rm_file(self._at(path))

    def _at(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"

    @contextlib.contextmanager
    def _telling(self, path: str) -> Iterator[None]:
        where = f"{self.url}/{path}"
        try:
            yield
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no {where}.") from None
        except PermissionError as error:
            raise PermissionError(f"{where} may not be read or written with these credentials: {error}") from None
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001  # each of its file systems raises its own
            raise StoreError(f"{where}: {type(error).__name__}: {error}") from None


def _split(url: str, kind: str) -> tuple[str, str]:
    """Bucket or host as obstore takes them, and what stands before paths there. All URLs of a bucket share a client."""
    rest = url.partition("://")[2]
    bucket, _, prefix = rest.partition("/")
    if kind in ("http", "https"):
        prefix = unquote(prefix)  # obstore quotes it
    return f"{kind}://{bucket}", f"{prefix}/" if prefix else ""


def _find_s3_credentials(options: dict[str, Any]) -> None:
    """obstore reads the environment, and asks the machine that it runs on. Profiles in ~/.aws are boto3's."""
    in_environment = any(os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"))
    if in_environment or any(key in options for key in ("access_key_id", "skip_signature", "credential_provider")):
        return
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ModuleNotFoundError:
        return
    session = boto3.Session()
    if session.get_credentials() is not None:
        options["credential_provider"] = Boto3CredentialProvider(session)
        if session.region_name:
            options.setdefault("region", session.region_name)


def _in_short(error: Exception) -> str:
    """Without the source that obstore prints behind its messages."""
    return " ".join(str(error).partition("Debug source")[0].split()) or type(error).__name__
