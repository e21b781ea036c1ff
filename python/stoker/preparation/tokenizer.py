"""The tokenizers that data is prepared with: of any format, with the settings that lie beside it."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
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

_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token")  # whose ids are told
_OF_TEMPLATES = (*_SPECIAL_TOKENS, "unk_token", "sep_token", "cls_token", "mask_token")  # whose texts they may use
_MORE_OF_TEMPLATES = "additional_special_tokens"  # a list
_MOST_PROBES = 1000  # texts of vocabulary entries

# Where nothing says which token ends a document: the first of these that the tokenizer has.
_USUAL_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


class TextTokenizer:
    """Text to token ids, without truncation or padding.

    Attributes:
        vocab_size: All ids are below it.
        bos_token_id, eos_token_id, pad_token_id: None where the tokenizer has none.
        sha256: Of what makes ids of texts: the contents of tokenizer.json, say.
        before, behind: Ids that the tokenizer puts around a document, such as that of its beginning.
        chat_template: Its own, or the usual one.
    """

    def __init__(self, name: str | os.PathLike[str], *, date: str | None = None) -> None:
        """
        Args:
            name: A tokenizer.json; a model of SentencePiece (.model); a folder with one of them, or with vocab.json and
                merges.txt of byte-level BPE, and, where they are there, tokenizer_config.json, special_tokens_map.json
                and chat_template.jinja; tiktoken:NAME; or a name on the Hugging Face hub.
            date: What chat templates take for today, as "2024-12-31". Default: today.

        Raises:
            ModuleNotFoundError: The package of its format is not installed.
            FileNotFoundError: There is no such file, and no such name.
            ValueError: The file is not a tokenizer, or one beside it breaks its format or names an end, a beginning or
                a padding that is not in the vocabulary.
        """
        self._name = os.fspath(name)
        self._format, settings = _find(self._name)
        self.sha256 = self._format.sha256
        self.vocab_size = self._format.vocab_size
        self.bos_token_id, self.eos_token_id, self.pad_token_id = (self._id_of(n, settings) for n in _SPECIAL_TOKENS)
        if self.eos_token_id is None:
            self.eos_token_id = next((i for i in map(self._format.id_of, _USUAL_ENDS) if i is not None), None)
        self._mark, self._marked, self.before, self.behind = self._probe()
        self._marks_beginnings = self._is_beginning_marked()
        self._special_tokens = _texts_of_special_tokens(settings)
        self.chat_template = ChatTemplate(settings.get("chat_template"), self._special_tokens, date)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells its ids from those of others, JSON-able."""
        ids = {f"{name}_id": getattr(self, f"{name}_id") for name in _SPECIAL_TOKENS}
        return {"sha256": self.sha256, "vocab_size": self.vocab_size, **ids}

    @property
    def digest(self) -> str:
        """Of all that its ids depend on, the chat template included: hex."""
        of = [self.identity, self.before, self.behind, self.chat_template.text, self._special_tokens]
        return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without the tokens that the tokenizer puts around a document: those are `before` and
        `behind`.

        Raises:
            ValueError: The tokenizer knows no token for something in them, not even one for what is unknown.
        """
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

    def _probe(self) -> tuple[str, list[int], list[int], list[int]]:
        """A short text that the tokenizer knows, its ids, and what stands before and behind them. Nothing of all that,
        where none is found."""
        for text in itertools.chain(("a", "A", "0"), self._texts_of_entries()):
            try:
                ids, whole = self._format.encode([text])[0], self._format.encode_whole(text)
            except ValueError:
                continue
            begins = [i for i in range(len(whole)) if whole[i : i + len(ids)] == ids]
            if ids and len(begins) == 1:  # else it can't be told from what stands around
                return text, ids, whole[: begins[0]], whole[begins[0] + len(ids) :]
        return "", [], [], []

    def _texts_of_entries(self) -> Iterator[str]:
        for i in range(min(self.vocab_size, _MOST_PROBES)):
            try:
                yield self._format.decode([i])
            except ValueError:  # a number without a token
                continue

    def _is_beginning_marked(self) -> bool:
        mark = self._mark
        try:
            parts, whole = self._format.encode([f" {mark}", f"{mark} {mark}"])
        except ValueError:  # it knows no white space
            return False
        return [*self._marked, *parts] != whole

    def _id_of(self, name: str, settings: dict[str, Any]) -> int | None:
        """The id of a special token, which settings name or the format knows.

        Raises:
            ValueError: The vocabulary has no such token.
        """
        content = _content(settings.get(name))
        if content is None:
            return self._format.special_ids.get(name)
        number = self._format.id_of(content)
        if number is None:
            raise ValueError(
                f"the settings of tokenizer {self._name} say that its {name} is {content!r}, which is not in its "
                "vocabulary: correct tokenizer_config.json or special_tokens_map.json, or add the token."
            )
        return number


def _texts_of_special_tokens(settings: dict[str, Any]) -> dict[str, str | list[str]]:
    """What templates may use, of what there is."""
    texts: dict[str, str | list[str]] = {}
    for name in _OF_TEMPLATES:
        if (content := _content(settings.get(name))) is not None:
            texts[name] = content
    more = settings.get(_MORE_OF_TEMPLATES)
    if isinstance(more, list):
        texts[_MORE_OF_TEMPLATES] = [content for content in map(_content, more) if content is not None]
    return texts


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
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    found: Path | None = None
    reason: Exception | None = None
    is_out_of_reach = False  # the hub: then what its cache has will do, and nothing else is waited for
    for file in ("tokenizer.json", "tokenizer.model", *_SETTINGS):
        if file == "tokenizer.model" and found is not None:
            continue
        try:
            folder = Path(hf_hub_download(name, file, local_files_only=is_out_of_reach)).parent
        except EntryNotFoundError as error:
            reason = reason or error
            is_out_of_reach = is_out_of_reach or isinstance(error, LocalEntryNotFoundError)
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
    """What the files beside a tokenizer say, the later ones over the earlier.

    Raises:
        ValueError: One of them breaks its format.
    """
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            settings |= {key: value for key, value in _read_object(folder / name).items() if value}
    if (folder / "chat_template.jinja").is_file():
        settings["chat_template"] = _read_text(folder / "chat_template.jinja")
    return settings


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}. Fetch the tokenizer again.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {type(found).__name__}, not an object. Fetch the tokenizer again.")
    return found


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}. Fetch the tokenizer again.") from None
