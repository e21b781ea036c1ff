"""What a configuration of LLM Foundry comes to: a loader, said in full, before anything is opened."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from stoker.foundry.config import DatasetConfig, FinetuningConfig, StreamConfig, TextConfig
from stoker.options import check_index
from stoker.stream import Stream


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """What stands beside `dataset`, as torch's DataLoader takes it.

    Raises:
        ValueError: num_workers is no number of workers.
    """

    drop_last: bool
    num_workers: int
    pin_memory: bool = True
    prefetch_factor: int | None = 2
    persistent_workers: bool = True
    timeout: float = 0

    def __post_init__(self) -> None:
        check_index("num_workers", self.num_workers, 0, 1024)

    @property
    def torch_arguments(self) -> dict[str, Any]:
        """Arguments of torch's DataLoader; without workers it has nothing to prefetch."""
        arguments = {f.name: getattr(self, f.name) for f in fields(self)}
        return arguments if self.num_workers else {**arguments, "prefetch_factor": None, "persistent_workers": False}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How samples become rows, in which order.

    Attributes:
        name: "pad", "concat" or "pack".
        packing: Of "pack": "foundry" or "best_fit"; else None.
        order: "streaming" or "stoker".
    """

    name: str
    packing: str | None
    order: str

    @property
    def is_foundrys(self) -> bool:
        """Whether rows are those of LLM Foundry."""
        return self.name == "pad" or self.packing == "foundry"


@dataclass(frozen=True, kw_only=True)
class LoaderPlan:
    """A loader of batches.

    Batches are mappings of tensors, (rows, width) int64, under `keys` in this order; and behind them, with an entry for
    each row, the lists `total_tokens` and `loss_generating_tokens` (see `TokenCounter`).

    Attributes:
        kind: "text", "finetuning", or "mixed".
        layout: How samples become rows.
        streams: What is read, in order. Those for finetuning have in `prepare` which of their turns have loss.
        config: The settings of the data set.
        options: Those of the loader.
        seq_len: Tokens of a row at most.
        batch_size: Rows of a batch of this rank.
        packing_ratio: Samples of a row, about, of packing="foundry"; None: it is one.
        pad_id: On padding of `input_ids`. None: the tokenizer has none, and rows that need it are an error.
        padding_side: "right" or "left".
        keys: Of a batch of tokens.
        ignores_pad_id: Whether labels are -100 where the id is pad_id, wherever it stands, and copies of input_ids
            else, as in LLM Foundry's text batches; or where there is no loss, by position.
        pads_to_longest: Whether rows are as wide as the longest of the batch; else as seq_len.
        trims_padding: Whether, from the second batch on, columns are left out that are padding in all rows, up to a
            multiple of 8.
        rank, world_size: Of this process; None: as the environment says.
    """

    kind: str
    layout: Layout
    streams: tuple[Stream, ...]
    config: DatasetConfig
    options: LoaderOptions
    seq_len: int
    batch_size: int
    packing_ratio: float | None
    pad_id: int | None
    padding_side: str
    keys: tuple[str, ...]
    ignores_pad_id: bool
    pads_to_longest: bool
    trims_padding: bool
    rank: int | None = None
    world_size: int | None = None

    @property
    def samples_per_batch(self) -> int:
        """What the rows of a batch are made of."""
        return int(self.batch_size * (self.packing_ratio or 1))

    @property
    def drops_last(self) -> bool:
        """Whether rows that do not fill the last batch of an epoch are left out, or come first in the next. Those of
        stoker's packing have no end."""
        return self.options.drop_last or self.layout.packing == "best_fit"

    @property
    def num_packers(self) -> int:
        """Of packing="foundry": each worker packs by itself, batch after batch in turn."""
        return max(1, self.options.num_workers)

    @property
    def packers_persist(self) -> bool:
        """Whether they keep what they have left over at the end of an epoch."""
        return self.options.persistent_workers or not self.options.num_workers

    @property
    def why_python(self) -> str | None:
        """Why batches have to be made in Python, by torch's DataLoader; None: they need not."""
        config = self.config
        if isinstance(config, TextConfig) and config.mlm_probability is not None:
            return "mlm_probability masks tokens at random"
        if isinstance(config, FinetuningConfig):
            if config.hf_name is not None:
                return "hf_name is a data set of Hugging Face"
            if not config.decoder_only_format:
                return "decoder_only_format is False"
        return None


