"""Examples for finetuning as token ids and labels: prompt and response, conversations, turns.

The rules are LLM Foundry's (llmfoundry/data/finetuning/tasks.py and collator.py), and so are the names and sentences of
the errors (stoker/foundry/errors.py). What its collator does with every batch is done once here: turns are put
together, the end-of-sequence token is added, and labels are -100 where there is no loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stoker.foundry.errors import (
    BadExampleError,
    ChatTemplateError,
    ConsecutiveRepeatedChatRolesError,
    IncorrectMessageKeyQuantityError,
    InvalidContentTypeError,
    InvalidConversationError,
    InvalidExampleTypeError,
    InvalidLastChatMessageRoleError,
    InvalidMessageTypeError,
    InvalidPromptTypeError,
    InvalidResponseTypeError,
    InvalidRoleError,
    NotEnoughChatDataError,
    UnknownExampleTypeError,
)
from stoker.preparation.tokenizer import TextTokenizer

IGNORE_LABEL = -100
# By what they are, the keys that examples have.
EXAMPLE_KEYS: dict[str, tuple[tuple[str, ...], ...]] = {
    "chat": (("messages",),),
    "turns": (("turns",),),
    "prompt_response": (("prompt", "response"), ("prompt", "completion")),
}
ROLES = ("assistant", "system", "tool", "user")

Turn = tuple[list[int], list[int]]  # context and target


class InvalidTurnError(BadExampleError):
    """Turns that should be of token ids are not."""


class EmptyTextError(BadExampleError):
    """A document has nothing in it."""


class NoLossError(BadExampleError):
    """No label is left."""


@dataclass(frozen=True)
class Targets:
    """Which parts of an example have loss.

    Attributes:
        prompts: "none", "all", or "length>=N": prompts of N tokens at least.
        responses: "all", or "last": the last turn's.
    """

    prompts: str = "none"
    responses: str = "all"

    def __post_init__(self) -> None:
        length = self.prompts.removeprefix("length>=")
        if self.prompts not in ("none", "all") and not (length != self.prompts and length.isdecimal()):
            raise ValueError(f'target_prompts is {self.prompts!r}: it must be "none", "all" or "length>=N".')
        if self.responses not in ("all", "last"):
            raise ValueError(f'target_responses is {self.responses!r}: it must be "all" or "last".')

    def has_prompt_loss(self, length: int) -> bool:
        """Whether a prompt of so many tokens has loss."""
        if self.prompts.startswith("length>="):
            return length >= int(self.prompts.removeprefix("length>="))
        return self.prompts == "all"


def kind_of(example: Any) -> str:
    """ "chat", "prompt_response" or "turns".

    Raises:
        InvalidExampleTypeError, UnknownExampleTypeError: It is none of them.
    """
    if not isinstance(example, Mapping):
        raise InvalidExampleTypeError(str(type(example)))
    for kind, ways in EXAMPLE_KEYS.items():
        if any(set(example) == set(keys) for keys in ways):
            return kind
    raise UnknownExampleTypeError(str(sorted(example, key=str)))


class Template(Protocol):
    """What writes conversations as text.

    Attributes:
        text: Its program.
    """

    @property
    def text(self) -> str: ...

    def render(self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        """The text of a conversation.

        Raises:
            ValueError: It refuses the messages.
        """


@dataclass(frozen=True)
class Untokenized:
    """An example that keeps the rules of its kind, before its texts are tokenized.

    Attributes:
        texts: Context and target of each turn, one after the other.
        is_around: Whether the tokenizer's tokens around a document belong around each of them.
        turns: Instead of texts, where the example has ids already.
    """

    texts: list[str]
    is_around: bool = False
    turns: tuple[Turn, ...] = ()

    def turns_of(self, ids: Sequence[list[int]], tokenizer: TextTokenizer) -> list[Turn]:
        """Context and target of each turn. `ids` are those of `texts`."""
        if self.turns:
            return list(self.turns)
        turns = list(zip(ids[::2], ids[1::2], strict=True))
        if not self.is_around:
            return turns
        bos, around = tokenizer.bos_token_id, []
        for turn in turns:
            context, target = ([*tokenizer.before, *part, *tokenizer.behind] for part in turn)
            if bos is not None and context[:1] == target[:1] == [bos]:
                target = target[1:]
            around.append((context, target))
        return around


def read_example(example: Any, template: Template) -> Untokenized:
    """Checks an example and takes it apart.

    Args:
        example: Of any kind.
        template: For conversations.

    Raises:
        BadExampleError: The example breaks a rule of its kind.
    """
    kind = kind_of(example)
    if kind == "turns":
        turns = example["turns"]
        if not isinstance(turns, list):
            raise InvalidTurnError(f"Expected turns to be a list, but found {type(turns)}")
        return Untokenized([], turns=tuple(map(_given_turn, turns)))
    if kind == "chat":
        return Untokenized([text for part in slice_conversation(example["messages"], template) for text in part])
    keys = next(keys for keys in EXAMPLE_KEYS[kind] if set(example) == set(keys))
    prompt, response = (example[key] for key in keys)
    if not isinstance(prompt, str):
        raise InvalidPromptTypeError(type(prompt))
    if not isinstance(response, str):
        raise InvalidResponseTypeError(type(response))
    return Untokenized([prompt, response], is_around=True)


def _given_turn(turn: Any) -> Turn:
    if not isinstance(turn, Mapping) or set(turn) != {"input_ids", "labels"}:
        keys = sorted(turn, key=str) if isinstance(turn, Mapping) else type(turn)
        raise InvalidTurnError(f"Expected a turn to have input_ids and labels, but found {keys}")
    context, target = turn["input_ids"], turn["labels"]
    for ids in (context, target):
        if not isinstance(ids, list) or any(type(i) is not int or i < 0 for i in ids):
            raise InvalidTurnError("Expected input_ids and labels of a turn to be token ids")
    return context, target


def slice_conversation(messages: Any, template: Template) -> list[tuple[str, str]]:
    """What comes before each answer of the assistant, since the one before, and the answer, as the template writes
    them.

    Raises:
        BadExampleError: The messages break a rule, or the template does not fit.
    """
    _check_messages(messages)

    def render(part: Sequence[Mapping[str, Any]], *, is_prompt: bool) -> str:
        try:
            return template.render([dict(m) for m in part], add_generation_prompt=is_prompt)
        except ValueError as error:
            raise ChatTemplateError(template.text, messages, str(error)) from None

    parts = []
    so_far = ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        full, prompt = render(messages[: i + 1], is_prompt=False), render(messages[:i], is_prompt=True)
        if not full.startswith(so_far):
            raise InvalidConversationError(
                f"The full conversation must start with the conversation through the previous turn. {full=}, {so_far=}"
            )
        if not prompt.startswith(so_far):
            raise InvalidConversationError(
                "The prompt_with_history must start with the conversation through the previous turn. "
                f"{prompt=}, {so_far=}"
            )
        if not full.startswith(prompt):
            raise InvalidConversationError(
                f"prompt_with_history must be the first part of the full conversation. {prompt=}, {full=}"
            )
        parts.append((prompt[len(so_far) :], full[len(prompt) :]))
        so_far = full
    return parts


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list):
        raise InvalidMessageTypeError(str(type(messages)))
    if len(messages) < 2:
        raise NotEnoughChatDataError
    last = _message_at(messages, -1, "role")["role"]
    if last != "assistant":
        raise InvalidLastChatMessageRoleError(last, {"assistant"})
    before = None
    for i in range(len(messages)):
        message = _message_at(messages, i, "role", "content")
        if len(message) != 2:
            raise IncorrectMessageKeyQuantityError(list(message))
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise InvalidRoleError(role, list(ROLES))
        if not isinstance(content, (str, list)):
            raise InvalidContentTypeError(type(content))
        if role == before:
            raise ConsecutiveRepeatedChatRolesError(role)
        before = role


def _message_at(messages: Sequence[Any], i: int, *keys: str) -> Mapping[str, Any]:
    """A message, with these keys at least."""
    message = messages[i]
    if not isinstance(message, Mapping):
        raise InvalidExampleTypeError(str(type(message)))
    if any(key not in message for key in keys):
        raise UnknownExampleTypeError(f"{sorted(message, key=str)} of a message")
    return message


def stitch(turns: Sequence[Turn], targets: Targets, eos_token_id: int | None) -> tuple[list[int], list[int]]:
    """Input ids and labels of a conversation, turn after turn. The last target ends with the end-of-sequence token, if
    there is one.

    Raises:
        NoLossError: No label is left, or a turn is empty.
    """
    if not turns:
        raise NoLossError("the example has no turn.")
    for number, (context, target) in enumerate(turns):
        if not context or not target:
            raise NoLossError(f"turn {number} of the example has an empty {'prompt' if not context else 'response'}.")
    return join_turns(turns, targets, eos_token_id)


def join_turns(turns: Sequence[Turn], targets: Targets, eos_token_id: int | None) -> tuple[list[int], list[int]]:
    """The same, of turns that may be empty.

    Raises:
        IndexError: The last target is empty, and there is an end-of-sequence token.
    """
    ids: list[int] = []
    labels: list[int] = []
    for number, (context, target) in enumerate(turns):
        is_last = number == len(turns) - 1
        if is_last and eos_token_id is not None and target[-1] != eos_token_id:
            target = [*target, eos_token_id]
        ids += context
        ids += target
        labels += context if targets.has_prompt_loss(len(context)) else [IGNORE_LABEL] * len(context)
        labels += target if is_last or targets.responses == "all" else [IGNORE_LABEL] * len(target)
    return ids, labels


def check_loss(labels: Sequence[int], max_seq_len: int | None) -> None:
    """
    Raises:
        NoLossError: No label is left, or none among the first `max_seq_len`.
    """
    if all(label == IGNORE_LABEL for label in labels[:max_seq_len]):
        raise NoLossError(
            "no label is left."
            if max_seq_len is None or len(labels) <= max_seq_len
            else f"of its {len(labels)} tokens none of the first {max_seq_len} has loss."
        )
