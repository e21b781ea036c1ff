"""Finetuning data of Hugging Face: tokenized ahead by the package datasets, and dealt out by torch's sampler, as LLM
Foundry does it. The fast way is to prepare them once, by `stoker prepare`."""

from __future__ import annotations

import functools
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stoker.distributed import find_ranks
from stoker.files import write_atomically
from stoker.foundry.config import FinetuningConfig
from stoker.foundry.errors import (
    FinetuningFileNotFoundError,
    InvalidDatasetError,
    InvalidFileExtensionError,
    InvalidPromptResponseKeysError,
    MisconfiguredHfDatasetError,
    MissingHuggingFaceURLSplitError,
    NotEnoughDatasetSamplesError,
)
from stoker.foundry.plan import LoaderPlan
from stoker.foundry.targets import is_valid_ift_example
from stoker.foundry.tokenizing import tokenize_formatted_example
from stoker.locks import lock_byte
from stoker.options import default_cache_dir
from stoker.preparation.presets import find_preset
from stoker.stores import is_url, open_store

logger = logging.getLogger("stoker")

SUPPORTED_EXTENSIONS = [".csv", ".json", ".jsonl", ".parquet"]
_BESIDE = (".lock", ".metadata")  # what the hub's client puts beside files
_SPARED_CPUS = 8  # of a machine, that do not tokenize


def open_huggingface(plan: LoaderPlan, config: FinetuningConfig, tokenizer: Any) -> tuple[Any, Any]:
    """The tokenized examples of a data set, and the sampler that deals them out.

    Args:
        plan: Of the loader.
        config: With `hf_name` and `split`.
        tokenizer: Of transformers.

    Raises:
        ModuleNotFoundError: The package datasets is not installed.
        MissingHuggingFaceURLSplitError: There is no split.
        FinetuningFileNotFoundError: A URL has no file of a known kind.
        InvalidFileExtensionError: With safe_load, there are files of other kinds.
        MisconfiguredHfDatasetError: The data set can't be loaded.
        InvalidDatasetError: No example can be trained on.
        NotEnoughDatasetSamplesError: With drop_last, there are fewer examples than a global batch has.
        ValueError: There is no such preprocessing function.
        BadExampleError: An example breaks a rule of its kind.
    """
    from torch.utils.data import DistributedSampler

    if config.split is None:
        raise MissingHuggingFaceURLSplitError
    name, split = str(config.hf_name), config.split
    preprocess = find_preprocessing(config.preprocessing_fn, name)
    if is_url(name):
        name, split = _download(name, split), split.replace("-", "_")
    os.makedirs(default_cache_dir(), exist_ok=True)
    with lock_byte(os.path.join(default_cache_dir(), "huggingface.lock"), 0):  # then others find it in datasets' cache
        examples = _tokenized(config, name, split, preprocess, tokenizer)
    ranks = find_ranks(None, None, replication=config.replication)
    smallest = ranks.world_size * plan.samples_per_batch
    if plan.options.drop_last and len(examples) < smallest:
        raise NotEnoughDatasetSamplesError(
            dataset_name=str(config.hf_name),
            split=config.split,
            dataloader_batch_size=plan.samples_per_batch,
            world_size=ranks.world_size,
            full_dataset_size=len(examples),
            minimum_dataset_size=smallest,
        )
    sampler = DistributedSampler(
        examples,
        num_replicas=ranks.world_size,
        rank=ranks.rank,
        shuffle=config.shuffle,
        seed=config.shuffle_seed,
        drop_last=plan.options.drop_last,
    )
    return examples, sampler


def find_preprocessing(given: Any, dataset_name: str) -> Callable[[Mapping[str, Any]], Any] | None:
    """What makes an example of a row; None: rows are examples.

    Args:
        given: `preprocessing_fn`: a name as `stoker.prepare` takes for a preset, such as "MODULE:FUNCTION"; the columns
            `{"prompt": NAME, "response": NAME}`; or None: that of the data set, if there is one.
        dataset_name: Of the data set.

    Raises:
        ValueError: There is no such function.
    """
    if isinstance(given, Mapping):
        return functools.partial(_take_columns, dict(given))
    name = dataset_name if given is None else given
    try:
        return find_preset(name)
    except ValueError as error:
        if given is None:
            return None
        raise ValueError(f"Failed to import preprocessing function from string = {given}.") from error


