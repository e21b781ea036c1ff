"""Rows of common public data sets as examples: presets by name, of our own and of the user's."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from stoker.foundry.errors import UnableToProcessPromptResponseError

Row = Mapping[str, Any]
Preset = Callable[[Row], dict[str, Any]]  # from the columns of a row to an example

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
_SHOWN = 200  # characters of a row in an error


def find_preset(name: str) -> Preset:
    """The preset of a name; of a data set, such as "tatsu-lab/alpaca"; or a function "MODULE:FUNCTION".

    Returns:
        A function from the columns of a row to an example: `prompt` and `response`, or `messages`. It raises
        UnableToProcessPromptResponseError where a row is none.

    Raises:
        ValueError: There is no such preset or function.
    """
    module, separator, function = name.partition(":")
    if separator:
        try:
            made = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"preset {name!r} is no function that can be imported: {error}.") from None
    else:
        made = PRESETS.get(name) or PRESETS.get(_OF_DATA_SETS.get(name, ""))
        if made is None:
            raise ValueError(
                f"there is no preset {name!r}: known are {', '.join(PRESETS)}, and MODULE:FUNCTION of your own."
            )
    return functools.partial(_apply, made, name)


def _apply(preset: Preset, name: str, row: Row) -> dict[str, Any]:
    try:
        made = preset(row)
        if not isinstance(made, Mapping):
            raise TypeError(f"it returns {type(made).__name__}, not a mapping")
        return dict(made)
    except Exception as error:  # noqa: BLE001  # whatever a row that is none makes it raise
        shown = str(dict(row))
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
        raise UnableToProcessPromptResponseError(f"{shown}: preset {name!r}, {type(error).__name__}: {error}") from None


def _alpaca(row: Row) -> dict[str, Any]:
    """`text` as the data set has it, cut behind its last heading; or that made of instruction, input and output."""
    if "text" in row:
        prompt, response = row["text"].split("### Response:")
        return {"prompt": f"{prompt}### Response:", "response": response}
    task, given = "Below is an instruction that describes a task", ""
    if row.get("input"):
        task += ", paired with an input that provides further context"
        given = f"### Input:\n{row['input']}\n\n"
    prompt = (
        f"{task}. Write a response that appropriately completes the request.\n\n### Instruction:\n{row['instruction']}"
        f"\n\n{given}### Response:"
    )
    return {"prompt": prompt, "response": f"\n{row['output']}"}


def _dolly(row: Row) -> dict[str, Any]:
    """Of instruction and response; `input` and `output` as HuggingFaceH4's copy names them, or `context` and
    `response`."""
    given = row["input"] if "input" in row else row["context"]
    instruction = f"{row['instruction']}\n{given}" if given else row["instruction"]
    prompt = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        f"### Instruction:\n{instruction}\n\n### Response:\n"
    )
    return {"prompt": prompt, "response": row["output"] if "output" in row else row["response"]}


def _p3(row: Row) -> dict[str, Any]:
    return {"prompt": f"{row['inputs']}:", "response": row["targets"]}


def _flan(row: Row) -> dict[str, Any]:
    """A space between both, where there is none."""
    prompt, response = row["inputs"], row["targets"]
    white = (" ", "\n", "\t")
    return {
        "prompt": prompt,
        "response": response if prompt.endswith(white) or response.startswith(white) else f" {response}",
    }


def _sharegpt(row: Row) -> dict[str, Any]:
    return {
        "messages": [
            {"role": _ROLES.get(message["from"], message["from"]), "content": message["value"]}
            for message in row["conversations"]
        ]
    }


def _orca(row: Row) -> dict[str, Any]:
    system = [{"role": "system", "content": row["system_prompt"]}] if row.get("system_prompt") else []
    return {"messages": [*system, *_question(row["question"], row["response"])]}


def _messages(row: Row) -> dict[str, Any]:
    """Role and content of each message, whatever else it has."""
    return {"messages": [{"role": m["role"], "content": m["content"]} for m in row["messages"]]}


def _question(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _between(question: str, answer: str) -> Preset:
    """Of two columns, a conversation."""
    return lambda row: {"messages": _question(row[question], row[answer])}


# Those that LLM Foundry knows are as there.
PRESETS: dict[str, Preset] = {
    "alpaca": _alpaca,
    "dolly": _dolly,
    "p3": _p3,
    "flan": _flan,
    "sharegpt": _sharegpt,
    "orca": _orca,
    "messages": _messages,
    "gsm8k": _between("question", "answer"),
    "stackmathqa": _between("Q", "A"),
    "metamath": _between("query", "response"),
}
_OF_DATA_SETS = {
    "tatsu-lab/alpaca": "alpaca",
    "yahma/alpaca-cleaned": "alpaca",
    "HuggingFaceH4/databricks_dolly_15k": "dolly",
    "databricks/databricks-dolly-15k": "dolly",
    "bigscience/P3": "p3",
    "Muennighoff/P3": "flan",
    "Muennighoff/flan": "flan",
    "teknium/OpenHermes-2.5": "sharegpt",
    "Open-Orca/SlimOrca": "sharegpt",
    "Open-Orca/OpenOrca": "orca",
    "AI-MO/NuminaMath-CoT": "messages",
    "HuggingFaceH4/ultrachat_200k": "messages",
    "openai/gsm8k": "gsm8k",
    "math-ai/StackMathQA": "stackmathqa",
    "meta-math/MetaMathQA": "metamath",
}
