"""LLM Foundry's modules of data, imported alone: their package pulls in all of Composer."""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import importlib.util
import random
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch


def import_alone(name: str) -> ModuleType:
    """A module of llmfoundry, without running the `__init__` of its packages. What it imports from Composer and others
    stands here for it."""
    root = Path(str(importlib.metadata.distribution("llm-foundry").locate_file("llmfoundry")))
    data_prep = ("llmfoundry.command_utils", "llmfoundry.command_utils.data_prep")
    for package in ("llmfoundry", "llmfoundry.utils", "llmfoundry.data", "llmfoundry.data.finetuning", *data_prep):
        if package not in sys.modules:
            module = ModuleType(package)
            module.__path__ = [str(root.joinpath(*package.split(".")[1:]))]
            sys.modules[package] = module
    for other, attributes in _STAND_INS.items():
        if other not in sys.modules and not (other.startswith("datasets") and _HAS_DATASETS):
            stand_in(other, **attributes)
    return importlib.import_module(name)


def stand_in(name: str, **attributes: Any) -> None:
    """Makes a module, also as an attribute of its package."""
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(attributes)
    sys.modules[name] = module
    package, _, own = name.rpartition(".")
    if package in sys.modules:
        setattr(sys.modules[package], own, module)


_HAS_DATASETS = importlib.util.find_spec("datasets") is not None  # of Hugging Face


class _Dist:
    """`composer.utils.dist` of a process that is alone."""

    get_global_rank = get_local_rank = staticmethod(lambda: 0)
    get_world_size = get_local_world_size = staticmethod(lambda: 1)
    is_available = is_initialized = staticmethod(lambda: False)
    all_gather_object = staticmethod(lambda value: [value])


class _Reproducibility:
    """`composer.utils.reproducibility`, on the CPU."""

    @staticmethod
    def seed_all(seed: int) -> None:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)

    @staticmethod
    def get_rng_state() -> Any:
        return random.getstate(), np.random.get_state(), torch.get_rng_state()

    @staticmethod
    def load_rng_state(state: Any) -> None:
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])


def _construct(name: str, kwargs: dict[str, Any], **_: Any) -> Any:
    """`construct_from_registry`, of what LLM Foundry registers."""
    return _registered(name)(**kwargs)


_STAND_INS: dict[str, dict[str, Any]] = {
    "composer": {"DataSpec": SimpleNamespace},
    "composer.utils": {
        "dist": _Dist,
        "reproducibility": _Reproducibility,
        **dict.fromkeys(("get_device", "get_file", "parse_uri")),
    },
    "composer.core": {},
    "composer.core.data_spec": {"DataSpec": SimpleNamespace},
    "composer.core.types": {"Batch": Any},
    "datasets": {"IterableDataset": object, "Dataset": object, "DatasetDict": object, "IterableDatasetDict": object},
    "datasets.exceptions": {"DatasetGenerationError": Exception},
    "llmfoundry.registry": dict.fromkeys(("dataset_replication_validators", "collators", "data_specs", "dataloaders")),
    "llmfoundry.tokenizers": {"get_date_string": lambda: datetime.date.today().strftime("%d %b %Y")},
    "llmfoundry.utils.registry_utils": {
        "construct_from_registry": lambda name, kwargs, **_: _registered(name)(**kwargs)
    },
    "llmfoundry.utils.config_utils": {"to_dict_container": dict},
    "llmfoundry.utils.file_utils": {"dist_mkdtemp": None},
    "llmfoundry.utils.logging_utils": {"SpecificWarningFilter": None},
}


def _registered(name: str) -> Any:
    """What LLM Foundry registers under a name."""
    utils = import_alone("llmfoundry.data.utils")
    return {
        "dataset_replication_validator": utils.validate_ds_replication,
        "text_collator": utils.get_text_collator,
        "finetuning_collator": utils.get_finetuning_collator,
        "data_spec": utils.get_data_spec,
        "text": import_alone("llmfoundry.data.text_data").build_text_dataloader,
        "finetuning": import_alone("llmfoundry.data.finetuning.dataloader").build_finetuning_dataloader,
    }[name]


def import_tasks() -> ModuleType:
    """LLM Foundry's module of examples."""
    data = import_alone("llmfoundry.data.data")
    for name in ("SUPPORTED_MDS_ENCODING_TYPES", "stream_remote_local_validate"):
        setattr(sys.modules["llmfoundry.data"], name, getattr(data, name))
    return import_alone("llmfoundry.data.finetuning.tasks")


def build_dataloader(cfg: dict[str, Any], tokenizer: Any, device_batch_size: int) -> Any:
    """LLM Foundry's function of this name. It changes `cfg`."""
    import_tasks()
    return import_alone("llmfoundry.data.dataloader").build_dataloader(cfg, tokenizer, device_batch_size)


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