def num_processes() -> int:
    """Processes that tokenize: those of the machine but 8, at most $MAX_NUM_PROC."""
    found = max(1, (os.cpu_count() or 1) - _SPARED_CPUS)
    return min(found, int(os.environ.get("MAX_NUM_PROC", found)))


def _take_columns(mapping: dict[str, str], row: Mapping[str, Any]) -> dict[str, Any]:
    if set(mapping) != {"prompt", "response"}:
        raise InvalidPromptResponseKeysError(mapping, dict(row))
    return {key: row[column] for key, column in mapping.items()}


def _tokenized(
    config: FinetuningConfig, name: str, split: str, preprocess: Callable[[Any], Any] | None, tokenizer: Any
) -> Any:
    try:
        import datasets
    except ModuleNotFoundError:
        raise ModuleNotFoundError('hf_name needs the package datasets: pip install "stoker[datasets]".') from None

    options = dict(config.hf_kwargs or {})
    if config.safe_load:
        name = _load_safely(name, options)
    try:
        rows = datasets.load_dataset(name, split=split, **options)
    except datasets.exceptions.DatasetGenerationError as error:
        raise MisconfiguredHfDatasetError(str(config.hf_name), split) from error

    def tokenize(row: Mapping[str, Any]) -> dict[str, Any]:
        turns = tokenize_formatted_example(row if preprocess is None else preprocess(row), tokenizer)["turns"]
        return {"turns": [{key: turn[key] for key in ("input_ids", "labels")} for turn in turns]}

    workers = num_processes() if len(rows) >= num_processes() else 1
    tokenized = rows.map(
        tokenize,
        remove_columns=rows.column_names,
        num_proc=None if workers == 1 else workers,
        desc="Tokenizing dataset",
    )
    valid = tokenized.filter(
        functools.partial(
            is_valid_ift_example,
            config.max_seq_len,
            config.target_prompts,
            config.target_responses,
            config.decoder_only_format,
        ),
        num_proc=None if workers == 1 else workers,
        desc="Filtering out long prompts",
    )
    if dropped := len(tokenized) - len(valid):
        warnings.warn(
            f"Dropped {dropped} examples where the prompt was longer than {config.max_seq_len}, the prompt or response "
            "was empty, or the response was all padding tokens.",
            stacklevel=2,
        )
    if not len(valid):
        raise InvalidDatasetError(
            f"No valid examples found after filtering out prompts longer than {config.max_seq_len}, examples with "
            "empty prompts or responses, and examples with responses that are all padding tokens."
        )
    return valid


def _download(url: str, split: str) -> str:
    """A directory with the file of a split, as datasets looks for it."""
    named = split.replace("-", "_")
    directory = os.path.join(tempfile.mkdtemp(), "data_not" if named == "data" else named)
    store = open_store(url)
    for extension in SUPPORTED_EXTENSIONS:
        try:
            content = bytes(store.read(f"{split}{extension}").data)
        except FileNotFoundError:
            continue
        os.makedirs(os.path.join(directory, "data"))
        write_atomically(os.path.join(directory, "data", f"{named}-00000-of-00001{extension}"), content)
        return directory
    searched = [f"{url.rstrip('/')}/{split}{extension}" for extension in SUPPORTED_EXTENSIONS]
    raise FinetuningFileNotFoundError(searched, SUPPORTED_EXTENSIONS)


def _load_safely(name: str, options: Mapping[str, Any]) -> str:
    """A directory with files of the known kinds alone."""
    if not os.path.isdir(name):
        from huggingface_hub import snapshot_download

        name = snapshot_download(
            name,
            repo_type="dataset",
            allow_patterns=[f"*{extension}" for extension in SUPPORTED_EXTENSIONS],
            token=options.get("token"),
            revision=options.get("revision"),
        )
        if not os.path.isdir(name) or not os.listdir(name):
            raise InvalidFileExtensionError(name, SUPPORTED_EXTENSIONS)
    files = [Path(file) for _, _, files in os.walk(name) for file in files]
    if any(file.suffix not in (*SUPPORTED_EXTENSIONS, *_BESIDE) and file.name != ".gitignore" for file in files):
        raise InvalidFileExtensionError(os.path.abspath(name), SUPPORTED_EXTENSIONS)
    return os.path.abspath(name)
