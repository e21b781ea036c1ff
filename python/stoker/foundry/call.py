"""The arguments of `stoker.DataLoader` that a plan comes to, as they are and as Python says them."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

from stoker.foundry.plan import LoaderPlan
from stoker.loader import DataLoader
from stoker.stream import Stream
from stoker.streaming_order import StreamingSettings


def loader_arguments(plan: LoaderPlan) -> dict[str, Any]:
    """The arguments of a plan's loader, but for its streams."""
    config, options, layout = plan.config, plan.options, plan.layout
    arguments = {
        "seq_len": plan.seq_len,
        "batch_size": plan.batch_size,
        "layout": layout.name,
        "order": _order(plan),
        "fields": plan.keys,
        "field_rules": "foundry" if layout.is_foundrys and plan.kind != "mixed" else "stoker",
        "pad_id": _pad_id(plan),
        "padding_side": plan.padding_side,
        "epoch_size": config.epoch_size,
        "seed": config.shuffle_seed,
        "shuffle": config.shuffle,
        "rank": plan.rank,
        "world_size": plan.world_size,
        "replication": config.replication,
        "weights_in": config.weights_in,
        "cache_limit": config.cache_limit,
        "drop_last": plan.drops_last,
        "num_workers": options.num_workers,
        "prefetch_factor": options.num_workers * (options.prefetch_factor or 2) or None,  # there it is of each worker
        "pin_memory": options.pin_memory,
        "timeout": options.timeout,
    }
    if layout.packing == "foundry":
        arguments |= {
            "packing": "foundry",
            "packing_ratio": plan.packing_ratio,
            "max_leftover_bins_to_keep": getattr(config, "max_leftover_bins_to_keep", None),
        }
    if plan.kind != "finetuning":
        for name in ("eos", "bos"):
            if (token := getattr(config, f"{name}_token_id")) is not None:
                arguments |= {"documents": name, f"{name}_token_id": token}
    return arguments


def _pad_id(plan: LoaderPlan) -> int:
    """Where the tokenizer has none: 0, or no token's id, where labels are left out by it."""
    if plan.pad_id is not None:
        return plan.pad_id
    return -1 if plan.ignores_pad_id else 0


def _order(plan: LoaderPlan) -> str | StreamingSettings:
    if plan.layout.order != "streaming":
        return "stoker"
    settings = {name: value for name, value in plan.config.order_settings.items() if name in _SETTINGS}
    if plan.layout.packing == "foundry":
        settings |= {"num_packers": plan.num_packers, "packers_persist": plan.packers_persist}
    return StreamingSettings(**settings)


def loader_call(plan: LoaderPlan, batch_size: Any, *, is_auto: bool = False) -> str:
    """The call of a plan's loader. Its rows are of seq_len, where those of `build_dataloader` may be narrower.

    Args:
        plan: Of the loader.
        batch_size: Rows, or an expression for them.
        is_auto: Whether stoker's packing stands for a ratio that LLM Foundry would look for.
    """
    streams = "".join(f"        {_stream_call(stream)},\n" for stream in plan.streams)
    expressions = {
        "batch_size": batch_size,
        "pad_id": "tokenizer.pad_token_id",
        "padding_side": "tokenizer.padding_side",
    }
    defaults = inspect.signature(DataLoader).parameters
    arguments = "".join(
        f"    {name}={expressions.get(name) or _written(value)},\n"
        for name, value in loader_arguments(plan).items()
        if name in expressions or value != defaults[name].default
    )
    note = "# packing_ratio: auto looks at the data first; stoker's packing needs no ratio\n" if is_auto else ""
    return f"{note}stoker.DataLoader(\n    [\n{streams}    ],\n{arguments})"


def _stream_call(stream: Stream) -> str:
    written = []
    for field in fields(Stream):
        value = getattr(stream, field.name)
        if value != field.default and (field.name, value) not in (("labels_dtype", stream.bytes_dtype),):
            written.append(f"{field.name}={_written(value)}")
    return f"stoker.Stream({', '.join(written)})"


def _written(value: Any) -> str:
    """A value as code has it."""
    if isinstance(value, StreamingSettings):
        given = {field.name: getattr(value, field.name) for field in fields(value)}
        told = ", ".join(f"{n}={_written(v)}" for n, v in given.items() if v != getattr(StreamingSettings(), n))
        return f"stoker.StreamingSettings({told})" if told else _written("streaming")
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if '"' in text else text.replace("'", '"')


_SETTINGS = {field.name for field in fields(StreamingSettings)}
