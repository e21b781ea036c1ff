"""Real instructions, conversations and code in the same rows, by a real tokenizer. Needs ../shared/data."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import stoker

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")

END, SEQ_LEN = 50_279, 2048


def rows_of(file: str, number: int) -> list[dict]:  # type: ignore[type-arg]
    zstandard = pytest.importorskip("zstandard")
    content = (DATA / f"{file}.jsonl.zst").read_bytes()
    lines = zstandard.ZstdDecompressor().decompress(content, max_output_size=1 << 30).splitlines()
    return [json.loads(line) for line in lines[:number]]


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[list[int], list[int]]]]:
    """Tokens and labels of each sample; also written as shards."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(DATA / "tokenizer" / "gpt-neox-20b-olmo" / "tokenizer.json"))

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids  # type: ignore[no-any-return]

    samples: dict[str, list[tuple[list[int], list[int]]]] = {"chat": [], "code": [], "instruct": []}
    for row in rows_of("finetune/instruct", 600):
        prompt, response = encode(row["prompt"]), [*encode(row["response"]), END]
        samples["instruct"].append((prompt + response, [-100] * len(prompt) + response))
    for row in rows_of("chat/assistant", 200):
        ids, labels = [], []
        for message in row["messages"]:
            turn = [*encode(message["content"]), END]
            ids += turn
            labels += turn if message["role"] == "assistant" else [-100] * len(turn)
        samples["chat"].append((ids, labels))
    for row in rows_of("pretrain/code", 60):
        ids = [*encode(row["text"]), END]
        samples["code"].append((ids, ids))
    root = tmp_path_factory.mktemp("real")
    for name, of_stream in samples.items():
        columns = (
            {"tokens": "ndarray:uint16"} if name == "code" else {"input_ids": "ndarray", "labels": "ndarray:int32"}
        )
        with stoker.MDSWriter(columns=columns, out=root / name, compression="zstd") as out:
            for ids, labels in of_stream:
                values = np.array(ids, np.uint16)
                out.write({"tokens": values, "input_ids": values, "labels": np.array(labels, np.int32)})
    samples["root"] = root  # type: ignore[assignment]
    return samples


def test_real_samples_come_whole_with_their_labels_and_rows_are_full(
    streams: dict[str, list[tuple[list[int], list[int]]]],
) -> None:
    root = Path(str(streams["root"]))
    with stoker.DataLoader(
        [stoker.Stream(local=root / name, proportion=1) for name in ("chat", "code", "instruct")],
        layout="pack",
        weights_in="tokens",
        seq_len=SEQ_LEN,
        batch_size=4,
        fields=["input_ids", "labels", "sequence_id", "stream_ids"],
        vocab_size=50_280,
        epoch_size="3m",
    ) as loader:
        seen: Counter[str] = Counter()
        for number, batch in enumerate(loader):
            for row, segments in enumerate(loader.order(number)) if number % 40 == 0 else ():
                at = 0
                for segment in segments:
                    ids, labels = streams[segment.stream][segment.sample]
                    part = slice(segment.token_begin, segment.token_end)
                    end = at + segment.token_end - segment.token_begin
                    assert batch["input_ids"][row, at:end].tolist() == ids[part]
                    assert batch["labels"][row, at + 1 : end].tolist() == labels[part][1:]
                    assert int(batch["labels"][row, at]) == (-100 if at else labels[part][0])
                    seen[segment.stream] += 1
                    at = end
        stats = loader.stats()
    assert min(seen.values()) > 10
    assert stats["fill"] > 0.99
    for stream in stats["streams"].values():
        assert stream["achieved"] == pytest.approx(1 / 3, abs=0.02)
        assert stream["loss_tokens"] > 0


def test_prepared_text_has_the_tokens_that_the_data_is_known_to_have(tmp_path: Path) -> None:
    """Rows and tokens of ../shared/data/README.md, and an end behind each document."""
    tokenizer = DATA / "tokenizer" / "gpt-neox-20b-olmo"
    counts = stoker.prepare(DATA / "pretrain" / "multilingual.jsonl.zst", tmp_path / "text", tokenizer)
    assert (counts.samples, counts.tokens) == (193, 1_242_460 + 193)
    counts = stoker.prepare(DATA / "chat", tmp_path / "chat", tokenizer, processes=2)
    assert counts.samples == 241 + 5_000 and not counts.bad


def test_a_word_piece_tokenizer_puts_its_tokens_around_documents(tmp_path: Path) -> None:
    bert = DATA / "tokenizer" / "bert-base-uncased-minilm"
    stoker.prepare(DATA / "pretrain" / "multilingual.jsonl.zst", tmp_path / "text", bert, processes=1)
    stream = stoker.Stream(local=tmp_path / "text")
    with stoker.DataLoader(stream, seq_len=8, batch_size=1, layout="pad", drop_last=False) as loader:
        tokens = loader.dataset.read("text", 0, 0)["tokens"]
    assert (tokens[0], tokens[-1]) == (101, 102) and len(tokens) > 128  # the file's truncation is not heeded
