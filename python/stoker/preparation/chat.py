"""Chat templates, rendered as transformers renders them, without transformers."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

# LLM Foundry's, where a tokenizer has none: ChatML.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class ChatTemplate:
    """What makes a text of a conversation: a program in Jinja.

    Attributes:
        text: The program.
    """

    def __init__(
        self, template: Any, special_tokens: Mapping[str, str | Sequence[str]], date: str | None = None
    ) -> None:
        """
        Args:
            template: As tokenizer_config.json has it: the program; or a list of named ones, of which "default" is
                taken; or None, for ChatML.
            special_tokens: Names and texts of those that the tokenizer has, such as "eos_token"; others are undefined
                in the program.
            date: What it takes for today, as "2024-12-31". Default: today. The time of the day is midnight.

        Raises:
            ValueError: `template` is none of these.
        """
        if isinstance(template, list):
            template = _default_of(template)
        if template is not None and not isinstance(template, str):
            raise ValueError(f"the chat template is {type(template).__name__}, not text.")
        self.text = template or CHATML
        self._special_tokens = special_tokens
        self._date = date
        self._compiled: Any = None

    @property
    def is_dated(self) -> bool:
        """Whether it may look at the date."""
        return "strftime_now" in self.text or "date_string" in self.text

    def render(self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        """The text of a conversation.

        Raises:
            ModuleNotFoundError: The package jinja2 is not installed.
            ValueError: The template is no program, or refuses the messages.
        """
        try:
            self._compiled = self._compiled or _environment(self._date).from_string(self.text)
            text = self._compiled.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except ModuleNotFoundError:
            raise
        except Exception as error:  # noqa: BLE001  # a program may raise anything, such as TypeError for a list
            raise ValueError(f"the chat template refuses the messages: {error}") from None
        return str(text)


def _default_of(templates: list[Any]) -> Any:
    """The one of this name. Where there is none, a program that says so, since texts need none."""
    named = {template.get("name"): template.get("template") for template in templates if isinstance(template, dict)}
    told = f"there are chat templates named {', '.join(map(str, named))}, but none named default"
    return named.get("default", "{{ raise_exception(" + json.dumps(told) + ") }}")


def _environment(date: str | None) -> Any:
    """The environment that transformers gives to templates (transformers.utils.chat_template_utils), and the
    `date_string` of LLM Foundry.

    Raises:
        ModuleNotFoundError: The package jinja2 is not installed.
    """
    try:
        import jinja2.ext
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError:
        raise ModuleNotFoundError('chat templates need the package jinja2: pip install "stoker[prepare]".') from None

    class Generation(jinja2.ext.Extension):  # type: ignore[misc]
        """{% generation %} stands around what the assistant says, for masks that we make otherwise."""

        tags = {"generation"}  # noqa: RUF012  # as Jinja has it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

        def _render(self, caller: Any) -> Any:
            return caller()

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    day = datetime.date.today() if date is None else datetime.date.fromisoformat(date)
    now = datetime.datetime.combine(day, datetime.time())
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = now.strftime
    environment.globals["date_string"] = now.strftime("%d %b %Y")
    return environment