def resolve_layout(config: DatasetConfig, packing_ratio: float | None) -> Layout:
    """The layout that a configuration asks for.

    Args:
        config: Of the data set.
        packing_ratio: Its own, found where it is "auto"; None or 1: LLM Foundry's packing is not asked for.

    Raises:
        ValueError: Two settings contradict each other.
    """
    packs = packing_ratio not in (None, 1)
    if packs and config.layout is not None:
        raise ValueError(
            f"packing_ratio is {packing_ratio}, which asks for LLM Foundry's packing, and layout is {config.layout!r}: "
            "remove one of them. layout: pack needs no ratio."
        )
    name = config.layout or ("pack" if packs else "pad")
    packing = None if name != "pack" else "foundry" if packs else "best_fit"
    is_foundrys = name == "pad" or packing == "foundry"
    order = config.order or ("streaming" if is_foundrys else "stoker")
    if order == "streaming" and not is_foundrys:
        raise ValueError(f"layout: {name} does not go with order: streaming, which counts samples: give order: stoker.")
    if order == "streaming" and config.weights_in == "tokens":
        raise ValueError("weights_in: tokens needs order: stoker; MosaicML Streaming's order counts samples.")
    return Layout(name=name, packing=packing, order=order)


def make_plan(
    kind: str,
    config: DatasetConfig,
    options: LoaderOptions,
    tokenizer: Any,
    batch_size: int,
    *,
    packing_ratio: float | None = None,
    rank: int | None = None,
    world_size: int | None = None,
) -> LoaderPlan:
    """The plan of a loader.

    Args:
        kind: Of streams that do not say theirs: "text" or "finetuning".
        config: Of the data set, checked beside the tokenizer.
        options: Of the loader.
        tokenizer: Of transformers.
        batch_size: Rows of a batch of this rank.
        packing_ratio: Of the data set, found where it is "auto".
        rank, world_size: See `LoaderPlan`.

    Raises:
        ValueError: Two settings contradict each other.
    """
    layout = resolve_layout(config, packing_ratio)
    given = config.stream_configs() if config.has_mds else {}
    streams = tuple(_stream_of(name, stream, kind, config) for name, stream in given.items())
    kinds = {str(stream.kind) for stream in streams} or {kind}
    of_all = kinds.pop() if len(kinds) == 1 else "mixed"
    is_foundry_text = of_all == "text" and layout.name == "pad"
    return LoaderPlan(
        kind=of_all,
        layout=layout,
        streams=streams,
        config=config,
        options=options,
        seq_len=config.max_seq_len,
        batch_size=batch_size,
        packing_ratio=packing_ratio,
        pad_id=tokenizer.pad_token_id,
        padding_side=tokenizer.padding_side,
        keys=_keys_of(of_all, layout, config),
        ignores_pad_id=is_foundry_text,
        pads_to_longest=is_foundry_text or getattr(config, "pad_to_longest", False),
        trims_padding=getattr(config, "allow_pad_trimming", False) and layout.name == "pad",
        rank=rank,
        world_size=world_size,
    )


def _keys_of(kind: str, layout: Layout, config: DatasetConfig) -> tuple[str, ...]:
    if kind == "text" and layout.name != "pack":
        has_documents = config.eos_token_id is not None or config.bos_token_id is not None
        return ("input_ids", "labels", *(["sequence_id"] if has_documents else []))
    return ("input_ids", "labels", "attention_mask", "sequence_id")


def _stream_of(name: str | None, stream: StreamConfig, kind: str, config: DatasetConfig) -> Stream:
    own_kind = stream.kind or kind
    targets = {
        "target_prompts": getattr(config, "target_prompts", "none"),
        "target_responses": getattr(config, "target_responses", "last"),
    }
    return Stream(
        remote=stream.remote or None,
        local=stream.local or None,
        name=name,
        split=stream.split or None,
        proportion=stream.proportion,
        repeat=stream.repeat,
        choose=stream.choose,
        kind=own_kind,
        overflow=stream.overflow,
        bytes_dtype=config.token_encoding_type,
        download_retry=stream.download_retry or 0,
        download_timeout=stream.download_timeout or config.download_timeout,
        validate_hash=stream.validate_hash or "auto",
        keep_zip=stream.keep_zip or None,  # False expands shards at once, which the core does as it needs
        prepare={**targets, "pairs_apart": True} if own_kind == "finetuning" else {"eos_text": ""},
    )
