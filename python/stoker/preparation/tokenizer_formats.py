"""What tokenizers come as: tokenizer.json of Hugging Face, vocabularies of GPT-2, tiktoken, SentencePiece."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

NAMED_TIKTOKEN = "tiktoken:"
GPT2_FILES = (
    ("vocab.json", "merges.txt"),
    ("encoder.json", "vocab.bpe"),
)  # tokens and merges, as either side names them


class TokenizerFormat(Protocol):
    """A tokenizer behind its package. All of them take a special token in a text for what it is, and raise ValueError
    for what the package can't do.

    Attributes:
        vocab_size: All ids are below it.
        sha256: Of what tokenizing depends on.
        special_ids: Of "bos_token", "eos_token" and "pad_token", where the format itself tells them.
    """

    vocab_size: int
    sha256: str
    special_ids: dict[str, int]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, and nothing around it."""

    def encode_whole(self, text: str) -> list[int]:
        """The ids of a text, with what the tokenizer puts around a document."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""

    def id_of(self, token: str) -> int | None:
        """The id of a token; None where there is none of this text."""


class HuggingFaceFormat:
    """A tokenizer of the package tokenizers."""

    def __init__(self, tokenizer: Any, content: bytes) -> None:
        """
        Args:
            tokenizer: A `tokenizers.Tokenizer`.
            content: What it was made of.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        self.special_ids: dict[str, int] = {}

    @classmethod
    def read(cls, path: Path) -> HuggingFaceFormat:
        """Of a tokenizer.json.

        Raises:
            ModuleNotFoundError: The package tokenizers is not installed.
            ValueError: The file is not a tokenizer.
        """
        try:
            text = path.read_text(encoding="utf-8")
            return cls(_tokenizers().Tokenizer.from_str(text), text.encode())
        except (ModuleNotFoundError, OSError):
            raise
        except Exception as error:  # noqa: BLE001  # the package raises nothing more specific
            raise ValueError(f"{path} is not a tokenizer: {error}") from None

    @classmethod
    def read_gpt2(cls, vocabulary: Path, merges: Path) -> HuggingFaceFormat:
        """Of a vocabulary and merges of byte-level BPE, as GPT-2 and Megatron-LM have them.

        Raises:
            ModuleNotFoundError: The package tokenizers is not installed.
            ValueError: The files are none.
        """
        package = _tokenizers()
        try:
            tokenizer = package.Tokenizer(package.models.BPE.from_file(str(vocabulary), str(merges)))
        except Exception as error:  # noqa: BLE001  # the package raises nothing more specific
            raise ValueError(f"{vocabulary} and {merges} are no vocabulary of GPT-2's form: {error}") from None
        tokenizer.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = package.decoders.ByteLevel()
        tokenizer.add_special_tokens(
            [token for token in ("<|endoftext|>",) if tokenizer.token_to_id(token) is not None]
        )
        return cls(tokenizer, vocabulary.read_bytes() + merges.read_bytes())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # noqa: BLE001  # the package raises nothing more specific
            raise ValueError(f"the tokenizer can't encode a text: {error}") from None
        return [encoding.ids for encoding in encodings]

    def encode_whole(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=True).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def id_of(self, token: str) -> int | None:
        number = self._tokenizer.token_to_id(token)
        return None if number is None else int(number)


class TiktokenFormat:
    """An encoding of tiktoken, or of a plugin of it."""

    def __init__(self, name: str) -> None:
        """
        Args:
            name: As `tiktoken.get_encoding` takes it.

        Raises:
            ModuleNotFoundError: The package tiktoken is not installed.
            FileNotFoundError: There is no such encoding, or its files can't be had.
        """
        try:
            import tiktoken
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                'encodings of tiktoken need its package: pip install "stoker[tiktoken]".'
            ) from None
        try:
            self._encoding = tiktoken.get_encoding(name)
        except (ValueError, OSError) as error:
            raise FileNotFoundError(
                f"tiktoken has no encoding {name!r}, or can't fetch its files (TIKTOKEN_CACHE_DIR may hold them): "
                f"{error}"
            ) from None
        self.vocab_size = self._encoding.n_vocab
        of = (self._encoding._pat_str, sorted(self._encoding._special_tokens.items()))
        digest = hashlib.sha256(json.dumps(of).encode())
        for token, rank in self._encoding._mergeable_ranks.items():
            digest.update(b"%d %s\n" % (rank, token.hex().encode()))
        self.sha256 = digest.hexdigest()
        self.special_ids: dict[str, int] = {}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._encoding.encode(text, allowed_special="all") for text in texts]

    def encode_whole(self, text: str) -> list[int]:
        return self.encode([text])[0]

    def decode(self, ids: Sequence[int]) -> str:
        try:
            return str(self._encoding.decode(list(ids)))
        except KeyError as error:
            raise ValueError(f"the tokenizer has no token {error}") from None

    def id_of(self, token: str) -> int | None:
        try:
            return int(self._encoding.encode_single_token(token))
        except KeyError:
            return None


class SentencePieceFormat:
    """A model of SentencePiece. Its control symbols (such as "<s>"), which SentencePiece itself finds in no text, stand
    for themselves in a text."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: The model.

        Raises:
            ModuleNotFoundError: The package sentencepiece is not installed.
            ValueError: The file is not a model.
        """
        try:
            from sentencepiece import SentencePieceProcessor
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                'models of SentencePiece need its package: pip install "stoker[sentencepiece]".'
            ) from None
        content = path.read_bytes()
        try:
            self._model = SentencePieceProcessor(model_proto=content)
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"{path} is not a model of SentencePiece: {error}. Ranks of tiktoken need a pattern beside them: give "
                "the tokenizer.json of the same tokenizer, or make a plugin of tiktoken and name it tiktoken:NAME."
            ) from None
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.vocab_size = self._model.vocab_size()
        known = {
            "bos_token": self._model.bos_id(),
            "eos_token": self._model.eos_id(),
            "pad_token": self._model.pad_id(),
        }
        self.special_ids = {name: number for name, number in known.items() if number >= 0}
        controls = [self._model.id_to_piece(i) for i in range(self.vocab_size) if self._model.is_control(i)]
        self._controls = re.compile("|".join(f"({re.escape(piece)})" for piece in controls) or r"(?!)")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        at = 0
        for control in self._controls.finditer(text):
            ids += self._model.encode(text[at : control.start()], out_type=int)
            ids.append(self._model.piece_to_id(control.group()))
            at = control.end()
        return ids + list(self._model.encode(text[at:], out_type=int))

    def encode_whole(self, text: str) -> list[int]:
        return self._encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._model.decode(list(ids)))

    def id_of(self, token: str) -> int | None:
        number = int(self._model.piece_to_id(token))
        return number if self._model.id_to_piece(number) == token else None


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'preparing data needs the package tokenizers: pip install "stoker[prepare]".'
        ) from None
    return tokenizers
