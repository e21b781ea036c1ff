"""LLM Foundry's configurations of loaders, checked: the keys of `dataset`, with its defaults and its sentences.

What is read is copied, never changed. Keys that LLM Foundry has not: `kind` and `overflow` of a stream; `layout`,
`order`, `weights_in` and `strict` of a data set.
"""

from __future__ import annotations

import difflib
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from stoker.foundry.targets import validate_target_settings
from stoker.options import LAYOUTS, OVERFLOWS
from stoker.schema import KINDS
from stoker.streaming_order import StreamingOrder
from stoker.units import parse_count

logger = logging.getLogger("stoker")

SUPPORTED_MDS_ENCODING_TYPES = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
ORDERS = ("streaming", "stoker")
OWN_KEYS = ("layout", "order", "weights_in", "strict")  # of a data set, or beside it

_WEIGHTS = ("proportion", "repeat", "choose")
_HUGGING_FACE_KEYS = ("hf_kwargs", "preprocessing_fn", "safe_load")
_NOT_TO_BE_SET = ("batch_size", "tokenizer")  # what the builders give themselves
_INTERNAL_KEYS = ("auto_packing_replication", "kwargs")  # that LLM Foundry lets pass

_Dataclass = TypeVar("_Dataclass")


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """An entry of `streams`. None: as the data set says.

    Raises:
        ValueError: A value is not in its range.
    """

    remote: str | None = None
    local: str | None = None
    split: str | None = None
    proportion: float | None = None
    repeat: float | None = None
    choose: int | None = None
    download_retry: int | None = None
    download_timeout: float | None = None
    validate_hash: str | None = None
    keep_zip: bool | None = None
    kind: str | None = None
    overflow: str | None = None

    def __post_init__(self) -> None:
        if sum(getattr(self, weight) is not None for weight in _WEIGHTS) > 1:
            raise ValueError(
                "At most one of `proportion`, `repeat`, and `choose` may be specified; the others are derived"
            )
        for name in (*_WEIGHTS, "download_retry"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ValueError(f"`{name}` must be non-negative")
        if self.download_timeout is not None and self.download_timeout <= 0:
            raise ValueError("`download_timeout` must be positive")
        for name, known in (("kind", KINDS), ("overflow", OVERFLOWS)):
            _check_name(f"{name} of a stream", getattr(self, name), known)


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """What both kinds of data sets have, see `stoker.streaming.StreamingDataset`; and stoker's own keys.

    Attributes:
        max_seq_len: Tokens of a row.
        streams: By name; empty where `remote` or `local` say where the only one is.
        token_encoding_type: Integer type of columns whose encoding is `bytes`.
        eos_token_id, bos_token_id: As the tokenizer has them.
        layout: "pad": a sample a row. "pack": whole samples together, by stoker's packing. "concat": rows cut from
            each stream's line of tokens. Default: LLM Foundry's.
        order: "streaming", MosaicML Streaming's; "stoker". Default: "streaming" where the layout is LLM Foundry's.
        weights_in: What weights and epoch_size count: "samples" or "tokens".
        strict: Whether a text loader refuses keys that nobody knows, as a finetuning loader does.

    Raises:
        ValueError: A value is none of the known ones, or not in its range.
        NotImplementedError: Sequence parallelism is asked for.
    """

    max_seq_len: int
    streams: Mapping[str, StreamConfig] = field(default_factory=dict)
    remote: str | None = None
    local: str | None = None
    split: str | None = None
    download_retry: int = 2
    download_timeout: float = 60
    validate_hash: str | None = None
    keep_zip: bool = False
    epoch_size: int | None = None
    predownload: int | None = None
    cache_limit: int | str | None = None
    partition_algo: str = "relaxed"
    num_canonical_nodes: int | None = None
    shuffle: bool = False
    shuffle_algo: str = "py1e"
    shuffle_seed: int = 9176
    shuffle_block_size: int | None = None
    sampling_method: str = "balanced"
    sampling_granularity: int = 1
    batching_method: str = "random"
    allow_unsafe_types: bool = False
    replication: int = 1
    stream_name: str = "stream"
    stream_config: Mapping[str, Any] | None = None
    token_encoding_type: str = "int64"
    seq_parallel_replication: int = 1
    eos_token_id: int | None = None
    bos_token_id: int | None = None
    override_eos_token_id_mismatch_error: bool = False
    override_bos_token_id_mismatch_error: bool = False
    layout: str | None = None
    order: str | None = None
    weights_in: str | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        if self.max_seq_len != int(self.max_seq_len):
            raise ValueError("max_seq_len must be an integer")
        if (self.seq_parallel_replication or 1) > 1:
            raise NotImplementedError("Sequence parallelism is not supported.")
        self._set("max_seq_len", int(self.max_seq_len))
        self._set("replication", self.replication or 1)
        self._set("epoch_size", parse_epoch_size(self.epoch_size))
        if isinstance(self.shuffle_block_size, float):  # as YAML has 1e6
            self._set("shuffle_block_size", int(self.shuffle_block_size))
        check_token_encoding_type(self.token_encoding_type)
        if self.stream_name != "stream":
            raise ValueError(
                f"stream_name is {self.stream_name!r}: there is no registry of streams here, give `streams`."
            )
        for name, known in (("layout", LAYOUTS), ("order", ORDERS), ("weights_in", ("samples", "tokens"))):
            _check_name(name, getattr(self, name), known)
        # An order of one sample stands for that to come: it knows what the settings may be.
        StreamingOrder(shard_sizes=[[1]], choose=[1], batch_size=1, **self.order_settings)
        self._check_weights()

    @property
    def order_settings(self) -> dict[str, Any]:
        """Of MosaicML Streaming's order, by name."""
        names = (
            *("shuffle", "shuffle_algo", "shuffle_seed", "shuffle_block_size", "num_canonical_nodes"),
            *("partition_algo", "sampling_method", "sampling_granularity", "batching_method"),
        )
        return {name: getattr(self, name) for name in names}

    @property
    def has_mds(self) -> bool:
        """Whether the data are MDS shards."""
        return bool(self.streams or self.remote or self.local)

    def stream_configs(self) -> dict[str | None, StreamConfig]:
        """The streams by name, in order, with the defaults of the data set; of a single one without a name."""
        defaults = {
            name: getattr(self, name) for name in ("download_retry", "download_timeout", "validate_hash", "keep_zip")
        }
        if not self.streams:
            single = {**(self.stream_config or {}), **defaults, "split": self.split}
            return {None: read_keys(StreamConfig, {**single, "remote": self.remote, "local": self.local}, "Stream")}
        found: dict[str | None, StreamConfig] = {}
        for name, stream in self.streams.items():
            given = {f.name: getattr(stream, f.name) for f in fields(stream) if getattr(stream, f.name) is not None}
            found[name] = StreamConfig(**{**defaults, "split": self.split, **given})
        return found

    def _check_weights(self) -> None:
        streams = list(self.streams.values())
        for number, stream in enumerate(streams):
            if (stream.proportion is None) != (streams[0].proportion is None):
                raise ValueError(
                    "Relative (`proportion`) and absolute (`repeat`, `choose`, none) stream weights are incompatible "
                    f"with each other (error in stream {number})"
                )
        if self.epoch_size and any(stream.repeat is not None or stream.choose is not None for stream in streams):
            raise ValueError("Only provide `choose` when weighting streams relatively")

    def _check_places(self) -> None:
        """What is where, for MDS."""
        if bool(self.streams) == bool(self.remote or self.local):
            raise ValueError("You must provide either `streams` or `remote`/`local`, but not both.")
        for stream in self.stream_configs().values():
            if not stream.remote and not stream.local:
                raise ValueError("`remote` and/or `local` path must be provided")
            stream_remote_local_validate(stream.remote, stream.local, stream.split)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True)
