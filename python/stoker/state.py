"""The state of a loader: a few integers, and what they mean."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stoker import _core
from stoker.dataset import TokenDataset
from stoker.epochs import Epochs, Place
from stoker.errors import StateMismatchError
from stoker.options import Options, check_index, divisors_in_words

MAX_POSITION = (1 << 40) - 1  # of rows, and of samples in a lane
STATE_VERSION = 1
ORDER_VERSION = 1  # of tests/model/order.py
_TO_ADAPT_PACKERS = '; pass on_change="adapt" to go on without what packers had left over'
_OF_A_RANK = ("hints", "hints_row", "leftovers")  # what states of different ranks differ in


def specification(dataset: TokenDataset, options: Options) -> dict[str, Any]:
    """Everything but the lanes that the order of global rows depends on, and G, as a JSON-able dict.

    `samples` and `tokens` are those of each stream with a digest of their numbers a shard; tokens are None where the
    index files do not tell them.
    """
    return {
        "layout": options.layout,
        "seq_len": options.seq_len,
        "shuffle": options.shuffle,
        "seed": options.seed,
        "shuffle_block": options.shuffle_block,
        "drop_last": options.drop_last,
        "global_batch": options.global_batch,
        "streams": stream_totals(dataset),
        # (first global row, units an epoch of each stream): one entry as long as a run's weights can't change.
        "weights": [[0, dict(zip(dataset.names, dataset.rates, strict=True))]],
        **({} if options.finite else {"pack": pack_specification(dataset, options)}),
    }


def stream_totals(dataset: TokenDataset) -> dict[str, Any]:
    """Samples and tokens of each stream, as `specification` has them."""
    return {
        name: {
            "samples": _totals(index.samples),
            "tokens": None if index.tokens is None else _totals(index.tokens),
        }
        for name, index in zip(dataset.names, dataset.indexes, strict=True)
    }


def pack_specification(dataset: TokenDataset, options: Options) -> dict[str, Any]:
    """What rows of `pack` depend on besides."""
    return {
        "overflow": dict(zip(dataset.names, dataset.overflows, strict=True)),
        "packing": options.packing,
        "window": list(options.window),
        "mix_in_rows": options.mix_in_rows,
        "pad_to_multiple": options.pad_to_multiple,
        "max_samples_per_row": options.max_samples_per_row,
        "max_leftover_bins_to_keep": options.max_leftover_bins_to_keep,
    }


def _totals(of_shards: npt.NDArray[Any]) -> list[Any]:
    digest = hashlib.blake2b(of_shards.astype("<u8").tobytes(), digest_size=8).hexdigest()
    return [int(of_shards.sum(dtype=np.uint64)), len(of_shards), digest]


def make_state(spec: dict[str, Any], place: Place) -> dict[str, Any]:
    """The state of a loader that stands at a place: always the same keys, each with a number, a text or a list of
    lists of numbers. torch.distributed.checkpoint stores a dict key by key, and loads the keys that the loader's own
    state has: the specification is one text, so that no difference is lost in that."""
    hints = (
        [] if place.hints is None else [[lane, begin, rows, *bins] for lane, begin, rows, bins in place.hints.list()]
    )
    return {
        "version": STATE_VERSION,
        "order_version": ORDER_VERSION,
        "epoch": place.epoch,
        "epoch_begin": place.first_row,
        "rows": place.row,
        "specification": json.dumps({**spec, "lanes": place.lanes}),
        **({"hints": hints, "hints_row": place.hints_row} if "pack" in spec else {}),
    }


def make_listed_state(spec: dict[str, Any], place: dict[str, Any]) -> dict[str, Any]:
    """The state of a loader in MosaicML Streaming's order: the fields of MosaicML Streaming's own state and what stoker
    knows besides, of the kinds that `make_state` has.

    Args:
        spec: What the order depends on.
        place: epoch, sample_in_epoch, num_canonical_nodes, shuffle_seed and initial_physical_nodes; of packed rows what
            is left over, too.
    """
    return {"version": STATE_VERSION, "order_version": ORDER_VERSION, **place, "specification": json.dumps(spec)}


def merge_states(states: Sequence[tuple[int, dict[str, Any]]]) -> dict[str, Any]:
    """One state of those of all processes, with the hints of all of them.

    Args:
        states: Each with its rank; several may be of one.

    Raises:
        StateMismatchError: They are not of one run at one row.
    """
    (first, merged), *others = sorted(states, key=lambda state: state[0])
    for rank, state in others:
        one, other = ({**s, **_specification_of(s)} for s in (merged, state))
        apart = [n for n in one if one[n] != other.get(n) and n not in ("specification", *_OF_A_RANK)]
        if apart:
            shown = "; ".join(f"{name} {_apart(one[name], other.get(name))}" for name in apart)
            raise StateMismatchError(
                f"the loaders of rank {first} and rank {rank} differ: {shown}. Make all ranks' loaders with the same "
                "arguments over the same data, and take the state of all at the same batch."
            )
    if "hints" in merged:
        newest = max(state["hints_row"] for _, state in states)
        of_lanes = {hint[0]: hint for _, s in states if s["hints_row"] == newest for hint in s["hints"]}
        merged = {**merged, "hints": [of_lanes[lane] for lane in sorted(of_lanes)], "hints_row": newest}
    if "leftovers" in merged:
        of_packers = {bins[0]: bins for _, s in states for bins in s["leftovers"]}
        merged = {**merged, "leftovers": [of_packers[packer] for packer in sorted(of_packers)]}
    return merged


def _specification_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """What a state says of its loader; empty where it says nothing legible."""
    try:
        spec = json.loads(state["specification"])
    except (KeyError, TypeError, ValueError):
        return {}
    return spec if isinstance(spec, dict) else {}


def _apart(one: Any, other: Any) -> str:
    """Two values, of dicts only what differs."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
        one, other = ({key: values[key] for key in keys if key in values} for values in (one, other))
    return f"{one!r} and {other!r}"


