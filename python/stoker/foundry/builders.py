"""LLM Foundry's functions that make loaders of configurations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from stoker.foundry.config import (
    OWN_KEYS,
    DatasetConfig,
    FinetuningConfig,
    as_mapping,
    check_device_batch_size,
    nearest_key,
    plain,
    read_finetuning,
    read_text,
)
from stoker.foundry.data_spec import get_data_spec
from stoker.foundry.loader import open_loader
from stoker.foundry.packing import auto_packing_ratio
from stoker.foundry.plan import LoaderOptions, LoaderPlan, make_plan
from stoker.foundry.python_loader import open_python_loader

logger = logging.getLogger("stoker")


def build_dataloader(cfg: Mapping[str, Any], tokenizer: Any, device_batch_size: float, **ranks: int | None) -> Any:
    """Makes the loader of a configuration.

    Args:
        cfg: Of the loader: `name`, "text" or "finetuning", and arguments of the builder of that name. Any mapping, such
            as OmegaConf's; it is not changed.
        tokenizer: Of transformers.
        device_batch_size: Rows of a batch of this rank.
        ranks: `rank` and `world_size`; see `build_text_dataloader`.

    Returns:
        Composer's DataSpec where Composer is installed, else a `DataSpec`: `.dataloader`, which gives batches, and
        `.get_num_tokens_in_batch(batch, token_type)`.

    Raises:
        KeyError: There is no `name`.
        ValueError, TypeError, NotImplementedError: Something is wrong, see the builders.
    """
    arguments = plain(cfg)
    name = arguments.pop("name")
    return builder_of(name)(**arguments, tokenizer=tokenizer, device_batch_size=device_batch_size, **ranks)


def builder_of(name: str) -> Callable[..., Any]:
    """The builder of a name.

    Raises:
        ValueError: There is none.
    """
    builders: dict[str, Callable[..., Any]] = {"text": build_text_dataloader, "finetuning": build_finetuning_dataloader}
    if name not in builders:
        meant = nearest_key(str(name), builders)
        raise ValueError(
            f"name is {name!r}: there are loaders named {', '.join(map(repr, builders))}."
            f"{f' Did you mean {meant!r}?' if meant else ''}"
        )
    return builders[name]


def build_text_dataloader(
    tokenizer: Any,
    device_batch_size: float,
    dataset: Mapping[str, Any],
    drop_last: bool,
    num_workers: int,
    pin_memory: bool = True,
    prefetch_factor: int | None = 2,
    persistent_workers: bool = True,
    timeout: float = 0,
    *,
    rank: int | None = None,
    world_size: int | None = None,
    **own: Any,
) -> Any:
    """Makes a loader of tokens, or of text that is tokenized.

    Args:
        tokenizer: Of transformers.
        device_batch_size: Rows of a batch of this rank.
        dataset: See `TextConfig`; it is not changed.
        drop_last, pin_memory, prefetch_factor, persistent_workers, timeout: Of torch's DataLoader.
        num_workers: The same. Packed rows are those that so many workers make.
        rank, world_size: Of this process. Default: as torch.distributed or the launcher says.
        own: `layout`, `order`, `weights_in` and `strict`, which may also be in `dataset`.

    Returns:
        See `build_dataloader`.

    Raises:
        ValueError: There is no tokenizer, or a setting breaks its rule; the message says which and what was found.
        TypeError: An argument or a key is missing, or unknown.
        NotImplementedError: Sequence parallelism is asked for.
    """
    if tokenizer is None:
        raise ValueError("Tokenizer is required for text dataloader")
    options = LoaderOptions(
        drop_last=drop_last,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=prefetch_factor,
        persistent_workers=persistent_workers,
        timeout=timeout,
    )
    config = read_text(_with_own(dataset, own, "build_text_dataloader"))
    check_tokens(config, tokenizer)
    batch_size = check_device_batch_size(device_batch_size)
    plan = make_plan("text", config, options, tokenizer, batch_size, rank=rank, world_size=world_size)
    return _open(plan, tokenizer, dataset)


def build_finetuning_dataloader(
    tokenizer: Any,
    device_batch_size: float,
    dataset: Mapping[str, Any],
    num_workers: int,
    drop_last: bool = False,
    pin_memory: bool = True,
    prefetch_factor: int | None = 2,
    persistent_workers: bool = True,
    timeout: float = 0,
    *,
    rank: int | None = None,
    world_size: int | None = None,
    **own: Any,
) -> Any:
    """Makes a loader of examples for finetuning, packed or not.

    Args:
        tokenizer: Of transformers. Without a padding it gets its end-of-sequence token for one, as in LLM Foundry.
        dataset: See `FinetuningConfig`; it is not changed.
        device_batch_size, num_workers, drop_last, pin_memory, prefetch_factor, persistent_workers, timeout, rank,
            world_size, own: See `build_text_dataloader`.

    Returns:
        See `build_dataloader`.

    Raises:
        ValueError: There is no tokenizer, or a setting breaks its rule; the message says which and what was found.
        TypeError: An argument or a key is missing, or unknown.
        NotImplementedError: Sequence parallelism is asked for, or packing for encoder-decoder models.
    """
    if tokenizer is None:
        raise ValueError("Tokenizer is required for finetuning dataloader")
    options = LoaderOptions(
        drop_last=drop_last,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=prefetch_factor,
        persistent_workers=persistent_workers,
        timeout=timeout,
    )
    given = _with_own(dataset, own, "build_finetuning_dataloader")
    config = read_finetuning(given)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    check_tokens(config, tokenizer)
    batch_size = check_device_batch_size(device_batch_size)
    ranks = {"rank": rank, "world_size": world_size}
    ratio = find_packing_ratio(config, options, given, tokenizer, batch_size, ranks)
    plan = make_plan(
        "finetuning",
        config,
        options,
        tokenizer,
        batch_size,
        packing_ratio=ratio,
        **ranks,
    )
    return _open(plan, tokenizer, dataset)


def find_packing_ratio(
    config: FinetuningConfig,
    options: LoaderOptions,
    dataset: Mapping[str, Any],
    tokenizer: Any,
    batch_size: int,
    ranks: Mapping[str, int | None],
) -> float | None:
    """The packing ratio of a configuration, which "auto" looks for in the data; None: there is no packing.

    Raises:
        ValueError: As `auto_packing_ratio`.
        NotImplementedError: Batches can't be packed.
    """
    ratio = config.packing_ratio
    if isinstance(ratio, str):
        beside = {f.name: getattr(options, f.name) for f in fields(options)}
        cfg = {"name": "finetuning", "dataset": dataset, **beside, **ranks}
        ratio = auto_packing_ratio(cfg, tokenizer, batch_size)
        logger.info("packing_ratio: auto is %s", ratio)
        if ratio != 1:
            config.check_packs()
    return None if ratio == 1 else ratio


def check_tokens(config: DatasetConfig, tokenizer: Any) -> None:
    """Checks that the end and the beginning of documents are the tokenizer's.

    Raises:
        ValueError: One is not, and the configuration does not allow it.
    """
    for name in ("eos_token_id", "bos_token_id"):
        given, found = getattr(config, name), getattr(tokenizer, name, None)
        if given is None or given == found:
            continue
        told = f"Provided {name}={given} does not match the {name} of the tokenizer={found}."
        flag = f"override_{name}_mismatch_error"
        if not getattr(config, flag):
            raise ValueError(
                f"{told} To override this error, set the {flag} flag to True in the dataset config section of the YAML."
            )
        logger.warning("%s", told)


def _with_own(dataset: Mapping[str, Any], own: Mapping[str, Any], builder: str) -> dict[str, Any]:
    """`dataset` with stoker's keys, wherever they stand.

    Raises:
        TypeError: There is another key beside `dataset`.
        ValueError: A key stands in both places.
    """
    given: dict[str, Any] = as_mapping("dataset", dataset)
    for key, value in own.items():
        if key not in OWN_KEYS:
            raise TypeError(f"{builder}() got an unexpected keyword argument {key!r}")
        if key in given:
            raise ValueError(f"{key} stands in dataset and beside it: remove one of them.")
        given[key] = value
    return given


def _open(plan: LoaderPlan, tokenizer: Any, dataset: Mapping[str, Any]) -> Any:
    if plan.why_python is None:
        return get_data_spec(open_loader(plan, tokenizer), dataset)
    logger.info("batches are made in Python, since %s.", plan.why_python)
    return get_data_spec(open_python_loader(plan, tokenizer), dataset)