class TextConfig(DatasetConfig):
    """`dataset` of a text loader.

    Attributes:
        mlm_probability: Of a token to be masked, for masked language modeling. Default: no such.
    """

    mlm_probability: float | None = None

    def __post_init__(self) -> None:
        from stoker.foundry.collators import BOTH_SEPARATORS

        super().__post_init__()
        if self.eos_token_id is not None and self.bos_token_id is not None:
            raise ValueError(BOTH_SEPARATORS)
        self._check_places()


@dataclass(frozen=True, kw_only=True)
class FinetuningConfig(DatasetConfig):
    """`dataset` of a finetuning loader.

    Attributes:
        decoder_only_format: Whether batches are for decoders, or for encoder-decoder models.
        target_prompts, target_responses: See `stoker.foundry.stitch_turns_decoder_only`; lower case.
        allow_pad_trimming, pad_to_longest: See `stoker.foundry.Seq2SeqFinetuningCollator`.
        packing_ratio: Samples of a row, 1 or more, or "auto". Default: one.
        max_leftover_bins_to_keep: See `stoker.foundry.BinPackCollator`.
        hf_name, hf_kwargs, preprocessing_fn, safe_load: Of a data set of Hugging Face, whose `shuffle_seed` is 0 unless
            it is given.
    """

    decoder_only_format: bool
    target_prompts: str = "none"
    target_responses: str = "last"
    allow_pad_trimming: bool = False
    pad_to_longest: bool = False
    packing_ratio: float | str | None = None
    max_leftover_bins_to_keep: int | None = None
    hf_name: str | None = None
    hf_kwargs: Mapping[str, Any] | None = None
    preprocessing_fn: str | Mapping[str, str] | None = None
    safe_load: bool | None = None

    def __post_init__(self) -> None:
        self._set("target_prompts", self.target_prompts.lower())
        self._set("target_responses", self.target_responses.lower())
        validate_target_settings(self.target_prompts, self.target_responses, self.decoder_only_format)
        super().__post_init__()
        ratio = self.packing_ratio
        if self.max_leftover_bins_to_keep is not None:
            if ratio is None:
                raise ValueError(
                    "dataset.max_leftover_bins_to_keep has been defined, but dataset.packing_ratio has not been set. "
                    "Please set the latter to turn on packing or remove the former from the config."
                )
            if self.max_leftover_bins_to_keep < 0:
                raise ValueError(f"max_leftover_bins_to_keep={self.max_leftover_bins_to_keep!r} must be >=0 or None.")
        if isinstance(ratio, str) and ratio != "auto":
            raise ValueError(f'dataset.packing_ratio must be a float or "auto", but it was set to {ratio}.')
        if not isinstance(ratio, str) and ratio is not None and not 1 <= ratio < math.inf:
            raise ValueError("packing_ratio must be >= 1, if supplied")
        if ratio not in (None, 1, "auto"):
            self.check_packs()
        if self.hf_name is None:
            self._check_places()

    def check_packs(self) -> None:
        """
        Raises:
            NotImplementedError: Batches are not for decoders, and can't be packed.
        """
        if not self.decoder_only_format:
            raise NotImplementedError("On-the-fly packing is currently only supported for decoder-only formats.")


