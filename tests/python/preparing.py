"""Raw data, a tokenizer of words, and a look at what comes out: for tests of preparation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import stoker

END, BEGIN, NUM_WORDS = 0, 1, 1000  # ids, and how many words there are
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Goodbye."},
]


def write_tokenizer(path: Path) -> Path:
    """Word w7 is token 9; END and BEGIN have tokens of their own."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<|endoftext|>": END, "<s>": BEGIN, **{f"w{i}": i + 2 for i in range(NUM_WORDS)}}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(path))
    return path


def write_lines(path: Path, rows: Iterable[Any]) -> Path:
    """An object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def contents(directory: Path) -> dict[str, bytes]:
    """Its files."""
    return {p.name: p.read_bytes() for p in sorted(directory.iterdir())}


def samples_of(directory: Path) -> list[dict[str, list[int]]]:
    """All samples of a data set, in order."""
    stream = stoker.Stream(local=directory)
    entries = json.loads((directory / "index.json").read_text())["shards"]
    with stoker.DataLoader(stream, seq_len=8, batch_size=1, layout="pad", drop_last=False) as loader:
        return [
            {name: values.tolist() for name, values in loader.dataset.read(str(stream.name), shard, sample).items()}
            for shard, entry in enumerate(entries)
            for sample in range(entry["samples"])
        ]
