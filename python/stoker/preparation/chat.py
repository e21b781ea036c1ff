"""Chat templates, rendered as transformers renders them, without transformers."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from typing import Any

# LLM Foundry's, where a tokenizer has none: ChatML.
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class ChatTemplate:
    """A Jinja template over messages.

    Attributes:
        text: The template.
    """

    def __init__(self, template: Any, special_tokens: dict[str, str]) -> None:
        """
        Args:
            template: Its text; or a list of named ones, as tokenizer_config.json has it, of which "default" is taken;
                None: ChatML.
            special_tokens: Names and texts that the template may use, such as "eos_token".
        """
        if isinstance(template, list):
            template = next((t.get("template") for t in template if t.get("name") == "default"), None)
        self.text = str(template or _CHATML)
        self._special_tokens = special_tokens
        self._compiled: Any = None

    def render(self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        """The text of a conversation.

        Raises:
            ModuleNotFoundError: The package jinja2 is not installed.
            ValueError: The template is none, or refuses the messages.
        """
        try:
            import jinja2
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                'chat templates need the package jinja2: pip install "stoker[prepare]".'
            ) from None
        try:
            self._compiled = self._compiled or _environment().from_string(self.text)
            text = self._compiled.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **self._special_tokens
            )
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template refuses the messages: {error}") from None
        return str(text)


def _environment() -> Any:
    """The environment that transformers gives to templates (transformers.utils.chat_template_utils)."""
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    environment.globals["date_string"] = datetime.datetime.now().strftime("%d %b %Y")
    return environment