# ---------------------------------------------------------------- reading
def plain(config: Any) -> Any:
    """A copy of a configuration as dicts and lists, interpolations resolved; of OmegaConf's, or of any mappings."""
    if isinstance(config, Mapping):
        return {key: plain(value) for key, value in config.items()}
    if isinstance(config, Sequence) and not isinstance(config, (str, bytes)):
        return [plain(value) for value in config]
    return config


def read_text(dataset: Mapping[str, Any]) -> TextConfig:
    """Reads `dataset` of a text loader. Keys that nobody knows are logged, or refused if it is strict.

    Raises:
        TypeError: max_seq_len is missing, or there is a key that must not be there.
        ValueError, NotImplementedError: A value is wrong, see `TextConfig`.
    """
    given = _read_common(dataset, "StreamingTextDataset")
    if given.get("max_seq_len") is None:
        raise TypeError("StreamingTextDataset.__init__() missing 1 required positional argument: 'max_seq_len'")
    known = names_of(TextConfig)
    for key in [key for key in given if key not in known]:
        if given.get("strict"):
            raise _unexpected("StreamingTextDataset", key, known)
        if key not in _INTERNAL_KEYS:
            meant = nearest_key(key, known)
            logger.warning(
                "The dataset config has a key %r that no text loader knows: it has no effect.%s",
                key,
                f" Did you mean {meant!r}?" if meant else "",
            )
        del given[key]
    return read_keys(TextConfig, given, "StreamingTextDataset")


def read_finetuning(dataset: Mapping[str, Any]) -> FinetuningConfig:
    """Reads `dataset` of a finetuning loader.

    Raises:
        TypeError: max_seq_len is missing, or there is a key that nobody knows, or that must not be there.
        ValueError, NotImplementedError: A value is wrong, see `FinetuningConfig`.
    """
    given = _read_common(dataset, "StreamingFinetuningDataset")
    if given.get("max_seq_len") is None:
        raise TypeError("_validate_config() missing 1 required positional argument: 'max_seq_len'")
    if given.get("decoder_only_format") is None:
        raise ValueError("decoder_only_format must be set to either True or False, but it was None.")
    known = names_of(FinetuningConfig)
    if extraneous := [key for key in given if key not in (*known, *_INTERNAL_KEYS)]:
        logger.warning("The dataset config contains the following extraneous keys: %s", ", ".join(extraneous))
    _check_source(given)
    for key in extraneous:
        if given.get("hf_name") is None:
            raise _unexpected("StreamingDataset", key, known)
    kept = {key: value for key, value in given.items() if key in known}
    if given.get("hf_name") is not None:
        kept.setdefault("shuffle_seed", 0)
    for key in ("target_prompts", "target_responses"):
        if kept.get(key, "") is None:
            del kept[key]
    return read_keys(FinetuningConfig, kept, "StreamingFinetuningDataset")


def _read_common(dataset: Mapping[str, Any], what: str) -> dict[str, Any]:
    given: dict[str, Any] = as_mapping("dataset", dataset)
    for key in _NOT_TO_BE_SET:
        if key in given:
            raise TypeError(f"{what}() got multiple values for keyword argument {key!r}")
    streams = as_mapping("streams", given.get("streams") or {})
    given["streams"] = {
        str(name): read_keys(StreamConfig, as_mapping(f"stream {name!r}", stream or {}), "Stream")
        for name, stream in streams.items()
    }
    return given


