"""LLM Foundry's YAML of a training run: its loaders, batch sizes and tokenizer."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stoker.distributed import find_ranks
from stoker.foundry.config import plain

logger = logging.getLogger("stoker")

# What a YAML may have at its top, besides what stands under `variables`.
_TOP_KEYS = (
    *("accumulate_train_batch_on_tokens", "algorithms", "autoresume", "callbacks", "code_paths", "compile_config"),
    *("console_log_interval", "cuda_load_lazy", "device_eval_batch_size", "device_train_batch_size"),
    *("device_train_grad_accum", "device_train_microbatch_size", "dist_timeout", "eval_first", "eval_gauntlet"),
    *("eval_gauntlet_str", "eval_interval", "eval_loader", "eval_loaders", "eval_subset_num_batches"),
    *("expandable_segments", "flatten_metadata", "fsdp_config", "global_train_batch_size", "icl_seq_len"),
    *("icl_subset_num_batches", "icl_tasks", "icl_tasks_str", "load_ignore_keys", "load_path"),
    *("load_strict_model_weights", "load_weights_only", "log_config", "log_to_console", "loggers", "max_duration"),
    *("max_seq_len", "max_split_size_mb", "metadata", "model", "n_gpus", "only_composer_checkpoint"),
    *("only_hf_checkpoint", "optimizer", "precision", "profiler", "progress_bar", "python_log_level", "run_name"),
    *("save_filename", "save_folder", "save_ignore_keys", "save_interval", "save_latest_filename"),
    *("save_num_checkpoints_to_keep", "save_overwrite", "save_weights_only", "scheduler", "seed"),
    *("spin_dataloaders", "tokenizer", "tp_config", "train_loader", "train_subset_num_batches", "variables"),
)
_NO_LIMIT = int(1e30)  # model_max_length of a tokenizer without any


@dataclass(frozen=True)
class Run:
    """The data of a training run, as its YAML says. Loaders and tokenizer are made when they are asked for, once.

    Attributes:
        config: All of the YAML as dicts and lists, `${...}` resolved.
        device_train_batch_size: Rows of a batch of a rank. None: the YAML has no global_train_batch_size.
        device_eval_batch_size: The same of evaluation.
        rank, world_size: Of this process.
    """

    config: Mapping[str, Any]
    device_train_batch_size: int | None
    device_eval_batch_size: float
    rank: int
    world_size: int

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer; see `build_tokenizer`."""
        named = self.config.get("tokenizer")
        if named is None:
            raise ValueError("the YAML has no `tokenizer`, with `name` and `kwargs`.")
        return build_tokenizer(named["name"], named.get("kwargs") or {})

    @cached_property
    def train_loader(self) -> Any:
        """What `build_dataloader` makes of `train_loader`.

        Raises:
            ValueError: There is none, or no global_train_batch_size; or see `build_dataloader`.
        """
        if self.config.get("train_loader") is None:
            raise ValueError("the YAML has no `train_loader`.")
        if self.device_train_batch_size is None:
            raise ValueError("the YAML has no `global_train_batch_size`.")
        return self._build(self.config["train_loader"], self.device_train_batch_size)

    @cached_property
    def eval_loaders(self) -> dict[str, Any]:
        """The same of `eval_loader`, by Composer's labels: "eval", or "eval/LABEL" of each of a list.

        Raises:
            ValueError: See `build_dataloader`.
        """
        given = self.config.get("eval_loader")
        if given is None:
            return {}
        if isinstance(given, Mapping):
            return {"eval": self._build(given, self.device_eval_batch_size)}
        return {
            f"eval/{one['label']}": self._build(
                {key: value for key, value in one.items() if key != "label"}, self.device_eval_batch_size
            )
            for one in given
        }

    def _build(self, loader: Mapping[str, Any], batch_size: float) -> Any:
        from stoker.foundry.builders import build_dataloader

        return build_dataloader(loader, self.tokenizer, batch_size, rank=self.rank, world_size=self.world_size)


