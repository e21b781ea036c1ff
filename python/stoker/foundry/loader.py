"""The loader of a plan: batches as LLM Foundry's collators make them, filled by the core."""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader as TorchLoader
from torch.utils.data import IterableDataset

from stoker.foundry.call import loader_arguments
from stoker.foundry.config import FinetuningConfig
from stoker.foundry.plan import LoaderPlan
from stoker.foundry.python_loader import check_num_samples, open_python_loader
from stoker.loader import DataLoader
from stoker.options import default_cache_dir
from stoker.preparation.examples import IGNORE_LABEL
from stoker.remote import ranks_of_a_node

logger = logging.getLogger("stoker")

_MULTIPLE = 8  # of columns, where padding is trimmed


def open_loader(plan: LoaderPlan, tokenizer: Any) -> Any:
    """A loader of the batches that a plan says, on the core.

    Args:
        plan: One whose `why_python` is None.
        tokenizer: Of transformers; for streams that are not of tokens.

    Returns:
        A `FoundryLoader`; of text, where the tokenizer does more than to cut it, what `open_python_loader` gives.

    Raises:
        ValueError, FileNotFoundError: As `stoker.DataLoader`.
        RuntimeError: Text is to be tokenized, and the tokenizer has no padding.
        DatasetTooSmallError: There are fewer samples than nodes.
    """
    loader = _open(plan, tokenizer)
    if isinstance(plan.config, FinetuningConfig) and plan.layout.order == "streaming":
        num_samples = sum(int(sizes.sum()) for sizes in loader.dataset.sizes)
        num_nodes = loader.world_size * plan.config.replication // ranks_of_a_node()
        check_num_samples(num_samples, plan.config.num_canonical_nodes, num_nodes)
    if plan.kind != "text" or not any(loader.dataset.is_raw):
        return FoundryLoader(plan, loader)
    # What the tokenizer returns has a mask, too, and max_seq_len tokens of which the padding is as good as others.
    loader.close()
    if plan.pad_id is None:
        raise RuntimeError("If tokenizing on-the-fly, tokenizer must have a pad_token_id")
    if not _is_text_cut_alone(tokenizer):
        return open_python_loader(plan, tokenizer)
    plan = replace(plan, keys=("input_ids", "attention_mask", *plan.keys[1:]), pads_to_longest=False)
    return FoundryLoader(plan, _open(plan, tokenizer))


def _is_text_cut_alone(tokenizer: Any) -> bool:
    """Whether a text that is too long is tokenized as one that is not, and then cut; and nothing else is told of it."""
    encoded = tokenizer("a")
    ends = encoded["input_ids"][-1:] == [tokenizer.eos_token_id] or encoded["input_ids"][-1:] == [
        tokenizer.sep_token_id
    ]
    return set(encoded) == {"input_ids", "attention_mask"} and not ends and tokenizer.truncation_side == "right"


def _open(plan: LoaderPlan, tokenizer: Any) -> DataLoader:
    """The loader of a plan, as it runs here."""
    here = {
        "num_workers": max(1, min(plan.options.num_workers, os.cpu_count() or 1)),  # threads, not processes
        "pin_memory": plan.options.pin_memory and torch.cuda.is_available(),
        "tokenizer": functools.partial(_keep, tokenizer) if getattr(tokenizer, "is_fast", False) else None,
    }
    return DataLoader(list(plan.streams), **{**loader_arguments(plan), **here})


