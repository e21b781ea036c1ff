"""Opens the loader of a plan."""

from __future__ import annotations

from typing import Any

from stoker.foundry.plan import LoaderPlan


def open_loader(plan: LoaderPlan, tokenizer: Any) -> Any:
    """A loader of the batches that a plan says, on the core.

    Args:
        plan: One whose `why_python` is None.
        tokenizer: Of transformers; for streams that are not of tokens.

    Returns:
        What can be iterated, an epoch at a time, and has a length and a state.
    """
    raise NotImplementedError("loaders of LLM Foundry's configurations are not there yet.")
