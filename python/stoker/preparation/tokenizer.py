"""The tokenizers that data is prepared with: tokenizer.json of Hugging Face, alone or in a folder with its settings."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stoker.preparation.chat import ChatTemplate

# Where nothing says which token ends a document: the first of these that the tokenizer has.
_USUAL_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")


class TextTokenizer:
    """Text to token ids, without truncation or padding.

    Attributes:
        vocab_size: All ids are below it.
        bos_token_id, eos_token_id, pad_token_id: None where the tokenizer has none.
        sha256: Of what tokenizing depends on: the contents of tokenizer.json.
        before, behind: Ids that the tokenizer puts around a document, such as that of its beginning.
        chat_template: Its own, or the usual one.
    """

    def __init__(self, name: str | os.PathLike[str]) -> None:
        """
        Args:
            name: A tokenizer.json, a folder with one (and, where they are there, tokenizer_config.json,
                special_tokens_map.json and chat_template.jinja), or a name on the Hugging Face hub.

        Raises:
            ModuleNotFoundError: The package tokenizers is not installed.
            FileNotFoundError: There is no such file, and no such name.
            ValueError: The file is not a tokenizer.
        """
        try:
            from tokenizers import Tokenizer
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                'preparing data needs the package tokenizers: pip install "stoker[prepare]".'
            ) from None
        path, settings = _find(os.fspath(name))
        text = path.read_text(encoding="utf-8")
        try:
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # noqa: BLE001  # the package raises nothing more specific
            raise ValueError(f"{path} is not a tokenizer: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        self.bos_token_id = self._id_of(settings.get("bos_token"))
        self.eos_token_id = self._id_of(settings.get("eos_token"))
        self.pad_token_id = self._id_of(settings.get("pad_token"))
        if self.eos_token_id is None:
            self.eos_token_id = next((i for i in map(self._id_of, _USUAL_ENDS) if i is not None), None)
        self.before, self.behind = self._around()
        self.chat_template = ChatTemplate(
            settings.get("chat_template"),
            {key: _content(settings.get(key)) or "" for key in ("bos_token", "eos_token", "pad_token")},
        )

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from others, JSON-able."""
        ids = {name: getattr(self, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        return {"sha256": self.sha256, "vocab_size": self.vocab_size, **ids}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without the tokens that the tokenizer puts around a document: those are `before` and
        `behind`."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def _around(self) -> tuple[list[int], list[int]]:
        bare = self.encode(["a"])[0]
        whole = self._tokenizer.encode("a", add_special_tokens=True).ids
        begin = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        return whole[:begin], whole[begin + len(bare) :]

    def _id_of(self, token: Any) -> int | None:
        content = _content(token)
        if content is None:
            return None
        number = self._tokenizer.token_to_id(content)
        return None if number is None else int(number)


def _content(token: Any) -> str | None:
    """A special token as settings name it: as it is, or the "content" of an object."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _find(name: str) -> tuple[Path, dict[str, Any]]:
    """The tokenizer.json that a name means, and the settings beside it."""
    path = Path(name)
    if path.is_file():
        return path, _settings(path.parent) if path.name == "tokenizer.json" else {}
    if path.is_dir():
        if not (path / "tokenizer.json").is_file():
            raise FileNotFoundError(
                f"{path} has no tokenizer.json: save the tokenizer as a fast one of Hugging Face there."
            )
        return path / "tokenizer.json", _settings(path)
    if name.endswith(".json") or name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"there is no tokenizer at {name}: give a tokenizer.json or a folder with one.")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        found = Path(hf_hub_download(name, "tokenizer.json"))
        for extra in ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
            try:
                hf_hub_download(name, extra)
            except EntryNotFoundError:
                continue
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise FileNotFoundError(
            f"tokenizer {name!r} is neither a file or folder here, nor could it be had from the Hugging Face hub: "
            f"{error}"
        ) from None
    return found, _settings(found.parent)


def _settings(folder: Path) -> dict[str, Any]:
    """What the files beside a tokenizer.json say, the later ones over the earlier."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings |= {k: v for k, v in json.loads((folder / name).read_text(encoding="utf-8")).items() if v}
    if (folder / "chat_template.jinja").is_file():
        settings["chat_template"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return settings
