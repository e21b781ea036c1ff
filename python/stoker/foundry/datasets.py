"""LLM Foundry's data sets, for subclasses and for torch's DataLoader: samples of MDS shards as its collators take them.

The builders use them where batches are made in Python (see python_loader.py); else the core reads the shards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from stoker.foundry.config import check_token_encoding_type, stream_remote_local_validate
from stoker.foundry.tokenizing import tokenize_formatted_example
from stoker.streaming import StreamingDataset


class StreamingTextDataset(StreamingDataset):
    """Samples of tokens, or of text that is tokenized.

    A sample is a (tokens,) int64 tensor of `max_seq_len` tokens at most; or, of a column `text`, what the tokenizer
    returns: lists of max_seq_len, padded.

    Attributes:
        tokenizer, max_seq_len, token_encoding_type: As given.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_seq_len: int,
        token_encoding_type: str = "int64",
        streams: Any = None,
        remote: str | None = None,
        local: str | None = None,
        split: str | None = None,
        shuffle_block_size: float | None = None,
        **arguments: Any,
    ) -> None:
        """
        Args:
            tokenizer: Of transformers; for columns of text.
            max_seq_len: What is longer is cut.
            token_encoding_type: Integer type of columns whose encoding is `bytes`.
            streams, remote, local, split, shuffle_block_size, arguments: See `stoker.streaming.StreamingDataset`.

        Raises:
            ValueError: The type is none of integers, or a local directory has not the split.
            TypeError: There is no such argument.
        """
        self.token_encoding_type = check_token_encoding_type(token_encoding_type)
        _check_places(streams, remote, local, split)
        super().__init__(
            streams=streams,
            remote=remote,
            local=local,
            split=split,
            shuffle_block_size=None if shuffle_block_size is None else int(shuffle_block_size),
            **arguments,
        )
        self.tokenizer = tokenizer
        self.max_seq_len = max_seq_len

    def get_item(self, sample_id: int, retry: int = 7) -> Any:
        """The sample of a number; see `StreamingDataset.get_item`.

        Raises:
            RuntimeError: It has neither text nor tokens, or the tokenizer that it needs has no padding.
        """
        return self._decode(super().get_item(sample_id, retry))

    def _decode(self, sample: Mapping[str, Any]) -> Any:
        if "text" in sample:
            return self._tokenize(sample)
        if "tokens" in sample:
            return self._read_binary_tokenized_sample(sample)
        raise RuntimeError("StreamingTextDataset needs samples to have a `text` or `tokens` column")

    def _tokenize(self, text_sample: Mapping[str, Any]) -> Mapping[str, list[int]]:
        if self.tokenizer.pad_token is None:
            raise RuntimeError("If tokenizing on-the-fly, tokenizer must have a pad_token_id")
        encoded: Mapping[str, list[int]] = self.tokenizer(
            text_sample["text"], truncation=True, padding="max_length", max_length=self.max_seq_len
        )
        return encoded

    def _read_binary_tokenized_sample(self, sample: Mapping[str, Any]) -> Any:
        import torch

        tokens = _array_of(sample["tokens"], self.token_encoding_type)
        return torch.from_numpy(tokens[: self.max_seq_len].astype(np.int64))


class StreamingFinetuningDataset(StreamingDataset):
    """Examples for finetuning: `{"turns": [{"input_ids": [...], "labels": [...]}, ...]}`.

    Of a column `turns`, as it is; of `input_ids` and `labels`, cut to max_seq_len; of `prompt` and `response` or of
    `messages`, tokenized.

    Attributes:
        tokenizer, max_seq_len, token_encoding_type, packing_ratio: As given.
    """

    def __init__(
        self,
        tokenizer: Any,
        token_encoding_type: str = "int64",
        streams: Any = None,
        local: str | None = None,
        remote: str | None = None,
        split: str | None = None,
        max_seq_len: int = 2048,
        packing_ratio: float | None = None,
        **arguments: Any,
    ) -> None:
        """
        Args:
            tokenizer: Of transformers; for prompts, responses and conversations.
            token_encoding_type, streams, local, remote, split, max_seq_len, arguments: See `StreamingTextDataset`.
            packing_ratio: Samples of a row that a trainer counts, which `state_dict` counts in samples.

        Raises:
            ValueError, TypeError: See `StreamingTextDataset`.
        """
        self.token_encoding_type = check_token_encoding_type(token_encoding_type)
        _check_places(streams, remote, local, split)
        super().__init__(streams=streams, local=local, remote=remote, split=split, **arguments)
        self.tokenizer = tokenizer
        self.max_seq_len = max_seq_len
        self.packing_ratio = packing_ratio

    def tokenize_example(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """The turns of an example; see `stoker.foundry.tokenize_formatted_example`."""
        return tokenize_formatted_example(example, self.tokenizer)

    def get_item(self, sample_id: int, retry: int = 7) -> Any:
        """The sample of a number; see `StreamingDataset.get_item`.

        Raises:
            ValueError: Its input_ids are neither bytes nor an array.
            BadExampleError: It is no example; a subclass tells why.
        """
        return self._decode(super().get_item(sample_id, retry))

    def _decode(self, sample: dict[str, Any]) -> dict[str, Any]:
        if "turns" in sample:
            return sample
        if "input_ids" not in sample:
            return self.tokenize_example(sample)
        if not isinstance(sample["input_ids"], (bytes, np.ndarray)):
            raise ValueError(f"Expect input_ids to be bytes or numpy.ndarray type, but got {type(sample['input_ids'])}")
        for key in ("input_ids", "labels"):
            sample[key] = _array_of(sample[key], self.token_encoding_type)[: self.max_seq_len].tolist()
        return {"turns": [sample]}

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """See `stoker.streaming.StreamingDataset`; `num_samples` are rows, of packing_ratio samples each."""
        if self.packing_ratio is not None:
            num_samples = int(self.packing_ratio * num_samples)
        state: dict[str, Any] = super().state_dict(num_samples=num_samples, from_beginning=from_beginning)
        return state


def _array_of(tokens: Any, dtype: str) -> npt.NDArray[Any]:
    return tokens if isinstance(tokens, np.ndarray) else np.frombuffer(tokens, dtype)


def _check_places(streams: Any, remote: str | None, local: str | None, split: str | None) -> None:
    if streams is None:
        stream_remote_local_validate(remote, local, split)
    for stream in streams or ():
        stream_remote_local_validate(stream.remote, stream.local, split)
