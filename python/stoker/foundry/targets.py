"""What of an example has loss: LLM Foundry's settings, and how turns are put together by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stoker.preparation.examples import IGNORE_LABEL, Targets, Turn, join_turns

TokenizedExample = Mapping[str, Any]  # {"turns": [{"input_ids": [...], "labels": [...]}, ...]}


def validate_target_settings(target_prompts: str, target_responses: str, decoder_only_format: bool) -> None:
    """Checks settings of lower case.

    Raises:
        ValueError: They are none of the known ones, or do not go with encoder-decoder models.
    """
    if not decoder_only_format and (target_prompts != "none" or target_responses != "last"):
        raise ValueError(
            'When using encoder_decoder format, you must use target_prompts="none" and target_responses="last".'
        )
    if target_responses not in ("all", "last"):
        raise ValueError(f'target_responses must be either "last" or "all" but {target_responses=}')
    if target_prompts in ("all", "none"):
        return
    if not target_prompts.startswith("length>="):
        raise ValueError(
            'target_prompts must either be "all", "none" or "length>=XX" where "XX" is a positive integer, but '
            f"{target_prompts=}"
        )
    length = target_prompts.removeprefix("length>=")
    if not length.isdigit():
        raise ValueError(
            f'target_prompts starts with "length>=" but the rest of the string is not digits ({target_prompts=}). To '
            'use this configuration option, set target_prompts "length>=XX" where "XX" is a positive integer '
            "indicating the length cutoff. Prompts of at least XX tokens in length will be treated as targets."
        )
    if (cutoff := int(length)) <= 0:
        raise ValueError(
            f"You are trying to set the target_prompts length cutoff to a negative number {cutoff=}. This is not "
            "allowed."
        )


def stitch_turns_decoder_only(
    example_turns: Sequence[Mapping[str, Any]],
    target_prompts: str,
    target_responses: str,
    eos_token_id: int | None = None,
    validate: bool = False,
) -> tuple[list[int], list[int]]:
    """Puts the turns of a conversation together.

    Args:
        example_turns: Each has `input_ids`, the context, and `labels`, the target: lists or tensors, not padded.
        target_prompts: Contexts with loss: "none", "all", or "length>=N" for those of N tokens at least.
        target_responses: Targets with loss: "last", or "all".
        eos_token_id: The last target is made to end with it.
        validate: Whether to check the settings with LLM Foundry's sentences.

    Returns:
        Input ids, and labels of the same length: -100 where there is no loss.

    Raises:
        ValueError: The settings are none of the known ones.
        IndexError: The last target is empty, and there is an `eos_token_id`.
    """
    prompts, responses = target_prompts.lower(), target_responses.lower()
    if validate:
        validate_target_settings(prompts, responses, decoder_only_format=True)
    return join_turns(_turns_of(example_turns), Targets(prompts, responses), eos_token_id)


def stitch_turns_encoder_decoder(
    example_turns: Sequence[Mapping[str, Any]], eos_token_id: int | None = None
) -> tuple[list[int], list[int]]:
    """Splits a conversation in what the encoder gets and what the decoder is trained on.

    Args:
        example_turns: See `stitch_turns_decoder_only`.
        eos_token_id: The target is made to end with it.

    Returns:
        All but the last target, and the last target.

    Raises:
        ValueError: There is no turn.
        IndexError: The last target is empty, and there is an `eos_token_id`.
    """
    if not example_turns:
        raise ValueError("target is still None but should be list[int]")
    *earlier, (context, target) = _turns_of(example_turns)
    if eos_token_id is not None and target[-1] != eos_token_id:
        target = [*target, eos_token_id]
    return [*(i for turn in earlier for part in turn for i in part), *context], target


def is_valid_ift_example(
    max_seq_len: int,
    target_prompts: str,
    target_responses: str,
    decoder_only_format: bool,
    example: TokenizedExample,
) -> bool:
    """Whether an example can be trained on: no part of a turn is empty, and a label is left within `max_seq_len`."""
    turns = example["turns"]
    if any(len(turn["input_ids"]) == 0 or len(turn["labels"]) == 0 for turn in turns):
        return False
    if decoder_only_format:
        ids, labels = stitch_turns_decoder_only(turns, target_prompts, target_responses)
    else:
        ids, labels = stitch_turns_encoder_decoder(turns)
    return bool(ids[:max_seq_len]) and any(label != IGNORE_LABEL for label in labels[:max_seq_len])


def _turns_of(example_turns: Sequence[Mapping[str, Any]]) -> list[Turn]:
    return [(_as_list(turn["input_ids"]), _as_list(turn["labels"])) for turn in example_turns]


def _as_list(ids: Any) -> list[int]:
    if isinstance(ids, list):
        return ids
    flat: list[int] = ids.reshape(-1).tolist()  # of a tensor or an array
    return flat
