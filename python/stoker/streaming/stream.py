"""One of the directories that a data set reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import stoker
from stoker.mixture import counts_per_epoch, proportions_per_epoch

_WEIGHTS = ("proportion", "repeat", "choose")


class Stream:
    """A directory of MDS shards, local or remote, with a weight; for `StreamingDataset(streams=[...])`.

    Its attributes are named as the arguments. When a data set has been made of it, `proportion`, `repeat` and `choose`
    tell the stream's share of an epoch, its passes and its samples.
    """

    def __init__(
        self,
        *,
        remote: str | None = None,
        local: str | None = None,
        split: str | None = None,
        proportion: float | None = None,
        repeat: float | None = None,
        choose: int | None = None,
        download_retry: int | None = None,
        download_timeout: float | None = None,
        validate_hash: str | None = None,
        keep_zip: bool | None = None,
    ) -> None:
        """
        Args:
            remote: URL of the directory, or a path; docs/remote.md tells which schemes there are.
            local: Where its copy goes; without `remote` where it lies. Default: a directory of its own in the user's
                cache ($STOKER_CACHE), the same for every run.
            split: A sub-directory of both to read instead, such as "train". Default: the data set's.
            proportion: Share of the epoch, relative to the other streams. All streams or none have one.
            repeat: Passes an epoch; may be fractional.
            choose: Samples an epoch.
            download_retry: How often a request that has failed is made again. Default: the data set's.
            download_timeout: Seconds that a request may take. Default: the data set's.
            validate_hash: The hash by which shards that have come are compared with the index. Default: the data set's;
                without it, the first that the index has, if it has any.
            keep_zip: Whether the compressed file of a shard stays beside the expanded one. Default: the data set's.

        Raises:
            ValueError: More than one weight is given, or a value is not in its range.
        """
        given: dict[str, Any] = {"proportion": proportion, "repeat": repeat, "choose": choose}
        if sum(weight is not None for weight in given.values()) > 1:
            raise ValueError(
                "At most one of `proportion`, `repeat`, and `choose` may be specified; the others are derived."
            )
        for name, value in (*given.items(), ("download_retry", download_retry)):
            if value is not None and value < 0:
                raise ValueError(f"`{name}` must be non-negative, but got: {value}.")
        if download_timeout is not None and download_timeout <= 0:
            raise ValueError(f"`download_timeout` must be positive, but got: {download_timeout}.")
        self.remote = remote
        self.local = local
        self.split = split or ""
        self.proportion, self.repeat, self.choose = proportion, repeat, choose
        self.download_retry = download_retry
        self.download_timeout = download_timeout
        self.validate_hash = validate_hash
        self.keep_zip = keep_zip
        self._given = given  # the attributes tell what has come of them

    def apply_default(self, default: dict[str, Any]) -> None:
        """Takes what was not given from the data set: split, download_retry, download_timeout, validate_hash, keep_zip.

        Raises:
            ValueError: The stream has neither remote nor local.
        """
        if not self.remote and not self.local:
            raise ValueError("`remote` and/or `local` path must be provided.")
        self.split = self.split or default["split"] or ""
        self.validate_hash = self.validate_hash or default["validate_hash"]
        for name in ("download_retry", "download_timeout", "keep_zip"):
            if getattr(self, name) is None:
                setattr(self, name, default[name])

    def specify(self, name: str) -> stoker.Stream:
        """What stoker's own parts take, of a stream that has its defaults. Sets `local` where it was not given.

        Args:
            name: For errors; unique in the data set.
        """
        made = stoker.Stream(
            remote=self.remote or None,
            local=self.local or None,
            name=name,
            split=self.split or None,
            download_retry=int(self.download_retry or 0),
            download_timeout=float(self.download_timeout or 0),
            validate_hash=self.validate_hash or "auto",
            keep_zip=bool(self.keep_zip),
            **self._given,
        )
        self.local = self.local or str(made.local)
        return made


def name_streams(streams: Sequence[Stream]) -> list[str]:
    """A name for each: that of its directory, with its number where another one has the same."""
    names = [os.path.basename(os.path.join(str(s.local or s.remote), s.split).rstrip("/")) for s in streams]
    return [name if names.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(names)]


def apply_weights(
    streams: Sequence[Stream],
    specs: Sequence[stoker.Stream],
    sizes: Sequence[int],
    *,
    epoch_size: int | None,
    seed: int,
) -> None:
    """Works out the share, passes and samples of each stream in an epoch, and sets them as its attributes.

    Args:
        streams: Whose these are.
        specs: The same as stoker's.
        sizes: Samples of each.
        epoch_size: Samples of an epoch; None: as the weights say.
        seed: As of `stoker.mixture.counts_per_epoch`.

    Raises:
        ValueError: The weights do not go with each other or with `epoch_size`.
    """
    counts = counts_per_epoch(specs, sizes, epoch_size=epoch_size, seed=seed)
    shares = proportions_per_epoch(specs, sizes, counts, epoch_size=epoch_size)
    for stream, size, count, share in zip(streams, sizes, counts, shares, strict=True):
        stream.proportion, stream.repeat, stream.choose = share, count / size, count