def as_mapping(what: str, given: Any) -> dict[str, Any]:
    """A copy of a part of a configuration.

    Raises:
        TypeError: It is not a mapping.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"{what} is {given!r}: it must be a mapping of keys.")
    copy: dict[str, Any] = plain(given)
    return copy


def _check_source(given: Mapping[str, Any]) -> None:
    """Whether a finetuning data set is either of Hugging Face or of MDS shards.

    Raises:
        ValueError: It is both, or none.
    """
    remote, local = (given.get(key) for key in ("remote", "local"))
    if given.get("hf_name") is not None:
        if found := [f"`{key}`" for key in ("local", "remote", "streams") if given.get(key)]:
            raise ValueError(
                f"The dataset config sets a value for `hf_name` as well as the following keys: {', '.join(found)}.\n"
                "Those keys are used when building from a streaming dataset, but setting `hf_name` instructs the "
                "dataset to build from a HuggingFace dataset."
            )
        return
    if remote is None and local is None and not given["streams"]:
        raise ValueError(
            "In the dataset config, you must set `hf_name` to use a HuggingFace dataset, or set `remote` to use a "
            "streaming dataset, or set `streams` to use multiple streaming datasets,  but all were None."
        )
    source = "streams" if remote is None and local is None else "remote"
    if found := [f"`{key}`" for key in _HUGGING_FACE_KEYS if given.get(key) is not None]:
        raise ValueError(
            f"The dataset config sets a value for `{source}` as well as the following keys: {', '.join(found)}.\n"
            "Those keys are used when building from a HuggingFace dataset, but setting "
            f"`{source}` instructs the dataset to build from a streaming dataset."
        )
    if remote is not None and local is None:
        raise ValueError(
            "Using a streaming dataset requires setting both `remote` and `local`, but dataset.local is None."
        )


def read_keys(of: type[_Dataclass], given: Mapping[str, Any], what: str) -> _Dataclass:
    """A dataclass of a mapping; where a value is None and the default is not, the default.

    Args:
        of: The class, all of whose fields are keywords.
        given: Its arguments.
        what: Its name in the configuration, for errors.

    Raises:
        TypeError: There is a key that it does not have.
    """
    known = {f.name: f for f in fields(of)}  # type: ignore[arg-type]
    for key in given:
        if key not in known:
            raise _unexpected(what, str(key), known)
    return of(
        **{key: value for key, value in given.items() if value is not None or known[key].default in (None, MISSING)}
    )


def names_of(of: type[Any]) -> list[str]:
    """The keys of a configuration."""
    return [f.name for f in fields(of)]


def nearest_key(key: str, known: Iterable[str]) -> str | None:
    """The known one that is meant, perhaps."""
    return next(iter(difflib.get_close_matches(key, list(known), n=1)), None)


def _unexpected(what: str, key: str, known: Iterable[str]) -> TypeError:
    meant = nearest_key(key, known)
    return TypeError(
        f"{what}.__init__() got an unexpected keyword argument {key!r}{f': did you mean {meant!r}?' if meant else ''}"
    )


# ---------------------------------------------------------------- values
def parse_epoch_size(value: Any) -> int | None:
    """Samples of an epoch: 1000, "100k"; None, where it is 0 or None.

    Raises:
        ValueError: It is negative, or no such number.
    """
    if isinstance(value, float) and value.is_integer():  # as YAML has 1e6
        value = int(value)
    if not value:
        return None
    if isinstance(value, int) and value < 0:
        raise ValueError(f"Epoch size cannot be negative. Received {value}.")
    return parse_count(value) or None


def check_device_batch_size(device_batch_size: Any) -> int:
    """Rows of a batch of a rank.

    Raises:
        ValueError: It is no whole number.
    """
    if not isinstance(device_batch_size, int):
        raise ValueError("device_batch_size should be integer.")
    return device_batch_size


def check_token_encoding_type(name: str) -> str:
    """The name of an integer type.

    Raises:
        ValueError: It is not one of those that token columns may have.
    """
    if name not in SUPPORTED_MDS_ENCODING_TYPES:
        raise ValueError(f"The token_encoding_type must be one of {SUPPORTED_MDS_ENCODING_TYPES}, but got {name}")
    return name


def stream_remote_local_validate(remote: str | None, local: str | None, split: str | None) -> None:
    """Checks that a local directory has the split, where nothing is to be fetched.

    Raises:
        ValueError: It has not.
    """
    if remote not in (None, local) or local is None or split is None or not os.path.isdir(local):
        return
    if not os.path.exists(os.path.join(local, split)):
        raise ValueError(f"Local directory {local} does not contain split {split}")


def _check_name(name: str, value: Any, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise ValueError(f"{name} is {value!r}: it must be one of {', '.join(map(repr, known))}.")
