"""What `stoker prepare` writes, read by MosaicML Streaming, and its conversations beside transformers'."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import streaming
from transformers import PreTrainedTokenizerFast

import stoker

TEXTS = ["The loader feeds training. " * 5, "def f(x):\n    return x + 1\n" * 3, "Größe, 東京 🙂", "x"] * 20
CHAT = [
    {"role": "user", "content": "What is 1 + 1?"},
    {"role": "assistant", "content": "It is 2."},
    {"role": "user", "content": "And 2 + 2?"},
    {"role": "assistant", "content": "That is 4."},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return folder


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_streaming_reads_prepared_shards(tokenizer: Path, tmp_path: Path, compression: str | None) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer / "tokenizer.json"), eos_token="<|endoftext|>")
    rows = [{"text": text} for text in TEXTS]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stoker.prepare(tmp_path / "text.jsonl", tmp_path / "text", tokenizer, compression=compression, processes=1)
    data = streaming.StreamingDataset(local=str(tmp_path / "text"), shuffle=False, batch_size=1)
    assert len(data) == len(TEXTS)
    for i, text in enumerate(TEXTS):
        want = theirs(text)["input_ids"] + [theirs.eos_token_id]
        np.testing.assert_array_equal(data[i]["tokens"], want)


def test_streaming_reads_prepared_conversations(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": CHAT}) + "\n")
    stoker.prepare(tmp_path / "chat.jsonl", tmp_path / "chat", tokenizer, processes=1)
    (sample,) = streaming.StreamingDataset(local=str(tmp_path / "chat"), shuffle=False, batch_size=1)
    made = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer / "tokenizer.json"), eos_token="<|endoftext|>")
    answers = made.decode([int(label) for label in sample["labels"] if label != -100])
    assert answers == "It is 2.<|im_end|>\nThat is 4.<|im_end|>\n<|endoftext|>"
    loss = sample["labels"] != -100
    np.testing.assert_array_equal(sample["labels"][loss], sample["input_ids"][loss])


def test_streaming_reads_what_was_merged(tokenizer: Path, tmp_path: Path) -> None:
    from stoker.merging import merge

    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": t + name}) + "\n" for t in TEXTS))
        stoker.prepare(tmp_path / f"{name}.jsonl", tmp_path / "all" / name, tokenizer, processes=1)
    assert merge(tmp_path / "all") == 2
    data = streaming.StreamingDataset(local=str(tmp_path / "all"), shuffle=False, batch_size=1)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer / "tokenizer.json"), eos_token="<|endoftext|>")
    for i, text in enumerate([*(t + "a" for t in TEXTS), *(t + "b" for t in TEXTS)]):
        np.testing.assert_array_equal(data[i]["tokens"], [*theirs(text)["input_ids"], theirs.eos_token_id])