class FoundryLoader(TorchLoader):  # type: ignore[misc]  # torch is not looked at
    """Batches of a plan; torch's DataLoader to whoever asks, which its `stoker` fills.

    Attributes:
        stoker: The `stoker.DataLoader`, with its order, statistics and state.
    """

    def __init__(self, plan: LoaderPlan, loader: DataLoader) -> None:
        super().__init__(
            FoundryDataset(plan, loader), batch_size=plan.samples_per_batch, drop_last=plan.options.drop_last
        )
        self.stoker = loader
        self._plan = plan
        self._numbers = itertools.count()  # of batches that the workers at hand have made, as it were

    def __iter__(self) -> Iterator[Any]:
        """The batches of an epoch; see `LoaderPlan`. What it raises is told at `stoker.DataLoader`."""
        if not self._plan.packers_persist:
            self._numbers = itertools.count()
        for batch in self.stoker:
            self.dataset.is_between_epochs = False
            yield self._batch(batch, is_first=next(self._numbers) < self._plan.num_packers)
        self.dataset.is_between_epochs = True

    def __len__(self) -> int:
        """Batches of an epoch; see `stoker.DataLoader`."""
        return len(self.stoker)

    def _batch(self, batch: Mapping[str, Any], *, is_first: bool) -> Any:
        """What the collators make of rows of seq_len: rows and columns that they don't have are cut off."""
        plan, (rows, tokens, loss) = self._plan, self.stoker.row_info
        cut = dict(batch)
        if rows < plan.batch_size:
            tokens, loss = tokens[:rows], loss[:rows]
            cut = {key: values[:rows] for key, values in batch.items()}
        width = self._width(tokens, is_first=is_first)
        is_left = plan.padding_side == "left"
        if width < plan.seq_len:
            columns = slice(-width, None) if is_left else slice(width)
            cut = {key: values[:, columns].contiguous() for key, values in cut.items()}
            if is_left and "sequence_id" in cut and "attention_mask" not in cut:
                cut["sequence_id"] -= self._documents_before(cut)
        has_mask = "attention_mask" in cut
        cut["total_tokens"] = tokens if has_mask else [width] * rows
        cut["loss_generating_tokens"] = (cut["labels"][:, 1:] != IGNORE_LABEL).sum(1).tolist() if is_left else loss
        if not has_mask or plan.layout.name == "pack":
            return cut
        from transformers import BatchEncoding

        return BatchEncoding(cut)

    def _width(self, tokens: list[int], *, is_first: bool) -> int:
        """Columns of a batch whose rows have so many tokens."""
        plan, longest = self._plan, max(tokens, default=0)
        if plan.pad_id is None and min(tokens, default=0) < longest:
            raise ValueError(
                "You are attempting to pad samples but the tokenizer you are using does not have a pad token. Set its "
                "pad_token."
            )
        if plan.pads_to_longest:
            return longest
        if plan.trims_padding and not is_first:
            return min(plan.seq_len, -(-longest // _MULTIPLE) * _MULTIPLE)
        return plan.seq_len

    def _documents_before(self, cut: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What sequence_id counted before the first column: paddings that look like the end of a document."""
        first = cut["sequence_id"][:, :1].clone()
        if self._plan.config.bos_token_id is not None:
            first -= (cut["input_ids"][:, :1] == self._plan.config.bos_token_id).to(first.dtype)
        return first


class FoundryDataset(IterableDataset):  # type: ignore[misc]
    """What a trainer asks of `dataloader.dataset`: a length, and the state in MosaicML Streaming's terms.

    Attributes:
        is_between_epochs: Whether the loader has come to an epoch's end, and nothing of the next has been received.
        max_seq_len: Tokens of a row at most.
        packing_ratio: Samples of a row.
    """

    def __init__(self, plan: LoaderPlan, loader: DataLoader) -> None:
        self._plan = plan
        self._loader = loader
        self._resumed = (0, 0)  # epoch, and samples of it that were delivered before
        self.is_between_epochs = False
        self.max_seq_len = plan.seq_len
        self.packing_ratio = plan.samples_per_batch / plan.batch_size

    def __len__(self) -> int:
        """Samples of an epoch of a rank."""
        return -(-len(self._loader.dataset) // self._loader.world_size)

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("the samples of this data set are read by the core: iterate over its loader.")

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        """The state after so many rows over all ranks, with the fields of MosaicML Streaming's. Behind an epoch's last
        batch it is the beginning of the next one. Where rows are packed, which are more or fewer than their samples
        say, it is that behind the last batch received, with what this rank's packers have left over (see
        `stoker.distributed.full_state` for that of all ranks), as long as the rows are those to a batch.

        Args:
            num_samples: Rows of the epoch.
            from_beginning: Whether they are counted from the epoch's beginning, or from where it was resumed.
        """
        state = self._loader.state_dict()
        if self._plan.layout.order != "streaming":
            return state
        delivered = num_samples * self._plan.samples_per_batch // self._plan.batch_size
        epoch, offset = self._resumed
        if not from_beginning and epoch == state["epoch"]:
            delivered += offset
        if self.is_between_epochs:
            delivered = state["sample_in_epoch"]
        if self._plan.layout.name == "pack":
            received, of_all = state["sample_in_epoch"], self._plan.samples_per_batch * self._loader.world_size
            if delivered == received or (received and abs(delivered - received) < of_all):
                return state
        names = ("epoch", "sample_in_epoch", "num_canonical_nodes", "shuffle_seed", "initial_physical_nodes")
        return {**{name: state[name] for name in names}, "sample_in_epoch": delivered}

    def load_state_dict(self, obj: Mapping[str, Any]) -> None:
        """Goes on from a state of this class or of MosaicML Streaming; of a Composer checkpoint it is
        `state["dataset_state"]["train"]`. What packers of other ranks, or other packers, had left over is left out.

        Raises:
            StateMismatchError: It does not fit; or rows are packed, and it is MosaicML Streaming's own in the middle of
                an epoch.
        """
        self._loader.load_state_dict(obj, on_change="adapt")
        self._resumed = (int(obj.get("epoch", 0)), int(obj.get("sample_in_epoch", 0)))
        self.is_between_epochs = False


def _keep(tokenizer: Any) -> str:
    """A directory with the tokenizer, for the processes that tokenize."""
    parent = os.path.join(default_cache_dir(), "tokenizers")
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as made:
        kept = os.path.join(made, "tokenizer")
        tokenizer.save_pretrained(kept)
        digest = hashlib.sha256()
        for name in sorted(os.listdir(kept)):
            with open(os.path.join(kept, name), "rb") as file:
                digest.update(name.encode() + b"\0" + hashlib.sha256(file.read()).digest())
        path = os.path.join(parent, digest.hexdigest()[:16])
        if not os.path.exists(path):
            try:
                os.rename(kept, path)
            except OSError:  # another process was faster
                if not os.path.exists(path):
                    raise
    return path
