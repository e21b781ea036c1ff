"""Mixes two streams of real text into training batches: the Python library's source and its documentation.

Reads this interpreter's standard library, trains a byte-level BPE tokenizer on it, writes both streams as compressed
MDS shards into .demo/, and feeds them 70/30 as rows of 1024 tokens. Run it with `make demo`.
"""

from __future__ import annotations

import ast
import shutil
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import stoker

OUT = Path(".demo")
END = "<|endoftext|>"
VOCAB_SIZE = 16_384
SEQ_LEN = 1024
BATCH_SIZE = 8


def library_files() -> list[Path]:
    """Modules of the standard library, without its tests and what is installed beside it."""
    library = Path(sysconfig.get_paths()["stdlib"])
    skip = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"}
    return sorted(p for p in library.rglob("*.py") if not skip & set(p.relative_to(library).parts))


def documentation(source: str) -> Iterator[str]:
    """The documentation strings of a module: its own, and those of its classes and functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield text


def read_library() -> dict[str, list[str]]:
    """One document a module for `code`; the module's documentation strings together for `docs`."""
    streams: dict[str, list[str]] = {"code": [], "docs": []}
    for path in library_files():
        source = path.read_text(encoding="utf-8", errors="ignore")
        try:
            texts = list(documentation(source))
        except (SyntaxError, ValueError):  # templates of other languages
            continue
        streams["code"].append(source)
        if texts:
            streams["docs"].append("\n\n".join(texts))
    return streams


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A byte-level BPE, as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_stream(name: str, texts: list[str], tokenizer: Tokenizer) -> int:
    """Writes one sample a document, its end marked. Returns the number of tokens."""
    end = tokenizer.token_to_id(END)
    total = 0
    columns = {"tokens": "ndarray:uint16"}
    with stoker.MDSWriter(columns=columns, out=OUT / name, compression="zstd", size_limit="4mb") as writer:
        for encoding in tokenizer.encode_batch(texts):
            tokens = np.array([*encoding.ids, end], np.uint16)
            total += len(tokens)
            writer.write({"tokens": tokens})
    return total


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    streams = read_library()
    print(f"read {', '.join(f'{len(texts):,} documents of {name}' for name, texts in streams.items())}")
    tokenizer = train_tokenizer(text for texts in streams.values() for text in texts[::4])
    for name, texts in streams.items():
        print(f"wrote {write_stream(name, texts, tokenizer):,} tokens of {name} to {OUT / name}")

    loader = stoker.DataLoader(
        [
            stoker.Stream(local=OUT / "code", proportion=0.7),
            stoker.Stream(local=OUT / "docs", proportion=0.3),
        ],
        seq_len=SEQ_LEN,
        batch_size=BATCH_SIZE,
        epoch_size="20k",
        vocab_size=VOCAB_SIZE,
    )
    checksum = torch.zeros((), dtype=torch.int64)
    row = None
    with loader:
        for batch in loader:
            row = batch["input_ids"][0] if row is None else row
            checksum += batch["input_ids"][:, -1].sum()  # a trainer would do more
        stats = loader.stats()

    asked, achieved = (
        " / ".join(f"{stream[kind]:.2%} {name}" for name, stream in stats["streams"].items())
        for kind in ("asked", "achieved")
    )
    print()
    print(f"  batches              {stats['batches']:,} of {BATCH_SIZE} x {SEQ_LEN} tokens, int64 ids and labels")
    print(f"  tokens/s             {stats['tokens_per_s'] / 1e6:,.0f} million")
    print(f"  time to first batch  {stats['first_batch_s'] * 1e3:.1f} ms")
    print(f"  mixture asked        {asked}")
    print(f"  mixture achieved     {achieved}")
    print(f"  consumer waited      {stats['wait_share']:.0%} of the time, since it does nothing but ask for more")
    print()
    print("The first row of the first batch, decoded:")
    print()
    assert row is not None
    for line in tokenizer.decode(row.tolist(), skip_special_tokens=False).splitlines():
        print("  |", line)


if __name__ == "__main__":
    main()
