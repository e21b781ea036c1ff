"""What becomes of a configuration of LLM Foundry: the status of each key, and the loader of stoker that is meant."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any, NamedTuple

from stoker.foundry.call import loader_call
from stoker.foundry.config import (
    OWN_KEYS,
    FinetuningConfig,
    StreamConfig,
    TextConfig,
    check_device_batch_size,
    names_of,
    nearest_key,
    plain,
    read_finetuning,
    read_text,
)
from stoker.foundry.plan import LoaderOptions, LoaderPlan, make_plan
from stoker.foundry.yaml import batch_sizes, check_labels, check_top_keys, read_yaml

SAME, BETTER, NO_EFFECT, OWN = "same", "better", "without effect", "stoker's own"
NOT_SUPPORTED, UNKNOWN = "not supported", "unknown"

_IN_PYTHON = "batches are made in Python, as fast as LLM Foundry's"
# Of keys that are not just the same.
_STATUS: dict[str, tuple[str, str]] = {
    "num_workers": (BETTER, "threads of the core; packed rows are those of so many workers; 0 needs nothing else"),
    "prefetch_factor": (SAME, "batches ahead, for each worker"),
    "persistent_workers": (SAME, "whether packers keep what they have left over at the end of an epoch"),
    "local": (SAME, "is enough by itself"),
    "download_retry": (BETTER, "with pauses that double"),
    "validate_hash": (BETTER, "without it, shards are compared with the first hash that the index has"),
    "keep_zip": (NO_EFFECT, "compressed shards stay as they are and are decoded in memory"),
    "predownload": (NO_EFFECT, "shards are fetched ahead as the order needs them"),
    "allow_unsafe_types": (NO_EFFECT, "the core reads tokens, and never unpickles"),
    "stream_name": (NOT_SUPPORTED, "there is no registry of streams: give `streams`"),
    "auto_packing_replication": (NO_EFFECT, "as in LLM Foundry"),
    "kwargs": (NO_EFFECT, "as in LLM Foundry"),
    "packing_ratio": (SAME, "layout: pack leaves less padding, and needs no ratio"),
    "mlm_probability": (SAME, _IN_PYTHON),
    "hf_name": (SAME, _IN_PYTHON),
    "epoch_size": (SAME, "weights_in: tokens counts tokens, with order: stoker"),
    "proportion": (SAME, "counts samples; weights_in: tokens counts tokens, with order: stoker"),
    **dict.fromkeys((*OWN_KEYS, "kind", "overflow"), (OWN, "")),
}
_OF_STREAMINGS_ORDER = (
    *("shuffle_algo", "num_canonical_nodes", "partition_algo", "shuffle_block_size"),
    *("sampling_method", "sampling_granularity", "batching_method"),
)


class Key(NamedTuple):
    """A key of a configuration.

    Attributes:
        name: With those that it stands under: "dataset.streams.a.local".
        value: As given.
        status: "same", "better", "without effect", "stoker's own", "not supported" or "unknown".
        note: Why, if there is something to say.
    """

    name: str
    value: Any
    status: str
    note: str


@dataclass(frozen=True)
class LoaderReport:
    """What becomes of a loader.

    Attributes:
        place: Where it stands: "train_loader", "eval_loader", "eval_loader/LABEL".
        keys: All of its keys, in order.
        error: Why it can't be built; None: it can.
        call: The `stoker.DataLoader` that is meant, as Python; None: there is none.
    """

    place: str
    keys: tuple[Key, ...]
    error: str | None
    call: str | None

    @property
    def is_supported(self) -> bool:
        """Whether it can be built, and every key is known and does what it says, or never did."""
        return self.error is None and not any(key.status in (NOT_SUPPORTED, UNKNOWN) for key in self.keys)


def migrate(
    path: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = (), *, world_size: int = 1
) -> list[LoaderReport]:
    """Looks at the loaders of a configuration, without opening data or a tokenizer.

    Args:
        path: Of a YAML of a training run; or what it holds.
        overrides: See `stoker.foundry.from_yaml`.
        world_size: Ranks, which divide the global batch.

    Raises:
        ModuleNotFoundError, FileNotFoundError, ValueError: The YAML can't be read, or has no loader; see `from_yaml`.
    """
    config = read_yaml(path, overrides)
    check_top_keys(config)
    train, evaluation = batch_sizes(config, world_size)
    loaders = list(_loaders_of(config))
    if not loaders:
        raise ValueError("the configuration has neither `train_loader` nor `eval_loader`.")
    return [
        _report(place, loader, evaluation if place.startswith("eval") else train or "device_batch_size")
        for place, loader in loaders
    ]


def _loaders_of(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    if config.get("train_loader") is not None:
        yield "train_loader", config["train_loader"]
    evaluations = config.get("eval_loader")
    if isinstance(evaluations, Mapping):
        yield "eval_loader", plain(evaluations)
    elif evaluations is not None:
        check_labels(evaluations)
        for one in evaluations:
            yield f"eval_loader/{one['label']}", {key: value for key, value in one.items() if key != "label"}


def _report(place: str, loader: Mapping[str, Any], batch_size: Any) -> LoaderReport:
    kind = loader.get("name")
    keys = tuple(_keys_of(loader))
    try:
        plan, has_own_packing = _plan_of(loader, kind, batch_size)
    except (ValueError, TypeError, NotImplementedError) as error:
        return LoaderReport(place, keys, str(error), None)
    if plan.layout.order == "stoker":
        keys = tuple(
            key._replace(status=NO_EFFECT, note="order is stoker's")
            if key.name.removeprefix("dataset.") in _OF_STREAMINGS_ORDER
            else key
            for key in keys
        )
    if plan.why_python is not None:
        return LoaderReport(place, keys, None, None)
    return LoaderReport(place, keys, None, loader_call(plan, batch_size, is_auto=has_own_packing))


def _plan_of(loader: Mapping[str, Any], kind: Any, batch_size: Any) -> tuple[LoaderPlan, bool]:
    """The plan of a loader, and whether stoker's packing stands for a ratio that is to be looked for."""
    if kind not in ("text", "finetuning"):
        raise ValueError(f"name is {kind!r}: there are loaders named 'text' and 'finetuning'.")
    given = {key: value for key, value in loader.items() if key not in ("name", "dataset", *OWN_KEYS)}
    if kind == "finetuning":
        given = {"drop_last": False, **given}
    try:
        options = LoaderOptions(**given)
    except TypeError as error:
        raise TypeError(str(error).replace("LoaderOptions.__init__", f"build_{kind}_dataloader")) from None
    dataset = {**(loader.get("dataset") or {}), **{key: loader[key] for key in OWN_KEYS if key in loader}}
    config: Any = read_text(dataset) if kind == "text" else read_finetuning(dataset)
    ratio = getattr(config, "packing_ratio", None)
    is_auto = ratio == "auto" and config.decoder_only_format
    if isinstance(ratio, str):
        ratio = None
        without = {"packing_ratio": None, "max_leftover_bins_to_keep": None, "order": None}
        config = replace(config, **without, layout="pack" if is_auto else None)
    if isinstance(batch_size, float):
        check_device_batch_size(batch_size)
    rows = batch_size if isinstance(batch_size, int) else 1
    tokenizer = SimpleNamespace(pad_token_id=None, padding_side="right")
    return make_plan(kind, config, options, tokenizer, rows, packing_ratio=ratio), is_auto