def from_yaml(
    path: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    world_size: int | None = None,
    rank: int | None = None,
) -> Run:
    """Reads the YAML of a training run.

    Args:
        path: Of the YAML; or what it holds.
        overrides: As on LLM Foundry's command line: "train_loader.dataset.max_seq_len=1024".
        world_size, rank: Of this process. Default: as torch.distributed or the launcher says.

    Raises:
        ModuleNotFoundError: The package omegaconf is not installed.
        FileNotFoundError: There is no such file.
        ValueError: It has a key that LLM Foundry does not know, a batch size that the ranks do not divide, or several
            evaluations without labels.
    """
    config = read_yaml(path, overrides)
    check_top_keys(config)
    evaluations = config.get("eval_loader")
    if isinstance(evaluations, list):
        check_labels(evaluations)
    elif evaluations is not None and not isinstance(evaluations, Mapping):
        raise ValueError(
            f"Got invalid type for eval_loader_config: {type(evaluations)}, eval_loader_config={evaluations!r}"
        )
    ranks = find_ranks(rank, world_size)
    train, evaluation = batch_sizes(config, ranks.world_size)
    return Run(config, train, evaluation, ranks.rank, ranks.world_size)


def read_yaml(path: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a YAML holds, as dicts and lists, `${...}` resolved.

    Args:
        path, overrides: See `from_yaml`.

    Raises:
        ModuleNotFoundError: The package omegaconf is not installed.
        FileNotFoundError: There is no such file.
        ValueError: It is no YAML, not a mapping, or has something to resolve that is not there.
    """
    try:
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            'YAML of LLM Foundry needs the package omegaconf: pip install "stoker[foundry]".'
        ) from None

    try:
        loaded = OmegaConf.create(plain(path)) if isinstance(path, Mapping) else OmegaConf.load(Path(path))
        if not OmegaConf.is_dict(loaded):
            raise ValueError(f"{path} holds {type(loaded).__name__}, not a mapping of keys.")
        merged = OmegaConf.merge(loaded, OmegaConf.from_dotlist(list(overrides)))
        config = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(f"{'the configuration' if isinstance(path, Mapping) else path}: {error}") from None
    return {str(key): value for key, value in config.items()}


def check_top_keys(config: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: A key at the top is none that LLM Foundry knows.
    """
    if unknown := sorted(set(config) - set(_TOP_KEYS)):
        raise ValueError(
            f"Unused parameters {unknown} found in cfg. Please check your yaml to ensure these parameters are "
            "necessary. Please place any variables under the `variables` key."
        )


def check_labels(evaluations: Sequence[Mapping[str, Any]]) -> None:
    """
    Raises:
        ValueError: One of several evaluations has no label.
    """
    if any(one.get("label") is None for one in evaluations):
        raise ValueError("When specifying multiple evaluation datasets, each one must include the `label` attribute.")


def batch_sizes(config: Mapping[str, Any], world_size: int) -> tuple[int | None, float]:
    """Rows of a batch of a rank: in training, None where no global batch is given; and in evaluation.

    Args:
        config: With `global_train_batch_size`, `device_train_microbatch_size` and `device_eval_batch_size`.
        world_size: Ranks.

    Raises:
        ValueError: The ranks do not divide the global batch, or a size is none.
    """
    rows = config.get("global_train_batch_size")
    if rows is not None and rows % world_size:
        raise ValueError(
            f"Global batchsize {rows} is not divisible by (world_size // data_replication_degree)={world_size} as a "
            "result, the batch size would be truncated, please adjust `global_batch_size` to be divisible by world "
            f"size, {world_size}."
        )
    train = None if rows is None else rows // world_size
    micro = config.get("device_train_microbatch_size", "auto")
    if micro != "auto" and not isinstance(micro, (int, float)):
        raise ValueError(f"Not sure how to parse device_microbatch_size={micro!r}")
    if micro != "auto" and train is not None and micro > train:
        logger.warning("device_microbatch_size > device_batch_size, will be reduced from %s -> %s.", micro, train)
        micro = train
    given = config.get("device_eval_batch_size")
    evaluation: float = given if given is not None else 1 if micro == "auto" else micro
    return train, evaluation


def build_tokenizer(name: str, kwargs: Mapping[str, Any]) -> Any:
    """A tokenizer of transformers.

    Args:
        name: Of the Hugging Face hub, or a folder.
        kwargs: Of `AutoTokenizer.from_pretrained`; `model_max_length` is what it says, without one there is no limit.

    Raises:
        ValueError: It has no end of sequence.
        OSError: There is no such tokenizer.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name, **kwargs)
    tokenizer.model_max_length = kwargs.get("model_max_length", _NO_LIMIT)
    if getattr(tokenizer, "eos_token", None) is None:
        raise ValueError(f"The tokenizer {name} must have an eos_token.")
    return tokenizer
