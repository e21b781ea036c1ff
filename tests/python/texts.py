"""Texts, and a tokenizer that is trained on them."""

from __future__ import annotations

import json
from pathlib import Path

TEXTS = [
    "The loader feeds training.\nIt mixes streams, packs rows and hands batches over.\n",
    "def f(x):\n    return x + 1\n\n\nclass A:\n    pass\n",
    "Größe, naïve, 東京, emoji 🙂 and \ttabs.",
    "x",
    "  leading and trailing spaces   ",
]
END, BEGIN = "<|endoftext|>", "<s>"


def write_tokenizer(folder: Path) -> None:
    """Writes a byte-level BPE, trained on the texts, and its settings."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[END, BEGIN, "<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS * 3, trainer)
    made.enable_truncation(8)  # which the preparation must not heed
    made.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": END, "bos_token": {"content": BEGIN}, "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def ids_of(tokenizer: Path, text: str) -> list[int]:
    """What the package tokenizers itself makes of a text."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    made.no_truncation()
    return list(made.encode(text, add_special_tokens=False).ids)