def _hints_from_json(hints: Any, lanes: int) -> _core.LaneHints:
    """Each is a lane, where its window begins, the rows delivered of it, and the bins left over before it."""
    out = []
    for lane, begin, rows, *bins in hints:
        numbers = check_index("lane", lane, 0, lanes - 1), check_index("begin", begin, 0, MAX_POSITION)
        out.append((*numbers, check_index("rows", rows, 0, MAX_POSITION), bins_from_json(bins)))
    return _core.LaneHints(out)


def bins_from_json(bins: Any) -> list[list[int]]:
    """What is left over of packing: lists of samples, by place in a lane or by number.

    Raises:
        TypeError, ValueError: It is something else.
    """
    return [[check_index("sample", sample, 0, MAX_POSITION) for sample in bin_] for bin_ in bins]


def saved_lanes(state: Mapping[str, Any]) -> int | None:
    """The lanes of the run that a state is of, if it tells."""
    lanes = _specification_of(state).get("lanes")
    return lanes if type(lanes) is int and 1 <= lanes < 1 << 31 else None


def check_state(state: Mapping[str, Any], ours: dict[str, Any], units: int, *, world_size: int, adapt: bool) -> Place:
    """Checks that a state fits a loader.

    Args:
        state: What `state_dict` gave, maybe through JSON.
        ours: The specification of the loader that it is loaded into.
        units: Rows an epoch of that loader.
        world_size: Its ranks.
        adapt: Accept another global batch.

    Returns:
        The place to go on from.

    Raises:
        StateMismatchError: The state is of another version or damaged, or what was delivered under it is not what this
            loader would have delivered; the message names each difference with both values.
    """
    theirs = check_specification(state, ours, world_size=world_size, adapt=adapt)
    try:
        epoch, first_row, row = (
            check_index(n, state.get(n), 0, MAX_POSITION) for n in ("epoch", "epoch_begin", "rows")
        )
        place = Place(ours["lanes"], epoch, first_row, row)
        if state.get("hints"):
            hints_row = check_index("hints_row", state.get("hints_row"), 0, row)
            place = place._replace(hints=_hints_from_json(state["hints"], ours["lanes"]), hints_row=hints_row)
        batch = theirs["global_batch"]
        fits = Epochs(max(units, batch), batch, ours["drop_last"]).contains(place)
    except (ValueError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise StateMismatchError(
            f"the state is damaged: no batch of epoch {state.get('epoch')!r} that began at row "
            f"{state.get('epoch_begin')!r} ends before row {state.get('rows')!r}. Load another checkpoint."
        )
    return place if theirs["global_batch"] == ours["global_batch"] else place._replace(first_row=row)


def check_specification(
    state: Mapping[str, Any], ours: dict[str, Any], *, world_size: int, adapt: bool
) -> dict[str, Any]:
    """Checks that a state is of a loader like this one; see `check_state`.

    Returns:
        The specification of the loader that it is of.

    Raises:
        StateMismatchError: It is not.
    """
    if not isinstance(state, Mapping):
        raise StateMismatchError(f"{state!r} is not a state: give what state_dict() returned.")
    versions = (state.get("version"), state.get("order_version"))
    if versions != (STATE_VERSION, ORDER_VERSION):
        raise StateMismatchError(
            f"the state is of version {versions[0]} and order version {versions[1]}; this stoker reads "
            f"{STATE_VERSION} and {ORDER_VERSION}. Resume with the version that saved it."
        )
    theirs = _specification_of(state)
    if not theirs:
        raise StateMismatchError("the state is damaged: it has no specification. Load another checkpoint.")
    orders = [spec.get("order", "stoker") for spec in (theirs, ours)]
    if orders[0] != orders[1]:
        raise StateMismatchError(
            f"the state is of a run in the order of {orders[0]!r}, and this loader's is that of {orders[1]!r}: give it "
            f"order={orders[0]!r}, or start anew without the state."
        )
    ours = json.loads(json.dumps(ours))  # as numbers and keys come out of it
    differences = [
        _difference(name, theirs.get(name), ours[name], world_size)
        for name in ours
        if not _same(name, theirs, ours, adapt)
    ]
    if differences:
        raise StateMismatchError(
            "the state was saved by another loader: "
            + "; ".join(differences)
            + ". Give this loader what that one had, or start anew without the state."
        )
    return theirs


def _same(name: str, theirs: Mapping[str, Any], ours: Mapping[str, Any], adapt: bool) -> bool:
    if name == "global_batch" and adapt and ours["drop_last"]:
        return type(theirs.get(name)) is int and theirs[name] > 0
    if name == "packers" and adapt:
        return True
    if name == "streams" and isinstance(theirs.get(name), Mapping) and set(theirs[name]) == set(ours[name]):
        return all(not _stream_difference(theirs[name][s], ours[name][s]) for s in ours[name])
    return bool(theirs.get(name) == ours[name])


def _difference(name: str, theirs: Any, ours: Any, world_size: int) -> str:
    if name == "global_batch":
        if type(theirs) is not int or theirs < 1:
            return f"its global batch was {theirs!r}"
        if theirs % world_size:
            what = f"{world_size} ranks do not divide it, {divisors_in_words(theirs)} do"
        else:
            what = f"set batch_size={theirs // world_size}"
        return (
            f"its global batch is {theirs} rows, this loader's {ours} (batch_size x world_size): {what}; or pass "
            'on_change="adapt" to go on with another batch from the same row, which needs drop_last=True'
        )
    if name == "streams" and isinstance(theirs, Mapping):
        lines = []
        for stream in sorted({*theirs, *ours}):
            if stream not in theirs or stream not in ours:
                lines.append(f"stream {stream!r} is {'new' if stream in ours else 'not there any more'}")
            elif what := _stream_difference(theirs[stream], ours[stream]):
                lines.append(f"stream {stream!r} had {what}")
        return ", ".join(lines)
    if name in ("pack", "settings", "packers") and isinstance(theirs, Mapping):
        changed = [n for n in ours if theirs.get(n) != ours[n]]
        shown = ", ".join(f"{n} was {theirs.get(n)!r} and is {ours[n]!r}" for n in changed)
        return shown + _TO_ADAPT_PACKERS * (name == "packers")
    if name == "weights":
        return f"units an epoch were {theirs and theirs[-1][-1]} and are {ours[-1][-1]}"
    return f"{name} was {theirs!r} and is {ours!r}"


def _stream_difference(theirs: Any, ours: Mapping[str, Any]) -> str:
    """In words, or "" where there is none. Tokens are compared where both know them."""
    for what in ("samples", "tokens"):
        was = theirs.get(what) if isinstance(theirs, Mapping) else None
        if was != ours[what] and (what == "samples" or None not in (was, ours[what])):
            return f"{_shown(was)} {what} and has {_shown(ours[what])}"
    return ""


def _shown(totals: Any) -> str:
    if not isinstance(totals, list) or len(totals) != 3:
        return f"{totals!r}"
    return f"{totals[0]:,} in {totals[1]:,} shards (digest {totals[2]})"
