"""stoker.foundry's collators, packing and examples beside LLM Foundry's own, value for value."""

from __future__ import annotations

import copy
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foundry import build_dataloader, import_alone, import_tasks

import stoker.foundry as foundry
from foundry_tokenizers import make_tokenizer
from stoker.foundry import packing, targets
from stoker.foundry.python_loader import get_finetuning_collator, get_text_collator

PAD, EOS, BOS = 1, 2, 3

theirs = import_alone("llmfoundry.data.finetuning.collator")


def conversation(rng: np.random.Generator, longest: int = 12) -> dict[str, Any]:
    def ids() -> list[int]:
        return rng.integers(0, 200, rng.integers(1, longest)).tolist()

    return {"turns": [{"input_ids": ids(), "labels": ids()} for _ in range(rng.integers(1, 5))]}


def assert_same(ours: Any, reference: Any) -> None:
    """Keys in order, values, types, shapes and dtypes; ints may stand for tensors of no dimension."""
    assert list(ours) == list(reference) and type(ours).__name__ == type(reference).__name__
    for key, value in reference.items():
        if isinstance(value, list):
            assert ours[key] == [int(i) for i in value], key
        else:
            assert ours[key].dtype == value.dtype and ours[key].is_contiguous() == value.is_contiguous(), key
            torch.testing.assert_close(ours[key], value, rtol=0, atol=0, msg=key)