def _keys_of(loader: Mapping[str, Any]) -> Iterator[Key]:
    of_loader = ["name", "dataset", *names_of(LoaderOptions), *OWN_KEYS]
    of_dataset = names_of(TextConfig if loader.get("name") == "text" else FinetuningConfig)
    for name, value in loader.items():
        if name != "dataset":
            yield _key("", name, value, of_loader)
            continue
        for key, of_key in (value or {}).items():
            if key != "streams" or not isinstance(of_key, Mapping):
                yield _key("dataset.", key, of_key, of_dataset)
                continue
            for stream, settings in of_key.items():
                for setting, of_setting in (settings or {}).items():
                    place = f"dataset.streams.{stream}."
                    yield _key(place, setting, of_setting, [f.name for f in fields(StreamConfig)])


def _key(place: str, name: str, value: Any, known: Sequence[str]) -> Key:
    if name in ("auto_packing_replication", "kwargs") or name in known:
        status, note = _STATUS.get(name, (SAME, ""))
        if name == "stream_name" and value == "stream":
            status, note = SAME, ""
        if name in ("eos_token_id", "bos_token_id") and "packing_ratio" in known:
            status, note = BETTER, "goes with streams"
        if name == "decoder_only_format" and value is False:
            note = _IN_PYTHON
        return Key(place + name, value, status, note)
    meant = nearest_key(name, known)
    return Key(place + name, value, UNKNOWN, f"did you mean {meant!r}?" if meant else "")
