"""The state of a loader: a few integers, and what they mean."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from stoker.dataset import TokenDataset
from stoker.errors import StateMismatchError
from stoker.options import Options

STATE_VERSION = 1
ORDER_VERSION = 1  # of tests/model/order.py


def specification(dataset: TokenDataset, options: Options) -> dict[str, Any]:
    """Everything that the order of global rows depends on, and G, as a JSON-able dict."""
    sizes = zip(dataset.names, dataset.sizes, strict=True)
    return {
        "layout": options.layout,
        "seq_len": options.seq_len,
        "shuffle": options.shuffle,
        "seed": options.seed,
        "shuffle_block": options.shuffle_block,
        "lanes": options.lanes,
        "drop_last": options.drop_last,
        "global_batch": options.global_batch,
        "streams": {
            name: {
                "shards": len(of_shards),
                "total": int(of_shards.sum()),
                "sizes": hashlib.blake2b(of_shards.astype("<u8").tobytes(), digest_size=8).hexdigest(),
            }
            for name, of_shards in sizes
        },
        # (first global row, units an epoch of each stream): one entry as long as a run's weights can't change.
        "weights": [[0, dict(zip(dataset.names, dataset.counts, strict=True))]],
    }


def make_state(spec: dict[str, Any], epoch: int, rows: int) -> dict[str, Any]:
    """The state after `rows` global rows, in `epoch`."""
    return {
        "version": STATE_VERSION,
        "order_version": ORDER_VERSION,
        "epoch": epoch,
        "rows": rows,
        "specification": spec,
    }


def saved_lanes(state: Mapping[str, Any]) -> int | None:
    """The lanes of the run that a state is of, if it tells."""
    spec = state.get("specification")
    lanes = spec.get("lanes") if isinstance(spec, Mapping) else None
    return lanes if isinstance(lanes, int) and 1 <= lanes < 1 << 31 else None


def check_state(state: Mapping[str, Any], ours: dict[str, Any], *, adapt: bool) -> tuple[int, int]:
    """Checks that a state fits a loader.

    Args:
        state: What `state_dict` gave, maybe through JSON.
        ours: The specification of the loader that it is loaded into.
        adapt: Accept another global batch.

    Returns:
        Epoch and global rows delivered.

    Raises:
        StateMismatchError: The state is of another version, or what was delivered under it is not what this loader
            would have delivered; the message names each difference with both values.
    """
    versions = (state.get("version"), state.get("order_version"))
    if versions != (STATE_VERSION, ORDER_VERSION):
        raise StateMismatchError(
            f"the state is of version {versions[0]} and order version {versions[1]}; this stoker reads "
            f"{STATE_VERSION} and {ORDER_VERSION}. Resume with the version that saved it."
        )
    try:
        theirs = dict(state["specification"])
        epoch, rows = int(state["epoch"]), int(state["rows"])
    except (KeyError, TypeError, ValueError) as error:
        raise StateMismatchError(f"the state is damaged: {error!r}. Load another checkpoint.") from None
    if epoch < 0 or rows < 0:
        raise StateMismatchError(f"the state is damaged: epoch {epoch}, rows {rows}. Load another checkpoint.")
    differences = []
    for name in ours:
        if theirs.get(name) == ours[name] or (name == "global_batch" and adapt and ours["drop_last"]):
            continue
        differences.append(_difference(name, theirs.get(name), ours[name]))
    if differences:
        raise StateMismatchError("the state was saved by another loader: " + "; ".join(differences) + ".")
    return epoch, rows


def _difference(name: str, theirs: Any, ours: Any) -> str:
    if name == "global_batch":
        return (
            f"its global batch is {theirs} rows, this loader's {ours} (batch_size x world_size): choose a batch_size "
            f'of {theirs} / world_size, or pass on_change="adapt" to go on with another batch from the same row, which '
            "needs drop_last=True"
        )
    if name == "streams" and isinstance(theirs, Mapping):
        lines = []
        for stream in sorted({*theirs, *ours}):
            if theirs.get(stream) != ours.get(stream):
                lines.append(f"stream {stream!r} was {_sizes(theirs.get(stream))} and is {_sizes(ours.get(stream))}")
        return ", ".join(lines)
    if name == "weights":
        return f"units an epoch were {theirs and theirs[-1][-1]} and are {ours[-1][-1]}"
    return f"{name} was {theirs!r} and is {ours!r}"


def _sizes(stream: Mapping[str, Any] | None) -> str:
    if stream is None:
        return "absent"
    return f"{stream.get('total')} in {stream.get('shards')} shards (sizes {stream.get('sizes')})"
