"""stoker under Hugging Face's Trainer. Accelerate needs nothing of this: `accelerator.prepare` leaves a loader as it is
(its rows are this rank's already), and `accelerator.register_for_checkpointing(loader)` saves and loads its state."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stoker.dataset import TokenDataset
from stoker.distributed import full_state
from stoker.loader import DataLoader

STATE_NAME = "stoker_state.json"  # in a checkpoint's directory


class TrainerLoader:
    """A loader as the Trainer wants it: to be returned from `Trainer.get_train_dataloader`.

    The Trainer expects all epochs to have as many batches as the first, while a loader's may differ by one. This gives
    always as many, and goes on behind them next time, so that no batch is left out or comes twice.
    """

    def __init__(self, loader: DataLoader) -> None:
        self._loader = loader
        self._num_batches = len(loader)

    def __len__(self) -> int:
        """Batches that `iter` gives."""
        return self._num_batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Goes on in the loader's epoch, and with the next where it is over."""
        return itertools.islice(self._endless(), self._num_batches)

    def _endless(self) -> Iterator[dict[str, Any]]:
        state = self._loader.state_dict()
        if state["rows"] > 0:
            self._loader.load_state_dict(state)  # in the middle of an epoch `iter` would begin the next
        while True:
            yield from self._loader

    @property
    def dataset(self) -> TokenDataset:
        """The loader's; its length is the rows of an epoch."""
        return self._loader.dataset

    @property
    def batch_size(self) -> int:
        """Rows a batch."""
        return self._loader.batch_size


class LoaderStateCallback(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Saves a loader's state in each checkpoint of the Trainer, and loads it where the Trainer resumes: training then
    goes on with exactly the batches that come next, on any number of ranks. Needs `ignore_data_skip=True`.

    Args:
        loader: What the Trainer trains on, through `TrainerLoader`.
        checkpoint: The directory that is resumed from. Default: that of the Trainer's step in its `output_dir`.
    """

    def __init__(self, loader: DataLoader, checkpoint: str | os.PathLike[str] | None = None) -> None:
        self._loader = loader
        self._checkpoint = checkpoint

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Writes the state of all ranks. Called on each of them."""
        saved = full_state(self._loader)
        if state.is_world_process_zero:
            path = _checkpoint_of(args, state) / STATE_NAME
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(saved))

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Loads the state where the Trainer resumes.

        Raises:
            ValueError: `ignore_data_skip` is not set, and the Trainer would skip batches that the loader has skipped.
            FileNotFoundError: The checkpoint has no state of a loader.
            StateMismatchError: The state is of another loader.
        """
        if state.global_step == 0:
            return
        if not args.ignore_data_skip:
            raise ValueError(
                "set TrainingArguments(ignore_data_skip=True): the loader goes on where the checkpoint was taken, and "
                "the Trainer must not skip batches again."
            )
        path = Path(self._checkpoint or args.resume_from_checkpoint or _checkpoint_of(args, state)) / STATE_NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"the Trainer resumes at step {state.global_step}, but there is no {path}: give the directory that it "
                "resumes from as LoaderStateCallback(loader, checkpoint=...)."
            )
        self._loader.load_state_dict(json.loads(path.read_text()))


def _checkpoint_of(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
