"""Makes the data sets that the benchmarks run on: about 200 M tokens of real text, as every peer wants to have them.

    python benchmarks/data.py            # into .bench/, about 4 GB, a few minutes the first time

Text: ../shared/data/pretrain (books, code, documentation, many languages) with the GPT-NeoX tokenizer where that is
there, else the Python library's source with a tokenizer trained on it. It is about 15 M (3 M) tokens, documents
ended by EOS; longer data sets repeat it, each time from another place on. Streams `a` and `b` hold 3/4 and 1/4 of
the tokens, cut in samples of 2048. For packing: instructions and conversations of ../shared/data, and a log-normal set.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / ".bench"
SHARED = ROOT.parent / "shared" / "data"
SEQ_LEN = 2048
ROWS = {"a": 75_000, "b": 25_000}


def real_tokens() -> npt.NDArray[np.uint16]:
    """All the text there is, once, as one line of tokens."""
    path = OUT / "tokens.npy"
    if path.exists():
        return np.load(path)
    texts, tokenizer, end = _shared_text() if SHARED.is_dir() else _library_text()
    parts = []
    for begin in range(0, len(texts), 256):
        for encoding in tokenizer.encode_batch(texts[begin : begin + 256], add_special_tokens=False):
            parts.append(np.array([*encoding.ids, end], np.uint16))
    tokens = np.concatenate(parts)
    np.save(path, tokens)
    return tokens


def _shared_text():  # type: ignore[no-untyped-def]
    import zstandard
    from tokenizers import Tokenizer

    texts = []
    for path in sorted((SHARED / "pretrain").glob("*.jsonl.zst")):
        lines = zstandard.ZstdDecompressor().decompress(path.read_bytes(), max_output_size=1 << 30).splitlines()
        texts += [json.loads(line)["text"] for line in lines]
    tokenizer = Tokenizer.from_file(str(SHARED / "tokenizer" / "gpt-neox-20b-olmo" / "tokenizer.json"))
    return texts, tokenizer, tokenizer.token_to_id("<|endoftext|>")


def _library_text():  # type: ignore[no-untyped-def]
    sys.path.insert(0, str(ROOT / "examples"))
    import demo

    texts = demo.read_library()["code"]
    tokenizer = demo.train_tokenizer(texts[::4])
    return texts, tokenizer, tokenizer.token_to_id(demo.END)


def rows(name: str) -> Iterator[npt.NDArray[np.uint16]]:
    """The samples of a stream."""
    tokens = real_tokens()
    at = 0 if name == "a" else 12_345
    for _ in range(ROWS[name]):
        if at + SEQ_LEN > len(tokens):
            at = (at * 7 + 1001) % 1999  # another place, so that repeats are cut elsewhere
        yield tokens[at : at + SEQ_LEN]
        at += SEQ_LEN


def write_mds(name: str, dtype: str, compression: str | None) -> None:
    import stoker

    out = OUT / f"{name}-{dtype}-{compression or 'raw'}"
    if (out / "index.json").exists():
        return
    shutil.rmtree(out, ignore_errors=True)
    print(f"writing {out.relative_to(ROOT)}", flush=True)
    with stoker.MDSWriter(columns={"tokens": f"ndarray:{dtype}"}, out=out, compression=compression) as writer:
        for row in rows(name):
            writer.write({"tokens": row.astype(dtype)})


def write_flat(name: str) -> None:
    """uint16 rows without anything around them: what memmap loops read."""
    path = OUT / f"{name}.bin"
    if not path.exists():
        print(f"writing {path.relative_to(ROOT)}", flush=True)
        with open(path, "wb") as file:
            for row in rows(name):
                file.write(row.tobytes())


def finetuning_samples(name: str) -> Iterator[tuple[list[int], list[int]]]:
    """Tokens and labels of the instructions or the conversations in ../shared/data, or of a log-normal set of random
    tokens. Loss on what the assistant says, and on the END behind it."""
    if name == "lognormal":
        rng = np.random.default_rng(0)
        for length in np.clip(rng.lognormal(5.6, 1.0, 100_000).astype(int), 2, 8192):
            ids = rng.integers(0, 50_000, length).tolist()
            yield ids, [-100] * (length // 3) + ids[length // 3 :]
        return
    import zstandard
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(SHARED / "tokenizer" / "gpt-neox-20b-olmo" / "tokenizer.json"))
    end = tokenizer.token_to_id("<|endoftext|>")
    files = {"instruct": ["finetune/instruct"], "chat": ["chat/assistant", "chat/task_dialogues"]}[name]
    for file in files:
        content = (SHARED / f"{file}.jsonl.zst").read_bytes()
        for line in zstandard.ZstdDecompressor().decompress(content, max_output_size=1 << 30).splitlines():
            row = json.loads(line)
            turns = row.get("messages") or [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["response"]},
            ]
            ids: list[int] = []
            labels: list[int] = []
            for turn in turns:
                of_turn = tokenizer.encode(turn["content"], add_special_tokens=False).ids
                is_trained = turn["role"] == "assistant"
                of_turn += [end] if is_trained else []
                ids += of_turn
                labels += of_turn if is_trained else [-100] * len(of_turn)
            yield ids, labels


def write_finetuning(name: str) -> None:
    import stoker

    out = OUT / name
    if (out / "index.json").exists():
        return
    shutil.rmtree(out, ignore_errors=True)
    print(f"writing {out.relative_to(ROOT)}", flush=True)
    columns = {"input_ids": "ndarray:uint16", "labels": "ndarray:int32"}
    with stoker.MDSWriter(columns=columns, out=out) as writer:
        for ids, labels in finetuning_samples(name):
            writer.write({"input_ids": np.array(ids, np.uint16), "labels": np.array(labels, np.int32)})


def main() -> None:
    OUT.mkdir(exist_ok=True)
    for name in ("instruct", "chat", "lognormal") if SHARED.is_dir() else ("lognormal",):
        write_finetuning(name)
    for name in ROWS:
        write_flat(name)
        for dtype in ("uint16", "int32"):
            for compression in (None, "zstd"):
                write_mds(name, dtype, compression)


if __name__ == "__main__":
    main()
