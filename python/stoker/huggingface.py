"""stoker under Hugging Face's Trainer. Accelerate needs nothing of this: `accelerator.prepare` leaves a loader as it is
(its rows are this rank's already), and `accelerator.register_for_checkpointing(loader)` saves and loads its state."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stoker.dataset import TokenDataset
from stoker.distributed import full_state
from stoker.loader import DataLoader
from stoker.options import check_index

_KEY = "stoker"  # of the loader's state among those of callbacks in trainer_state.json


class TrainerLoader:
    """A loader as the Trainer wants it: to be returned from `Trainer.get_train_dataloader`.

    The Trainer takes all epochs to have as many batches as the first, and after a checkpoint begins an epoch anew. This
    gives always as many batches, whole steps of them, and goes on behind them next time: no batch is left out or comes
    twice, and every step has as many as any other.
    """

    def __init__(self, loader: DataLoader, gradient_accumulation_steps: int = 1) -> None:
        """
        Args:
            loader: What is trained on.
            gradient_accumulation_steps: Batches a step, as in TrainingArguments.
        """
        steps = check_index("gradient_accumulation_steps", gradient_accumulation_steps, 1, 1 << 31)
        self._loader = loader
        self._num_batches = max(1, len(loader) // steps) * steps

    def __len__(self) -> int:
        """Batches that `iter` gives: those of an epoch, rounded down to whole steps."""
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
    """Saves a loader's state in each checkpoint of the Trainer, in its trainer_state.json, and loads it where the
    Trainer resumes: training then goes on with exactly the batches that come next, on any number of ranks. Needs
    `ignore_data_skip=True`.

    Args:
        loader: What the Trainer trains on, through `TrainerLoader`.
    """

    def __init__(self, loader: DataLoader) -> None:
        self._loader = loader

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Puts the state where the Trainer saves it; that of all ranks where it is about to."""
        state.stateful_callbacks[_KEY] = full_state(self._loader) if control.should_save else self._loader.state_dict()

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The same."""
        self.on_step_end(args, state, control)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Loads the state where the Trainer resumes.

        Raises:
            ValueError: `ignore_data_skip` is not set, and the Trainer would skip batches that the loader has skipped;
                or the checkpoint has no state of a loader.
            StateMismatchError: The state is of another loader.
        """
        if state.global_step == 0:
            return
        if not args.ignore_data_skip:
            raise ValueError(
                "set TrainingArguments(ignore_data_skip=True): the loader goes on where the checkpoint was taken, and "
                "the Trainer must not skip batches again."
            )
        if _KEY not in state.stateful_callbacks:
            raise ValueError(
                f"the Trainer resumes at step {state.global_step}, but its checkpoint has no state of a loader: it was "
                "saved without LoaderStateCallback. Load a state into the loader, and train without this callback."
            )
        self._loader.load_state_dict(state.stateful_callbacks[_KEY])
