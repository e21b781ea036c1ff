"""LLM Foundry's finetuning collator and packer, imported alone: their package pulls in all of Composer."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


def import_alone(name: str) -> ModuleType:
    """A module of llmfoundry, without running the `__init__` of its packages. Of Composer it may use what it imports by
    name only."""
    root = Path(str(importlib.metadata.distribution("llm-foundry").locate_file("llmfoundry")))
    data_prep = ("llmfoundry.command_utils", "llmfoundry.command_utils.data_prep")
    for package in ("llmfoundry", "llmfoundry.utils", "llmfoundry.data", "llmfoundry.data.finetuning", *data_prep):
        if package not in sys.modules:
            module = ModuleType(package)
            module.__path__ = [str(root.joinpath(*package.split(".")[1:]))]
            sys.modules[package] = module
    for stand_in, attribute in (("composer", None), ("composer.utils", "dist")):
        if stand_in not in sys.modules:
            module = ModuleType(stand_in)
            if attribute is not None:
                setattr(module, attribute, SimpleNamespace())
            sys.modules[stand_in] = module
    return importlib.import_module(name)


def make_tokenizer(pad: int, eos: int, vocab_size: int = 60_000) -> Any:
    """A tokenizer that knows which tokens pad and end; the collator asks it for nothing else but padding."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocab = {str(i): i for i in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="0"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=str(pad), eos_token=str(eos))


def packing_collator(
    seq_len: int, num_rows: int, *, pad: int = 1, eos: int = 2, side: str = "right", keep: int | None = None
) -> Any:
    """`BinPackCollator` around `Seq2SeqFinetuningCollator`, as build_finetuning_dataloader makes them."""
    packing = import_alone("llmfoundry.data.packing")
    collator = import_alone("llmfoundry.data.finetuning.collator")
    tokenizer = make_tokenizer(pad, eos)
    tokenizer.padding_side = side
    base = collator.Seq2SeqFinetuningCollator(tokenizer, seq_len, decoder_only_format=True)
    return packing.BinPackCollator(base, num_rows, seq_len, pad, side, max_leftover_bins_to_keep=keep)
