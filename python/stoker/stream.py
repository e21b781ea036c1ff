"""What the user says of one stream."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stoker.files import legible_name
from stoker.options import OVERFLOWS, check_index, default_cache_dir
from stoker.schema import INTEGER_TYPES, KINDS
from stoker.stores import is_url

_WEIGHTS = ("proportion", "repeat", "choose")


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One dataset directory of MDS shards, local or remote, with a name and a weight.

    At most one of `proportion`, `repeat` and `choose` may be given; without any, each sample comes once an epoch.

    Attributes:
        local: The directory with `index.json`; of a remote stream the one where its copy goes. Made absolute, so that
            it means the same wherever it is used. Default for a remote stream: a directory of its own in the user's
            cache, the same for every run.
        remote: URL of a directory, such as "s3://bucket/data": index.json is fetched from there, and each shard ahead
            of need. docs/remote.md tells which schemes there are, and what `storage_options` they take.
        name: Unique among the streams of a loader; part of the order's keys, so that the same name gives the same
            shuffle wherever the data lies. Default: the last part of `local`, or else of `remote`.
        split: A sub-directory of both to read instead, such as "train".
        proportion: Share of the epoch, relative to the other streams. All streams or none have one.
        repeat: Passes an epoch; may be fractional.
        choose: Units an epoch: samples (`pad`, `pack`; tokens where the loader's weights are) or rows (`concat`).
        kind: "text" (loss on every token) or "finetuning" (loss where `labels` are not -100). Found from the columns: a
            stream with `labels` beside `input_ids` is for finetuning. Give it to have it checked.
        overflow: What a sample longer than seq_len does in this stream; see `DataLoader`.
        eos_token_id: With `documents="eos"`: the last token of a document in this stream. Default: the loader's, for
            text streams.
        bytes_dtype: Integer type of token columns whose encoding is `bytes`, which does not tell it.
        labels_dtype: The same of a column `labels`. Default: as bytes_dtype.
        follow_links: Shards may be symbolic links that lead out of the directory, as in the cache of the Hugging Face
            hub. Without it such a shard is an error: an index should not make a job read files elsewhere.
        prepare: Of a stream of raw text, prompts and responses, messages or turns, in a loader with a `tokenizer`: how
            samples become tokens. Arguments of `stoker.prepare` by name: add_special_tokens, bos_text, columns,
            eos_text, max_seq_len, on_error, preset, target_prompts, target_responses. And pairs_apart: whether
            `input_ids` and `labels` of shards that stoker has not written are a prompt and its response, as in older
            data of LLM Foundry, and not labels of these ids.
        storage_options: Of the remote store: credentials, endpoint, `anon=True` for none. Default: what the environment
            says.
        download_retry: How often a request to the remote that has failed is made again, after pauses that double.
        download_timeout: Seconds that a request may take.
        download_total_timeout: Seconds that a shard may take, with all that is tried.
        validate_hash: The hash by which a shard that has come is compared with index.json: its name, or "auto": the
            first that the index has, if it has any. None: sizes alone are compared.
        validate_cached: Whether shards that are there already are compared, too: None: once after each start of the
            machine, since a power failure may have damaged them. True: once a process. False: never.
        keep_zip: Of shards compressed with zstd: True, and the default: they stay so on the disk. False: they are
            expanded when they come, and the compressed file is not kept. Shards that are compressed in another way
            are expanded in any case; True keeps the compressed file beside.
        on_missing: What becomes of a remote shard that can't be had: "error", in its place in order; "skip": the run
            goes on as if its samples were empty, and `stats()` tells.

    Raises:
        ValueError: More than one weight is given, one is not a number of at least 0, another value is not one of those
            listed, there is neither `local` nor `remote`, or the directory's or stream's name is not UTF-8.
    """

    local: str | os.PathLike[str] | None = None
    remote: str | None = None
    name: str | None = None
    split: str | None = None
    proportion: float | None = None
    repeat: float | None = None
    choose: int | None = None
    kind: str | None = None
    overflow: str | None = None
    eos_token_id: int | None = None
    bytes_dtype: str = "int64"
    labels_dtype: str | None = None
    follow_links: bool = False
    prepare: Mapping[str, Any] | None = None
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)  # there may be secrets
    download_retry: int = 5
    download_timeout: float = 60.0
    download_total_timeout: float = 600.0
    validate_hash: str | None = "auto"
    validate_cached: bool | None = None
    keep_zip: bool | None = None
    on_missing: str = "error"

    def __post_init__(self) -> None:
        self._set_places()
        for text in (self.name, self.directory):
            try:
                str(text).encode()
            except UnicodeEncodeError:
                raise ValueError(
                    f"{text!r} is not UTF-8: rename the directory, or link to it by another name."
                ) from None
        given = [w for w in _WEIGHTS if getattr(self, w) is not None]
        if len(given) > 1:
            raise ValueError(f"stream {self.name!r} has {' and '.join(given)}: give at most one of them.")
        for weight in given:
            value = getattr(self, weight)
            if not isinstance(value, (int, float, np.number)) or not 0 <= value < math.inf:
                raise ValueError(f"stream {self.name!r} has {weight}={value!r}: it must be a number of at least 0.")
        if self.choose is not None and self.choose != int(self.choose):
            raise ValueError(f"stream {self.name!r} has choose={self.choose!r}: it must be a whole number.")
        for option, known in (("kind", KINDS), ("overflow", OVERFLOWS), ("on_missing", ("error", "skip"))):
            value = getattr(self, option)
            if value is not None and value not in known:
                raise ValueError(
                    f"stream {self.name!r} has {option}={value!r}: it must be one of {', '.join(map(repr, known))}."
                )
        self._check_download()
        if self.eos_token_id is not None:
            check_index(f"eos_token_id of stream {self.name!r}", self.eos_token_id, 0, (1 << 63) - 1)
        for option in ("bytes_dtype", "labels_dtype"):
            value = getattr(self, option) or self.bytes_dtype
            try:
                dtype = np.dtype(value).name
            except TypeError:
                dtype = ""
            if dtype not in INTEGER_TYPES:
                raise ValueError(
                    f"stream {self.name!r} has {option}={value!r}: it must be one of {', '.join(INTEGER_TYPES)}."
                )
            object.__setattr__(self, option, dtype)

    def _set_places(self) -> None:
        """Local, remote and name, as they mean the same everywhere."""
        local, remote = self.local, self.remote
        if remote is not None:
            remote = os.fspath(remote)
            remote = remote.rstrip("/") if is_url(remote) else os.path.abspath(remote.removeprefix("file://"))
        if local is None:
            if remote is None:
                raise ValueError("a stream has neither local nor remote: say where its index.json is.")
            name = self.name or os.path.basename(remote)
            digest = hashlib.sha256(remote.encode(errors="surrogateescape")).hexdigest()[:16]
            local = os.path.join(default_cache_dir(), "remote", f"{legible_name(name)}-{digest}")
        path = os.path.abspath(os.fspath(local))
        if not isinstance(path, str):
            raise ValueError(f"local is {self.local!r}: give the directory as str or Path.")
        name = self.name or os.path.basename(path if self.local is not None else str(remote))
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "local", path)
        object.__setattr__(self, "remote", remote)
        if remote is not None and not is_url(remote) and _are_same(self.directory, str(self.remote_directory)):
            object.__setattr__(self, "remote", None)  # the only copy is there: nothing may be removed

    def _check_download(self) -> None:
        check_index(f"download_retry of stream {self.name!r}", self.download_retry, 0, 1000)
        for option in ("download_timeout", "download_total_timeout"):
            value = getattr(self, option)
            if not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"stream {self.name!r} has {option}={value!r}: it is in seconds, above 0.")
        try:
            json.dumps(dict(self.storage_options or {}))
        except TypeError as error:
            raise ValueError(
                f"stream {self.name!r} has storage_options that are no texts, numbers and lists of them: {error}."
            ) from None

    @property
    def directory(self) -> str:
        """The directory that holds index.json."""
        return os.path.join(str(self.local), self.split) if self.split else str(self.local)

    @property
    def remote_directory(self) -> str | None:
        """The URL of the directory that holds index.json, if there is a remote."""
        return f"{self.remote}/{self.split}" if self.remote and self.split else self.remote


def _are_same(one: str, other: str) -> bool:
    """Whether two paths lead to one directory, by links, too."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)
