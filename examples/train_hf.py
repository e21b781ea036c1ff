"""Trains a tiny Llama with Hugging Face's Trainer on the packed rows of mix_kinds.py, and resumes from its checkpoints:

    python examples/train_hf.py --steps 20
    python examples/train_hf.py --steps 40 --resume

`position_ids` restart with every document, by which transformers keeps attention inside documents. With flash attention
take fields="huggingface": cu_seq_lens_q and max_length_q and so on come ready-made.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import mix_kinds
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

import stoker
from stoker.huggingface import LoaderStateCallback, TrainerLoader


class PackedTrainer(Trainer):  # type: ignore[misc]
    """A Trainer whose batches are a loader's."""

    def __init__(self, loader: stoker.DataLoader, **arguments: Any) -> None:
        super().__init__(callbacks=[LoaderStateCallback(loader)], **arguments)
        self.loader = loader

    def get_train_dataloader(self) -> TrainerLoader:
        return TrainerLoader(self.loader, self.args.gradient_accumulation_steps)


def make_model() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=mix_kinds.VOCAB_SIZE,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=mix_kinds.SEQ_LEN,
            pad_token_id=mix_kinds.PAD,
            use_cache=False,  # with a cache transformers takes the documents of a row for one
        )
    )


def train(steps: int, out: Path, *, resume: bool | str, save_steps: int = 20, accumulate: int = 1) -> Trainer:
    """Trains up to step `steps` of `accumulate` batches, with a checkpoint every `save_steps`."""
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        save_steps=save_steps,
        gradient_accumulation_steps=accumulate,
        logging_steps=5,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        ignore_data_skip=True,  # the loader goes on by itself
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    set_seed(0)
    with mix_kinds.make_loader(fields=["input_ids", "labels", "position_ids"], epoch_size="200k") as loader:
        trainer = PackedTrainer(loader, model=make_model(), args=arguments)
        trainer.train(resume_from_checkpoint=resume)
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--resume", action="store_true", help="from the last checkpoint")
    options = parser.parse_args()
    if not (mix_kinds.OUT / "chat").exists():
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise SystemExit("the data is not there: run examples/mix_kinds.py --steps 0 in one process first.")
        mix_kinds.write_streams()
    train(options.steps, mix_kinds.OUT / "trainer", resume=options.resume)


if __name__ == "__main__":
    main()
