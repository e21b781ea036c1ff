"""Packed rows beside LLM Foundry's own collators, tensor for tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foundry import import_alone, make_tokenizer, packing_collator

import stoker

PAD, EOS = 1, 2


def samples(number: int, longest: int) -> list[dict[str, list[int]]]:
    """Prompts and responses that end with EOS, as finetuning shards hold them."""
    rng = np.random.default_rng(number)
    out = []
    for _ in range(number):
        prompt = rng.integers(3, 50_000, rng.integers(1, longest)).tolist()
        response = [*rng.integers(3, 50_000, rng.integers(1, longest)).tolist(), EOS]
        out.append({"prompt": prompt, "response": response})
    return out


def write(directory: Path, rows: list[dict[str, list[int]]]) -> stoker.Stream:
    columns = {"input_ids": "ndarray:uint16", "labels": "ndarray:int32"}
    with stoker.MDSWriter(columns=columns, out=directory) as out:
        for row in rows:
            ids = [*row["prompt"], *row["response"]]
            labels = [-100] * len(row["prompt"]) + row["response"]
            out.write({"input_ids": np.array(ids, np.uint16), "labels": np.array(labels, np.int32)})
    return stoker.Stream(local=directory)


def turns(row: dict[str, list[int]]) -> dict[str, Any]:
    return {"turns": [{"input_ids": row["prompt"], "labels": row["response"]}]}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("keep", [None, 0, 2])
@pytest.mark.parametrize("ratio", [1.0, 2.5, 6.0])
def test_a_loader_packs_as_bin_pack_collator_does(tmp_path: Path, ratio: float, keep: int | None, side: str) -> None:
    seq_len, num_rows = 64, 4
    rows = samples(300, 24)
    collator = packing_collator(seq_len, num_rows, pad=PAD, eos=EOS, side=side, keep=keep)
    raw = int(num_rows * ratio)
    fields = ["input_ids", "labels", "attention_mask", "sequence_id"]
    with stoker.DataLoader(
        write(tmp_path / "a", rows),
        layout="pack",
        packing="foundry",
        packing_ratio=ratio,
        max_leftover_bins_to_keep=keep,
        seq_len=seq_len,
        batch_size=num_rows,
        shuffle=False,
        fields=fields,
        pad_id=PAD,
        padding_side=side,
        epoch_size=10_000,
    ) as loader:
        for step, batch in zip(range(len(rows) // raw), loader, strict=False):
            want = collator([turns(row) for row in rows[step * raw : (step + 1) * raw]])
            for field in fields:
                torch.testing.assert_close(batch[field], want[field], rtol=0, atol=0, msg=f"{field} of batch {step}")


@pytest.mark.parametrize("targets", [("none", "all"), ("all", "last"), ("length>=3", "all")])
def test_what_is_prepared_for_llm_foundry_gives_its_batches(tmp_path: Path, targets: tuple[str, str]) -> None:
    """`stoker prepare --foundry-compatible`, read by MosaicML Streaming and put together by LLM Foundry's collator,
    beside what a loader makes of the same sources prepared for stoker."""
    import streaming

    tokenizer = make_tokenizer(PAD, EOS, 50_000)
    tokenizer.save_pretrained(str(tmp_path / "tokenizer"))
    rng = np.random.default_rng(1)
    lines = []
    for _ in range(40):
        turns = [
            {name: rng.integers(3, 50_000, rng.integers(1, 6)).tolist() for name in ("input_ids", "labels")}
            for _ in range(rng.integers(1, 4))
        ]
        lines.append(json.dumps({"turns": turns}) + "\n")
    (tmp_path / "raw.jsonl").write_text("".join(lines))
    rules = {"target_prompts": targets[0], "target_responses": targets[1], "processes": 1}
    for name, compatible in (("theirs", True), ("ours", False)):
        stoker.prepare(
            tmp_path / "raw.jsonl", tmp_path / name, tmp_path / "tokenizer", foundry_compatible=compatible, **rules
        )
    collator = import_alone("llmfoundry.data.finetuning.collator").Seq2SeqFinetuningCollator(
        tokenizer, 24, decoder_only_format=True, target_prompts=targets[0], target_responses=targets[1]
    )
    dataset = streaming.StreamingDataset(local=str(tmp_path / "theirs"), shuffle=False, batch_size=1)
    want = collator([dataset[i] for i in range(len(dataset))])
    with stoker.DataLoader(
        stoker.Stream(local=tmp_path / "ours"),
        layout="pad",
        seq_len=24,
        batch_size=len(dataset),
        shuffle=False,
        pad_id=PAD,
    ) as loader:
        batch = next(iter(loader))
    for field in ("input_ids", "labels"):
        torch.testing.assert_close(batch[field], want[field], rtol=0, atol=0)