def outcome(make: Any, *arguments: Any) -> Any:
    """What is made, or the error; and the warnings."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            made = make(*arguments)
        except (ValueError, KeyError, IndexError) as error:
            made = (type(error), str(error))
    return made, [str(warning.message) for warning in told]


@pytest.mark.parametrize("seed", range(60))
def test_batches_for_finetuning_are_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokenizer = make_tokenizer(PAD, EOS if seed % 5 else None, side=("right", "left")[seed % 2])
    decoder_only = bool(seed % 4)
    options = {
        "tokenizer": tokenizer,
        "max_seq_len": int(rng.choice([16, 30, 64])),
        "decoder_only_format": decoder_only,
        "allow_pad_trimming": bool(rng.integers(2)),
        "pad_to_longest": bool(rng.integers(2)),
        "batch_metadata": {"source": 3} if rng.integers(2) else None,
    }
    if decoder_only:
        options["target_prompts"] = str(rng.choice(["none", "all", "length>=6", "LENGTH>=3"]))
        options["target_responses"] = str(rng.choice(["last", "all"]))
    elif seed % 5 == 0:
        return  # without an end there is nothing to cut with
    collators = [
        collator(**options) for collator in (foundry.Seq2SeqFinetuningCollator, theirs.Seq2SeqFinetuningCollator)
    ]
    for _ in range(4):
        examples = [conversation(rng) for _ in range(rng.integers(1, 6))]
        (ours, our_words), (reference, their_words) = (outcome(c, copy.deepcopy(examples)) for c in collators)
        assert our_words == [w for w in their_words if "fast tokenizer" not in w]
        if isinstance(reference, tuple):
            assert ours == reference
        else:
            assert_same(ours, reference)


@pytest.mark.parametrize("seed", range(20))
def test_examples_are_valid_where_they_are_in_llm_foundry(seed: int) -> None:
    tasks = import_tasks()
    rng = np.random.default_rng(seed)
    for _ in range(20):
        example = conversation(rng)
        if rng.integers(4) == 0:
            example["turns"][-1]["labels" if rng.integers(2) else "input_ids"] = []
        settings = (
            int(rng.integers(1, 40)),
            str(rng.choice(["none", "all", "length>=6"])),
            "all",
            bool(rng.integers(2)),
        )
        expected = tasks.is_valid_ift_example(*settings, copy.deepcopy(example))
        assert targets.is_valid_ift_example(*settings, example) is expected


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("keep", [None, 0, 1, 3])
@pytest.mark.parametrize("has_labels", [True, False])
def test_packed_batches_are_the_same_with_what_is_left_over(side: Any, keep: int | None, has_labels: bool) -> None:
    rng = np.random.default_rng(4)
    tokenizer = make_tokenizer(PAD, EOS, side=side)
    reference = import_alone("llmfoundry.data.packing")
    for _ in range(15):
        width, rows = int(rng.integers(8, 64)), int(rng.integers(1, 6))
        packers = [
            module.BinPackCollator(lambda x: x, rows, width, PAD, side, max_leftover_bins_to_keep=keep)
            for module in (packing, reference)
        ]
        base = foundry.Seq2SeqFinetuningCollator(tokenizer, width, True, target_prompts="all", target_responses="all")
        for _ in range(8):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                batch = dict(base([conversation(rng, 6) for _ in range(rng.integers(1, 25))]))
            if not has_labels:
                del batch["labels"]
            ours, expected = (packer.pack({k: v.clone() for k, v in batch.items()}) for packer in packers)
            assert_same(ours, expected)
            assert (packers[0].waste, packers[0].efficiency) == (packers[1].waste, packers[1].efficiency)
            left_over, left_over_there = (packer._leftover_bins for packer in packers)
            assert [size for size, _ in left_over] == [size for size, _ in left_over_there]
            for (_, one), (_, other) in zip(left_over, left_over_there, strict=True):
                assert_same(one, other)


# ---------------------------------------------------------------- the ratio
class _Spec:
    def __init__(self, batch: Any) -> None:
        self.dataloader = [batch]


@pytest.mark.parametrize(("longest", "width"), [(20, 256), (60, 128), (90, 1024), (4, 100)])
def test_auto_finds_the_same_ratio_by_the_same_measures(
    longest: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stoker.foundry import builders

    rng = np.random.default_rng(longest)
    base = foundry.Seq2SeqFinetuningCollator(make_tokenizer(PAD, EOS), width, True)
    batch = base([{"turns": conversation(rng, longest)["turns"][:1]} for _ in range(1500)])
    drawn: list[float] = []

    def build(*_: Any) -> _Spec:
        drawn.append(random.random() + float(np.random.random()) + float(torch.rand(())))
        return _Spec({**batch, "total_tokens": [], "loss_generating_tokens": []})

    reference = import_alone("llmfoundry.data.packing")
    monkeypatch.setattr(builders, "build_dataloader", build)
    monkeypatch.setattr(import_alone("llmfoundry.data.dataloader"), "build_dataloader", build)
    cfg = {"name": "finetuning", "dataset": {"max_seq_len": width, "decoder_only_format": True}}
    measures = [list(m.profile_packing(copy.deepcopy(cfg), None, 1, 9.5, 20, 4)) for m in (packing, reference)]
    assert measures[0] == measures[1]
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert packing.auto_packing_ratio(cfg, None, 4) == reference.auto_packing_ratio(copy.deepcopy(cfg), None, 4)
    if width > 100:
        assert drawn[-1] == drawn[-2]
        assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- whole collators
@pytest.mark.parametrize("dataset", [{}, {"eos_token_id": EOS}, {"bos_token_id": BOS}, {"mlm_probability": 0.3}])
@pytest.mark.parametrize("pad", [PAD, EOS])
def test_text_batches_are_the_same(dataset: dict[str, Any], pad: int) -> None:
    utils = import_alone("llmfoundry.data.utils")
    tokenizer = make_tokenizer(pad, EOS, bos=BOS)
    if "mlm_probability" in dataset:
        tokenizer.add_special_tokens({"mask_token": "199"})
    rng = np.random.default_rng(0)
    cfg = {"dataset": {"max_seq_len": 16, "local": "/nowhere", **dataset}}
    ours, _ = get_text_collator(cfg, tokenizer, 4)
    reference, _ = utils.get_text_collator(copy.deepcopy(cfg), tokenizer, 4)
    for _ in range(10):
        is_even = rng.integers(2)
        rows = [torch.from_numpy(rng.integers(0, 6, 16 if is_even else rng.integers(3, 17))) for _ in range(4)]
        batches = []
        for collator in (ours, reference):
            torch.manual_seed(3)
            batches.append(collator([row.clone() for row in rows]))
        assert_same(*batches)


@pytest.mark.parametrize("ratio", [None, 1.0, 3, 2.5])
def test_finetuning_batches_are_the_same(ratio: float | None) -> None:
    tokenizer = make_tokenizer(PAD, EOS)
    rng = np.random.default_rng(1)
    dataset = {"max_seq_len": 64, "decoder_only_format": True, "local": "/nowhere", "packing_ratio": ratio}
    utils = import_alone("llmfoundry.data.utils")
    ours, num_samples = get_finetuning_collator({"dataset": dataset}, tokenizer, 4)
    reference, expected = utils.get_finetuning_collator({"dataset": copy.deepcopy(dataset)}, tokenizer, 4)
    assert num_samples == expected
    for _ in range(10):
        examples = [conversation(rng, 7) for _ in range(num_samples)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_same(ours(copy.deepcopy(examples)), reference(copy.deepcopy(examples)))


# ---------------------------------------------------------------- examples
USER, ASSISTANT = {"role": "user", "content": "10 11"}, {"role": "assistant", "content": "12"}
EXAMPLES: list[Any] = [
    {"prompt": "10 11", "response": "12 13"},
    {"prompt": "10", "completion": ""},
    {"messages": [USER, ASSISTANT]},
    {"messages": [{"role": "system", "content": "7"}, USER, ASSISTANT, {"role": "tool", "content": "8"}, ASSISTANT]},
    {"messages": [USER, ASSISTANT, USER, {"role": "assistant", "content": "100 50"}]},
    {"prompt": 1, "response": "x"},
    {"prompt": "x", "response": None},
    {"prompt": "x", "answer": "x"},
    {"prompt": "x", "response": "x", "more": 1},
    [1],
    {"messages": "x"},
    {"messages": [ASSISTANT]},
    {"messages": [ASSISTANT, USER]},
    {"messages": [USER, USER, ASSISTANT]},
    {"messages": [{"role": "user"}, ASSISTANT]},
    {"messages": [USER, {"content": "x"}]},
    {"messages": [5, ASSISTANT]},
    {"messages": [USER, 5]},
    {"messages": [{**USER, "n": 1}, ASSISTANT]},
    {"messages": [{**USER, "role": "bot"}, ASSISTANT]},
    {"messages": [{**USER, "content": 5}, ASSISTANT]},
    {"messages": [{**USER, "content": ["x"]}, ASSISTANT]},
]


@pytest.mark.parametrize("example", EXAMPLES, ids=[str(i) for i in range(len(EXAMPLES))])
@pytest.mark.parametrize(
    "template", [None, "{% for m in messages %}{{ ' ' + m['content'] }}{% endfor %}", "{{ messages[9].x }}"]
)
def test_examples_are_tokenized_or_refused_alike(example: Any, template: str | None) -> None:
    results = []
    for tokenize in (foundry.tokenize_formatted_example, import_tasks().tokenize_formatted_example):
        tokenizer = make_tokenizer(PAD, EOS, bos=BOS)
        tokenizer.chat_template = template
        try:
            turns = tokenize(copy.deepcopy(example), tokenizer)["turns"]
            results.append([{key: turn[key] for key in ("input_ids", "labels")} for turn in turns])
        except Exception as error:  # noqa: BLE001  # the two are compared
            results.append(type(error).__name__)
    assert results[0] == results[1]


# ---------------------------------------------------------------- whole loaders
def write(folder: Path, columns: dict[str, str], samples: list[dict[str, Any]]) -> None:
    import streaming

    with streaming.MDSWriter(out=str(folder), columns=columns, size_limit=1 << 12) as out:
        for sample in samples:
            out.write(sample)


def texts(rng: np.random.Generator) -> str:
    return " ".join(map(str, rng.integers(4, 150, rng.integers(1, 40))))


def messages(rng: np.random.Generator) -> list[dict[str, str]]:
    roles = ["user", "assistant"] * int(rng.integers(1, 3))
    return [{"role": role, "content": texts(rng)} for role in roles]


# Columns, how a sample is made, and what `dataset` has besides.
DATA: dict[str, tuple[dict[str, str], Any, dict[str, Any]]] = {
    "tokens": ({"tokens": "ndarray:int32"}, lambda r: {"tokens": r.integers(0, 150, 24).astype(np.int32)}, {}),
    "tokens of many lengths, eos": (
        {"tokens": "ndarray"},
        lambda r: {"tokens": r.integers(0, 9, r.integers(1, 40)).astype(np.uint16)},
        {"eos_token_id": EOS},
    ),
    "tokens as bytes, bos": (
        {"tokens": "bytes"},
        lambda r: {"tokens": r.integers(0, 9, 30).astype(np.uint32).tobytes()},
        {"bos_token_id": BOS, "token_encoding_type": "uint32"},
    ),
    "text": ({"text": "str"}, lambda r: {"text": texts(r)}, {"eos_token_id": EOS}),
    "masked": (
        {"tokens": "ndarray:int32"},
        lambda r: {"tokens": r.integers(4, 150, r.integers(4, 30)).astype(np.int32)},
        {"mlm_probability": 0.2},
    ),
    "turns": ({"turns": "json"}, conversation, {"decoder_only_format": True}),
    "turns, all targets": (
        {"turns": "json"},
        conversation,
        {"decoder_only_format": True, "target_prompts": "length>=4", "target_responses": "all"},
    ),
    "encoder-decoder": ({"turns": "json"}, conversation, {"decoder_only_format": False}),
    "trimmed": ({"turns": "json"}, conversation, {"decoder_only_format": True, "allow_pad_trimming": True}),
    "input ids": (
        {"input_ids": "bytes", "labels": "bytes"},
        lambda r: {
            "input_ids": r.integers(4, 150, r.integers(1, 14)).astype(np.int64).tobytes(),
            "labels": r.integers(4, 150, r.integers(1, 14)).astype(np.int64).tobytes(),
        },
        {"decoder_only_format": True},
    ),
    "input ids as arrays": (
        {"input_ids": "ndarray:int32", "labels": "ndarray"},
        lambda r: {name: r.integers(4, 150, r.integers(1, 14)).astype(np.int32) for name in ("input_ids", "labels")},
        {"decoder_only_format": True},
    ),
    "prompts": (
        {"prompt": "str", "response": "str"},
        lambda r: {"prompt": texts(r)[:30], "response": texts(r)},
        {"decoder_only_format": True},
    ),
    "messages": (
        {"messages": "json"},
        lambda r: {"messages": messages(r)},
        {"decoder_only_format": True, "max_seq_len": 256},
    ),
    "packed": (
        {"turns": "json"},
        conversation,
        {"decoder_only_format": True, "packing_ratio": 2.5, "max_leftover_bins_to_keep": 1},
    ),
    "packed, auto": (
        {"turns": "json"},
        conversation,
        {"decoder_only_format": True, "packing_ratio": "auto", "max_seq_len": 320},
    ),
}


@pytest.mark.parametrize(("num_workers", "shuffle"), [(0, False), (2, True)])
@pytest.mark.parametrize("by", ["core", "python"])
@pytest.mark.parametrize("data", DATA)
def test_loaders_are_the_same(
    data: str, by: str, num_workers: int, shuffle: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs of two streams. By the data sets and collators in Python of all that the core does, too: these are
    what it is compared with elsewhere."""
    from stoker.foundry import builders
    from stoker.foundry.python_loader import open_python_loader

    monkeypatch.setenv("STOKER_CACHE", str(tmp_path / "cache"))
    if by == "python":
        monkeypatch.setattr(builders, "open_loader", open_python_loader)
    columns, make, more = DATA[data]
    rng = np.random.default_rng(2)
    for name, number in (("a", 60), ("b", 41)):
        write(tmp_path / name, columns, [make(rng) for _ in range(number)])
    streams = {"a": {"local": str(tmp_path / "a"), "repeat": 1.5}, "b": {"local": str(tmp_path / "b")}}
    longest = 96 if "decoder_only_format" in more else 24
    dataset = {"max_seq_len": longest, "shuffle": shuffle, "streams": streams, **more}
    cfg = {
        "name": "finetuning" if "decoder_only_format" in dataset else "text",
        "num_workers": num_workers,
        "drop_last": bool(num_workers),
        "dataset": dataset,
        "pin_memory": False,
    }
    for_llm_foundry = cfg if num_workers else {**cfg, "prefetch_factor": None, "persistent_workers": False}
    batches = []
    for build, given in ((build_dataloader, for_llm_foundry), (foundry.build_dataloader, cfg)):
        tokenizer = make_tokenizer(PAD, EOS, bos=BOS)
        tokenizer.add_special_tokens({"mask_token": "199"})
        torch.manual_seed(5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loader = build(copy.deepcopy(given), tokenizer, 4).dataloader
            batches.append([batch for _ in range(2) for batch in loader])
    assert len(batches[0]) == len(batches[1]) > 1
    for reference, ours in zip(*batches, strict=True):
        assert_same(ours, reference)
