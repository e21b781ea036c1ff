"""LLM Foundry's data loading, on stoker's core: the same YAML, the same batches, the same order of samples.

docs/migrating.md tells what to change. The names are LLM Foundry's; what needs torch is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stoker.foundry.builders import build_dataloader, build_finetuning_dataloader, build_text_dataloader
    from stoker.foundry.collators import ConcatenatedSequenceCollatorWrapper, Seq2SeqFinetuningCollator
    from stoker.foundry.config import SUPPORTED_MDS_ENCODING_TYPES, stream_remote_local_validate
    from stoker.foundry.data_spec import DataSpec, get_data_spec
    from stoker.foundry.datasets import StreamingFinetuningDataset, StreamingTextDataset
    from stoker.foundry.migration import migrate
    from stoker.foundry.packing import BinPackCollator, auto_packing_ratio, profile_packing
    from stoker.foundry.python_loader import get_finetuning_collator, get_text_collator
    from stoker.foundry.targets import (
        is_valid_ift_example,
        stitch_turns_decoder_only,
        stitch_turns_encoder_decoder,
        validate_target_settings,
    )
    from stoker.foundry.token_counts import LossGeneratingTokensCollatorWrapper, get_tokens_per_batch_func
    from stoker.foundry.tokenizing import tokenize_formatted_example
    from stoker.foundry.yaml import from_yaml

__all__ = [
    "SUPPORTED_MDS_ENCODING_TYPES",
    "BinPackCollator",
    "ConcatenatedSequenceCollatorWrapper",
    "DataSpec",
    "LossGeneratingTokensCollatorWrapper",
    "Seq2SeqFinetuningCollator",
    "StreamingFinetuningDataset",
    "StreamingTextDataset",
    "auto_packing_ratio",
    "build_dataloader",
    "build_finetuning_dataloader",
    "build_text_dataloader",
    "from_yaml",
    "get_data_spec",
    "get_finetuning_collator",
    "get_text_collator",
    "get_tokens_per_batch_func",
    "is_valid_ift_example",
    "migrate",
    "profile_packing",
    "stitch_turns_decoder_only",
    "stitch_turns_encoder_decoder",
    "stream_remote_local_validate",
    "tokenize_formatted_example",
    "validate_target_settings",
]

_MODULES = {
    "builders": ("build_dataloader", "build_finetuning_dataloader", "build_text_dataloader"),
    "collators": ("ConcatenatedSequenceCollatorWrapper", "Seq2SeqFinetuningCollator"),
    "config": ("SUPPORTED_MDS_ENCODING_TYPES", "stream_remote_local_validate"),
    "data_spec": ("DataSpec", "get_data_spec"),
    "datasets": ("StreamingFinetuningDataset", "StreamingTextDataset"),
    "migration": ("migrate",),
    "packing": ("BinPackCollator", "auto_packing_ratio", "profile_packing"),
    "python_loader": ("get_finetuning_collator", "get_text_collator"),
    "targets": (
        "is_valid_ift_example",
        "stitch_turns_decoder_only",
        "stitch_turns_encoder_decoder",
        "validate_target_settings",
    ),
    "token_counts": ("LossGeneratingTokensCollatorWrapper", "get_tokens_per_batch_func"),
    "tokenizing": ("tokenize_formatted_example",),
    "yaml": ("from_yaml",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """What is exported, when it is first asked for."""
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"stoker.foundry.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'stoker.foundry' has no attribute {name!r}")
