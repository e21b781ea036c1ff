"""All that the output of a preparation depends on, as JSON: by it a run goes on, and tells what has changed since."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stoker.files import write_atomically
from stoker.locks import lock_byte
from stoker.preparation.destination import PLAN_FILE, Destination
from stoker.preparation.job import read_counts
from stoker.preparation.rules import Rules, identity_of
from stoker.preparation.sources import Part, Reading, identify
from stoker.preparation.tokenizer import TextTokenizer

VERSION = 2  # of what comes out
_LOCK_FILE = "lock"  # beside the plan; who writes parts holds it
_OF_MIX = ("mix", "mix_tokens", "seed")  # rules on which parts do not depend
_SHOWN = 3  # differences

Plan = dict[str, Any]


def make_plan(rules: Rules, reading: Reading, parts_of: Mapping[str, Sequence[Part]], tokenizer: TextTokenizer) -> Plan:
    """
    Args:
        rules: How samples are made.
        reading: How the sources are read.
        parts_of: The parts of each source.
        tokenizer: The one of the rules.
    """
    parts = [part for of_source in parts_of.values() for part in of_source]
    files = {piece.path: piece for part in parts for piece in part}
    plan = {
        "version": VERSION,
        "rules": {**asdict(rules), "tokenizer": tokenizer.digest},
        "reading": asdict(reading),
        "sources": {name: len(of_source) for name, of_source in parts_of.items()},
        "parts": [[[Path(p.path).name, p.begin, p.end] for p in part] for part in parts],
        "files": [identify(piece) for piece in files.values()],
        "chat_template": tokenizer.chat_template.text if rules.kind == "finetuning" else None,
        "tokenizer": identity_of(rules, tokenizer),
    }
    plan_as_json: Plan = json.loads(json.dumps(plan))
    return plan_as_json


# ---------------------------------------------------------------- beginning
def begin(destination: Destination, plan: Plan, *, overwrite: bool) -> Plan | None:
    """Makes the scratch, or finds it. A beginning of which no part is done gives way to another plan.

    Args:
        destination: Where the output goes.
        plan: Of the run.
        overwrite: Remove what is there.

    Returns:
        The plan with the date of the beginning; None where there is nothing left to do.

    Raises:
        FileExistsError: There is something else.
        ValueError: What is to be overwritten is no data set.
    """
    is_removed = overwrite and destination.remove()
    if (index := destination.read_index()) is not None:
        if changes := changes_since(index.get("prepared", {}).get("plan"), plan):
            raise _other(f"{destination.name} holds a data set", changes)
        shutil.rmtree(destination.scratch, ignore_errors=True)
        return None
    path = destination.scratch / PLAN_FILE
    if path.is_file():
        before = json.loads(path.read_text())
        changes = changes_since(before, plan, besides=_OF_MIX)
        if not changes:
            plan = {**plan, "rules": {**plan["rules"], "date": before["rules"]["date"]}}
        elif not _give_way(destination.scratch):
            raise _other(f"{destination.name} holds the beginning of a data set", changes)
    elif not is_removed:
        destination.check_empty()
    destination.scratch.mkdir(parents=True, exist_ok=True)
    write_atomically(str(path), json.dumps(plan).encode())
    return plan


def is_finished(destination: Destination, plan: Plan) -> bool:
    """Whether the output of a plan is there."""
    index = destination.read_index()
    return index is not None and not changes_since(index.get("prepared", {}).get("plan"), plan)


def lock_scratch(scratch: Path) -> Any:
    """Keeps what is written there from giving way to another plan."""
    return lock_byte(str(scratch / _LOCK_FILE), 0, is_shared=True)


def _give_way(scratch: Path) -> bool:
    """Removes a beginning of which no part is done or being written. Returns whether it has."""
    with lock_byte(str(scratch / _LOCK_FILE), 0, timeout_s=0) as is_alone:
        gives_way = is_alone and not any(read_counts(path) for path in scratch.iterdir() if path.name.isdecimal())
        if gives_way:
            shutil.rmtree(scratch)
    return gives_way


def _other(what: str, changes: Sequence[str]) -> FileExistsError:
    more = f", and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    return FileExistsError(
        f"{what} of other sources or arguments ({'; '.join(changes[:_SHOWN])}{more}): choose another directory, or "
        "overwrite it."
    )


# ---------------------------------------------------------------- differences
def changes_since(before: Plan | None, plan: Plan, besides: Sequence[str] = ()) -> list[str]:
    """What is otherwise in a plan than in one before, in words. The date does not matter, nor that bad rows, of which
    there have been none so far, are now skipped.

    Args:
        before: The other plan; None: it is not known.
        plan: The plan.
        besides: Rules that do not matter either.
    """
    if before is None:
        return ["it was not prepared by stoker"]
    if before.get("version") != plan["version"]:
        return ["another version of stoker began it"]
    rules = _rules_of(plan)
    were = _rules_of(before)
    if were["on_error"] == "raise" and rules["on_error"] == "skip":
        besides = [*besides, "on_error"]
    changes = [
        f"{name} is {value!r}, and was {were.get(name)!r}"
        for name, value in rules.items()
        if value != were.get(name) and name not in ("tokenizer", "date", *besides)
    ]
    if before["chat_template"] != plan["chat_template"]:
        changes.append("the chat template is another one")
    elif before["rules"]["tokenizer"] != plan["rules"]["tokenizer"]:
        changes.append("the tokenizer is another one")
    changes += _changes_of_files(before["files"], plan["files"])
    if not changes and {**before, "rules": 0} != {**plan, "rules": 0}:
        changes.append("the sources are given otherwise")
    return changes


def _rules_of(plan: Plan) -> dict[str, Any]:
    """Those, and what is told of the reading, by the names of the arguments."""
    rules = dict(plan["rules"])
    targets = rules.pop("targets")
    return {
        **rules,
        **{f"target_{name}": value for name, value in targets.items()},
        **{name: plan["reading"][name] for name in ("token_dtype", "subset", "split")},
    }


def _changes_of_files(before: Sequence[Any], now: Sequence[Any]) -> list[str]:
    names, were = [_name_of(file) for file in now], [_name_of(file) for file in before]
    if names == were:
        return [f"{name} has changed" for name, one, other in zip(names, before, now, strict=True) if one != other]
    changes = [f"{name} is among the files" for name in names if name not in were]
    changes += [f"{name} is no longer among the files" for name in were if name not in names]
    return changes or ["the files are given in another order, or not as often"]


def _name_of(file: Any) -> str:
    """Of what tells a file from others (`identify`): it has the name first; or several files."""
    return str(file[0] if isinstance(file[0], str) else file[0][0])
