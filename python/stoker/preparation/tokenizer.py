"""The tokenizers that data is prepared with: of any format, with the settings that lie beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stoker.preparation.chat import ChatTemplate
from stoker.preparation.tokenizer_formats import (
    GPT2_FILES,
    NAMED_TIKTOKEN,
    HuggingFaceFormat,
    SentencePieceFormat,
    TiktokenFormat,
    TokenizerFormat,
)

# Where nothing says which token ends a document: the first of these that the tokenizer has.
_USUAL_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


class TextTokenizer:
    """Text to token ids, without truncation or padding.

    Attributes:
        vocab_size: All ids are below it.
        bos_token_id, eos_token_id, pad_token_id: None where the tokenizer has none.
        sha256: Of what tokenizing depends on: the contents of tokenizer.json, say.
        before, behind: Ids that the tokenizer puts around a document, such as that of its beginning.
        chat_template: Its own, or the usual one.
    """

    def __init__(self, name: str | os.PathLike[str]) -> None:
        """
        Args:
            name: A tokenizer.json; a model of SentencePiece (.model); a folder with one of them, or with vocab.json and
                merges.txt of byte-level BPE, and, where they are there, tokenizer_config.json, special_tokens_map.json
                and chat_template.jinja; tiktoken:NAME; or a name on the Hugging Face hub.

        Raises:
            ModuleNotFoundError: The package of its format is not installed.
            FileNotFoundError: There is no such file, and no such name.
            ValueError: The file is not a tokenizer.
        """
        self._format, settings = _find(os.fspath(name))
        self.sha256 = self._format.sha256
        self.vocab_size = self._format.vocab_size
        self.bos_token_id = self._id_of("bos_token", settings)
        self.eos_token_id = self._id_of("eos_token", settings)
        self.pad_token_id = self._id_of("pad_token", settings)
        if self.eos_token_id is None:
            self.eos_token_id = next((i for i in map(self._format.id_of, _USUAL_ENDS) if i is not None), None)
        self.before, self.behind = self._around()
        self._mark, self._marked = "a", self.encode(["a"])[0]
        parts, whole = self.encode(["a", " b", "a b"])[1:]
        self._marks_beginnings = [*self._marked, *parts] != whole
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
        return self._format.encode(texts)

    def encode_rests(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts each of which goes on where another one ended, before white space: those that they have in
        the whole text. Some tokenizers mark the beginning of what they are given."""
        if not self._marks_beginnings:
            return self.encode(texts)
        marked = [text if not text[:1].isspace() else self._mark + text for text in texts]
        length = len(self._marked)
        return [
            ids[length:] if own != text and ids[:length] == self._marked else ids
            for text, own, ids in zip(texts, marked, self.encode(marked), strict=True)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        return self._format.decode(ids)

    def _around(self) -> tuple[list[int], list[int]]:
        bare = self.encode(["a"])[0]
        whole = self._format.encode_whole("a")
        begin = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        return whole[:begin], whole[begin + len(bare) :]

    def _id_of(self, name: str, settings: dict[str, Any]) -> int | None:
        """The id of a special token, which settings name or the format knows."""
        content = _content(settings.get(name))
        if content is None:
            return self._format.special_ids.get(name)
        return self._format.id_of(content)


def _content(token: Any) -> str | None:
    """A special token as settings name it: as it is, or the "content" of an object."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _find(name: str) -> tuple[TokenizerFormat, dict[str, Any]]:
    """The tokenizer that a name means, and the settings beside it."""
    path = Path(name)
    if name.startswith(NAMED_TIKTOKEN):
        return TiktokenFormat(name.removeprefix(NAMED_TIKTOKEN)), {}
    if path.is_file():
        has_settings = path.name in ("tokenizer.json", "tokenizer.model")
        settings = _settings(path.parent) if has_settings else {}
        return (SentencePieceFormat if path.suffix == ".model" else HuggingFaceFormat.read)(path), settings
    if path.is_dir():
        return _find_in(path), _settings(path)
    if name.endswith((".json", ".model")) or name.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"there is no tokenizer at {name}: give a tokenizer.json, a model of SentencePiece, or a folder with one."
        )
    folder = _fetch(name)
    return _find_in(folder), _settings(folder)


def _find_in(folder: Path) -> TokenizerFormat:
    if (folder / "tokenizer.json").is_file():
        return HuggingFaceFormat.read(folder / "tokenizer.json")
    if (folder / "tokenizer.model").is_file():
        return SentencePieceFormat(folder / "tokenizer.model")
    for names in GPT2_FILES:
        vocabulary, merges = (folder / name for name in names)
        if vocabulary.is_file() and merges.is_file():
            return HuggingFaceFormat.read_gpt2(vocabulary, merges)
    raise FileNotFoundError(
        f"{folder} has no tokenizer.json, tokenizer.model, or vocab.json and merges.txt: save the tokenizer there."
    )


def _fetch(name: str) -> Path:
    """The folder of a tokenizer of the Hugging Face hub.

    Raises:
        FileNotFoundError: It can't be had.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    found: Path | None = None
    reason: Exception | None = None
    for file in ("tokenizer.json", "tokenizer.model", *_SETTINGS):
        if file == "tokenizer.model" and found is not None:
            continue
        try:
            folder = Path(hf_hub_download(name, file)).parent
        except EntryNotFoundError as error:
            reason = reason or error
        except (HfHubHTTPError, OSError, ValueError) as error:
            reason = error
            break
        else:
            found = found or folder
    if found is None:
        raise FileNotFoundError(
            f"tokenizer {name!r} is neither a file or folder here, nor could it be had from the Hugging Face hub: "
            f"{reason}"
        ) from None
    return found


def _settings(folder: Path) -> dict[str, Any]:
    """What the files beside a tokenizer say, the later ones over the earlier."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings |= {k: v for k, v in json.loads((folder / name).read_text(encoding="utf-8")).items() if v}
    if (folder / "chat_template.jinja").is_file():
        settings["chat_template"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return settings
