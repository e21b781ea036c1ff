"""The call of `stoker.DataLoader` that a plan comes to, as Python."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from stoker.foundry.plan import LoaderPlan
from stoker.stream import Stream

_OF_FOUNDRYS_PACKING = ("packing_ratio", "max_leftover_bins_to_keep")
_ORDER_DEFAULTS = {
    "shuffle_algo": "py1e",
    "shuffle_block_size": None,
    "num_canonical_nodes": None,
    "partition_algo": "relaxed",
    "sampling_method": "balanced",
    "sampling_granularity": 1,
    "batching_method": "random",
}


def loader_call(plan: LoaderPlan, batch_size: Any, *, is_auto: bool = False) -> str:
    """The call of a plan's loader. Its batches are stoker's own: rows of seq_len, labels by position.

    Args:
        plan: Of the loader.
        batch_size: Rows, or an expression for them.
        is_auto: Whether stoker's packing stands for a ratio that LLM Foundry would look for.
    """
    streams = "".join(f"        {_stream_call(stream)},\n" for stream in plan.streams)
    arguments = "".join(f"    {name}={value},\n" for name, value in _arguments(plan, batch_size))
    note = "# packing_ratio: auto looks at the data first; stoker's packing needs no ratio\n" if is_auto else ""
    return f"{note}stoker.DataLoader(\n    [\n{streams}    ],\n{arguments})"


def _arguments(plan: LoaderPlan, batch_size: Any) -> list[tuple[str, str]]:
    config, options, layout = plan.config, plan.options, plan.layout
    is_foundrys = layout.packing == "foundry"
    documents: str | None = None
    if plan.kind == "text":
        documents = "eos" if config.eos_token_id is not None else "bos" if config.bos_token_id is not None else None
    given: list[tuple[str, Any, Any]] = [  # name, value, and the default, which is not written
        ("epoch_size", config.epoch_size, None),
        ("seed", config.shuffle_seed, 0),
        ("shuffle", config.shuffle, True),
        ("replication", config.replication, 1),
        ("weights_in", config.weights_in, None),
        ("cache_limit", config.cache_limit, None),
        ("packing", layout.packing, "best_fit" if layout.name == "pack" else None),
        *((name, getattr(config, name), None) for name in _OF_FOUNDRYS_PACKING if is_foundrys),
        ("documents", documents, None),
        ("eos_token_id", config.eos_token_id if documents == "eos" else None, None),
        ("bos_token_id", config.bos_token_id if documents == "bos" else None, None),
        ("drop_last", plan.drops_last, True),
        ("num_workers", options.num_workers, 2),
        ("pin_memory", options.pin_memory, False),
        ("timeout", options.timeout, 0),
    ]
    return [
        ("seq_len", str(plan.seq_len)),
        ("batch_size", str(batch_size)),
        ("layout", _written(layout.name)),
        *([("order", _order_call(plan))] if layout.order == "streaming" else []),
        ("fields", _written(list(plan.keys))),
        ("pad_id", "tokenizer.pad_token_id"),
        ("padding_side", "tokenizer.padding_side"),
        *((name, _written(value)) for name, value, default in given if value != default),
    ]


def _order_call(plan: LoaderPlan) -> str:
    settings = {
        name: value for name, value in plan.config.order_settings.items() if _ORDER_DEFAULTS.get(name, value) != value
    }
    if plan.layout.packing == "foundry":
        settings |= {"num_packers": plan.num_packers} if plan.num_packers != 1 else {}
        settings |= {} if plan.packers_persist else {"packers_persist": False}
    written = ", ".join(f"{name}={_written(value)}" for name, value in settings.items())
    return f"stoker.streaming_order.StreamingSettings({written})" if written else _written("streaming")


def _stream_call(stream: Stream) -> str:
    written = []
    for field in fields(Stream):
        value = getattr(stream, field.name)
        if value != field.default and (field.name, value) not in (("labels_dtype", stream.bytes_dtype),):
            written.append(f"{field.name}={_written(value)}")
    return f"stoker.Stream({', '.join(written)})"


def _written(value: Any) -> str:
    """A value as code has it."""
    text = repr(value)
    return text if '"' in text else text.replace("'", '"')
