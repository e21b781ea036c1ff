"""Loaders whose batches are made in Python: torch's DataLoader, a data set and collators, as LLM Foundry has them.

For what the core does not do (see `LoaderPlan.why_python`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stoker.distributed import find_ranks
from stoker.foundry.collators import ConcatenatedSequenceCollatorWrapper, Seq2SeqFinetuningCollator
from stoker.foundry.config import DatasetConfig, FinetuningConfig, TextConfig, read_finetuning, read_text
from stoker.foundry.errors import DatasetTooSmallError
from stoker.foundry.packing import BinPackCollator, auto_packing_ratio
from stoker.foundry.plan import LoaderPlan
from stoker.foundry.token_counts import LossGeneratingTokensCollatorWrapper, get_tokens_per_batch_func
from stoker.remote import ranks_of_a_node


def get_text_collator(
    dataloader_cfg: Mapping[str, Any], tokenizer: Any, dataset_batch_size: int
) -> tuple[LossGeneratingTokensCollatorWrapper, int]:
    """The collator of a text loader.

    Args:
        dataloader_cfg: With `dataset`; it is not changed.
        tokenizer: Of transformers.
        dataset_batch_size: Rows of a batch.

    Returns:
        The collator, and how many samples it is to be given: as many.

    Raises:
        ValueError, TypeError: The configuration is wrong.
    """
    config = read_text(dataloader_cfg["dataset"])
    return LossGeneratingTokensCollatorWrapper(_text_collator(config, tokenizer), get_tokens_per_batch_func()), (
        dataset_batch_size
    )


def get_finetuning_collator(
    dataloader_cfg: Mapping[str, Any], tokenizer: Any, dataset_batch_size: int
) -> tuple[LossGeneratingTokensCollatorWrapper, int]:
    """The collator of a finetuning loader.

    Args:
        dataloader_cfg, tokenizer, dataset_batch_size: See `get_text_collator`.

    Returns:
        The collator, and how many samples it is to be given.

    Raises:
        ValueError, TypeError, NotImplementedError: The configuration is wrong.
    """
    config = read_finetuning(dataloader_cfg["dataset"])
    ratio = config.packing_ratio
    if isinstance(ratio, str):
        ratio = auto_packing_ratio(dataloader_cfg, tokenizer, dataset_batch_size)
    num_samples = int(dataset_batch_size * (ratio or 1))
    packs = ratio not in (None, 1)
    if packs:
        config.check_packs()
    collator = _finetuning_collator(config, tokenizer, dataset_batch_size, packs=packs)
    return LossGeneratingTokensCollatorWrapper(collator, get_tokens_per_batch_func()), num_samples


def open_python_loader(plan: LoaderPlan, tokenizer: Any) -> Any:
    """A torch DataLoader of the batches that a plan says.

    Args:
        plan: With LLM Foundry's layout and streams of one kind.
        tokenizer: Of transformers.

    Raises:
        ValueError: The plan has what is not made in Python.
        DatasetTooSmallError: There are fewer samples than nodes.
    """
    from torch.utils.data import DataLoader

    _check(plan)
    config = plan.config
    if isinstance(config, FinetuningConfig) and config.hf_name is not None:
        from stoker.foundry.huggingface import open_huggingface

        dataset, sampler = open_huggingface(plan, config, tokenizer)
    else:
        dataset, sampler = _open_dataset(plan, tokenizer), None
    if isinstance(config, FinetuningConfig):
        packs = plan.layout.packing == "foundry"
        collator: Any = _finetuning_collator(config, tokenizer, plan.batch_size, packs=packs)
    else:
        collator = _text_collator(config, tokenizer)
    return DataLoader(
        dataset,
        collate_fn=LossGeneratingTokensCollatorWrapper(collator, get_tokens_per_batch_func()),
        batch_size=plan.samples_per_batch,
        sampler=sampler,
        **plan.options.torch_arguments,
    )


def check_num_samples(num_samples: int, num_canonical_nodes: int | None, num_nodes: int) -> None:
    """Checks that a finetuning data set has samples for all nodes.

    Args:
        num_samples: Of all streams.
        num_canonical_nodes: As the configuration says.
        num_nodes: Machines.

    Raises:
        DatasetTooSmallError: It has not.
    """
    if num_canonical_nodes is None and num_samples < num_nodes:
        raise DatasetTooSmallError(f"{num_samples=} is less than {num_nodes}, the number of physical nodes. ")
    if num_canonical_nodes is not None and num_samples < num_canonical_nodes:
        raise DatasetTooSmallError(
            f"{num_samples=} is less than {num_canonical_nodes=}. Please check your index.json file and ensure that "
            "your dataset has been written out correctly.If this was intended, reduce num_canonical_nodes."
        )


def _check(plan: LoaderPlan) -> None:
    told = {
        "streams of both kinds": plan.kind == "mixed",
        f"layout: {plan.layout.name} with stoker's packing": not plan.layout.is_foundrys,
        "order: stoker": plan.layout.order != "streaming",
        "overflow of a stream": any(stream.overflow for stream in plan.streams),
        "rank but that of the launcher": plan.rank is not None
        and (plan.rank, plan.world_size) != find_ranks(None, None)[:2],
    }
    if found := [what for what, is_there in told.items() if is_there]:
        raise ValueError(f"batches are made in Python, since {plan.why_python}: there is no {' or '.join(found)} then.")


def _open_dataset(plan: LoaderPlan, tokenizer: Any) -> Any:
    from stoker.foundry.datasets import StreamingFinetuningDataset, StreamingTextDataset
    from stoker.streaming import Stream

    config = plan.config
    streams = [
        Stream(
            **{
                name: getattr(stream, name)
                for name in (
                    *("remote", "local", "split", "proportion", "repeat", "choose"),
                    *("download_retry", "download_timeout", "validate_hash", "keep_zip"),
                )
            }
        )
        for stream in config.stream_configs().values()
    ]
    arguments: dict[str, Any] = {
        "tokenizer": tokenizer,
        "max_seq_len": plan.seq_len,
        "token_encoding_type": config.token_encoding_type,
        "streams": streams,
        "batch_size": plan.samples_per_batch,
        **config.order_settings,
        **{
            name: getattr(config, name)
            for name in ("epoch_size", "predownload", "cache_limit", "allow_unsafe_types", "replication")
        },
    }
    if not isinstance(config, FinetuningConfig):
        return StreamingTextDataset(**arguments)
    dataset = StreamingFinetuningDataset(**arguments, packing_ratio=plan.samples_per_batch / plan.batch_size)
    num_nodes = find_ranks(None, None).world_size // ranks_of_a_node()
    check_num_samples(dataset.num_samples, config.num_canonical_nodes, num_nodes)
    return dataset


def _text_collator(config: DatasetConfig, tokenizer: Any) -> Callable[[list[Any]], Any]:
    from transformers import DataCollatorForLanguageModeling

    probability = config.mlm_probability if isinstance(config, TextConfig) else None
    collator: Any = DataCollatorForLanguageModeling(
        tokenizer=tokenizer, mlm=probability is not None, mlm_probability=probability or 0
    )
    if config.eos_token_id is None and config.bos_token_id is None:
        return collator  # type: ignore[no-any-return]  # transformers has no types
    return ConcatenatedSequenceCollatorWrapper(collator, config.eos_token_id, config.bos_token_id)


def _finetuning_collator(
    config: FinetuningConfig, tokenizer: Any, batch_size: int, *, packs: bool
) -> Callable[[list[Any]], Any]:
    collator = Seq2SeqFinetuningCollator(
        tokenizer,
        config.max_seq_len,
        config.decoder_only_format,
        target_responses=config.target_responses,
        target_prompts=config.target_prompts,
        allow_pad_trimming=config.allow_pad_trimming,
        pad_to_longest=config.pad_to_longest,
    )
    if not packs:
        return collator
    return BinPackCollator(
        collator,
        target_batch_size=batch_size,
        max_seq_len=config.max_seq_len,
        pad_token_id=tokenizer.pad_token_id,
        padding_side=tokenizer.padding_side,
        max_leftover_bins_to_keep=config.max_leftover_bins_to_keep,
    )
