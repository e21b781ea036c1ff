"""The examples as a user runs them: DistributedDataParallel, Hugging Face's Trainer, Accelerate."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import EXAMPLES, torchrun

import stoker

sys.path.insert(0, str(EXAMPLES))
import mix_kinds
from demo import library_files


@pytest.fixture(scope="module", autouse=True)
def streams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples' three streams, of some of the modules, written once."""
    mix_kinds.OUT = tmp_path_factory.mktemp("streams")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mix_kinds, "library_files", lambda: library_files()[::4])
        mix_kinds.write_streams()
    return mix_kinds.OUT


# ---------------------------------------------------------------- DistributedDataParallel
def test_ddp_goes_on_as_four_ranks_where_two_have_stopped(streams: Path, tmp_path: Path) -> None:
    def run(ranks: int, steps: int, name: str) -> None:
        files = ["--checkpoint", str(tmp_path / f"{name}.pt"), "--history", str(tmp_path / f"{name}.txt")]
        torchrun(ranks, EXAMPLES / "train_ddp.py", "--data", str(streams), "--steps", str(steps), *files)

    run(2, 10, "whole")
    run(2, 4, "parts")
    run(4, 10, "parts")
    whole, parts = (np.loadtxt(tmp_path / f"{name}.txt") for name in ("whole", "parts"))
    np.testing.assert_array_equal(parts[:, :2], whole[:, :2])  # step and checksum of the global batch
    np.testing.assert_allclose(parts[:, 2], whole[:, 2], rtol=1e-4)  # loss
    assert whole[-1, 2] < whole[0, 2]


# ---------------------------------------------------------------- Hugging Face
@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_trainer_resumes_with_exactly_the_batches_that_come_next(
    accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import train_hf

    seen: list[tuple[int, int, float]] = []  # step, checksum of the batch, loss
    training_step = train_hf.PackedTrainer.training_step

    def record(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        loss = training_step(self, model, inputs, *rest)
        checksum = int((inputs["input_ids"] * torch.arange(1, mix_kinds.SEQ_LEN + 1)).sum())
        seen.append((self.state.global_step, checksum, float(loss)))
        return loss

    def run(steps: int, name: str, *, resume: bool | str) -> list[tuple[int, int, float]]:
        seen.clear()
        trainer = train_hf.train(steps, tmp_path / name, resume=resume, save_steps=5, accumulate=accumulate)
        assert trainer.state.global_step == steps
        return list(seen)

    monkeypatch.setattr(train_hf.PackedTrainer, "training_step", record)
    with mix_kinds.make_loader(fields=["input_ids"], epoch_size="200k") as loader:
        steps = len(loader) // accumulate + 3  # past the end of an epoch
    whole = run(steps, "whole", resume=False)
    assert [step for step, *_ in whole] == [step for step in range(steps) for _ in range(accumulate)]
    first = run(5, "parts", resume=False)
    moved = str((tmp_path / "parts" / "checkpoint-5").rename(tmp_path / "elsewhere"))
    parts = first + run(steps, "parts", resume=moved)
    assert [batch[:2] for batch in parts] == [batch[:2] for batch in whole]
    np.testing.assert_allclose([loss for *_, loss in parts], [loss for *_, loss in whole], rtol=1e-3)


def test_the_trainer_is_told_when_it_would_skip_batches_or_has_no_state(tmp_path: Path) -> None:
    import train_hf
    from transformers import TrainingArguments

    train_hf.train(4, tmp_path / "run", resume=False, save_steps=4)
    with mix_kinds.make_loader(fields=["input_ids", "labels", "position_ids"]) as loader:
        arguments = TrainingArguments(output_dir=str(tmp_path / "run"), max_steps=8, report_to="none", use_cpu=True)
        trainer = train_hf.PackedTrainer(loader, model=train_hf.make_model(), args=arguments)
        with pytest.raises(ValueError, match="ignore_data_skip=True"):
            trainer.train(resume_from_checkpoint=True)
        path = tmp_path / "run" / "checkpoint-4" / "trainer_state.json"
        state = json.loads(path.read_text())
        del state["stateful_callbacks"]["stoker"]
        path.write_text(json.dumps(state))
        arguments.ignore_data_skip = True
        with pytest.raises(ValueError, match="resumes at step 4, but its checkpoint has no state of a loader"):
            trainer.train(resume_from_checkpoint=True)


def test_the_trainers_epochs_lose_no_batch(tmp_path: Path) -> None:
    """A loader's epochs differ by a batch; the Trainer takes as many of each as of the first."""
    from stoker.huggingface import TrainerLoader

    with mix_kinds.make_loader(fields=["input_ids"], epoch_size="50k", batch_size=7) as loader:
        lengths = [len(list(loader)) for _ in range(8)]
    assert len(set(lengths)) == 2
    with mix_kinds.make_loader(fields=["input_ids"], epoch_size="50k", batch_size=7) as loader:
        batches = TrainerLoader(loader)
        assert len(batches) == lengths[0] and len(batches.dataset) == len(loader.dataset) and batches.batch_size == 7
        rows = []
        for _ in range(6):
            rows += [loader.batch_info["rows"] for _ in batches]
    assert rows == [(7 * b, 7 * b + 7) for b in range(6 * lengths[0])]


def test_accelerate_leaves_a_loader_as_it_is_and_checkpoints_it(tmp_path: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    with mix_kinds.make_loader() as loader:
        prepared, model = accelerator.prepare(loader, mix_kinds.TinyTransformer())
        assert prepared is loader
        accelerator.register_for_checkpointing(loader)
        iterator = iter(loader)
        for _ in range(3):
            next(iterator)
        accelerator.save_state(str(tmp_path))
        want = next(iterator)
        accelerator.load_state(str(tmp_path))
        again = next(iter(loader))
    assert all(torch.equal(again[name], want[name]) for name in want)
    assert isinstance(model, torch.nn.Module)


# ---------------------------------------------------------------- attention
def test_packed_rows_give_hugging_faces_model_the_logits_of_unpacked_documents() -> None:
    """By position_ids alone, and by the varlen arguments of the preset "huggingface"."""
    import train_hf
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def varlen(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        """What a varlen kernel computes, of all tokens of a batch one behind the other."""
        assert kwargs["max_length_q"] == kwargs["max_length_k"]
        rows, heads, length, width = query.shape
        flat = [t.transpose(1, 2).reshape(rows * length, heads, width) for t in (query, key, value)]
        out = torch.zeros_like(flat[0])
        ends = kwargs["cu_seq_lens_q"].tolist()
        assert ends == kwargs["cu_seq_lens_k"].tolist()
        for begin, end in itertools.pairwise(ends):
            assert end - begin <= kwargs["max_length_q"]
            if end > begin:
                q, k, v = (t[begin:end].transpose(0, 1)[None] for t in flat)
                o = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
                out[begin:end] = o[0].transpose(0, 1)
        return out.view(rows, length, heads, width), None

    AttentionInterface.register("varlen_by_hand", varlen)
    assert "varlen_by_hand" in ALL_ATTENTION_FUNCTIONS
    torch.manual_seed(0)
    model = train_hf.make_model().double().eval()
    with mix_kinds.make_loader(fields="huggingface", batch_size=3) as loader, torch.no_grad():
        both = ((batch, loader.order(number)) for number, batch in enumerate(loader))
        batch, rows = next((batch, rows) for batch, rows in both if sum(map(len, rows)) > len(rows))
        assert list(batch) == [
            *("input_ids", "labels", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
        ]
        model.set_attn_implementation("sdpa")
        by_positions = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
        model.set_attn_implementation("varlen_by_hand")
        by_lengths = model(**{name: values for name, values in batch.items() if name != "labels"}).logits
        model.set_attn_implementation("sdpa")
        for r, row in enumerate(rows):
            at = 0
            for segment in row:
                tokens = loader.dataset.read(*segment[:3])["tokens"][segment.token_begin : segment.token_end]
                alone = model(input_ids=torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
                for packed in (by_positions, by_lengths):
                    torch.testing.assert_close(packed[r, at : at + len(tokens)], alone, rtol=1e-9, atol=1e-9)
                at += len(tokens)


# ---------------------------------------------------------------- torchdata
def test_torchdata_takes_the_loader_as_a_stateful_iterable() -> None:
    from torchdata.nodes import IterableWrapper, Loader

    with mix_kinds.make_loader() as one:
        loader = Loader(IterableWrapper(one))
        iterator = iter(loader)
        for _ in range(4):
            next(iterator)
        state = json.loads(json.dumps(loader.state_dict()))
        want = [next(iterator) for _ in range(2)]
    with mix_kinds.make_loader() as other:
        loader = Loader(IterableWrapper(other))
        loader.load_state_dict(state)
        iterator = iter(loader)
        got = [next(iterator) for _ in range(2)]
    assert all(torch.equal(a[name], b[name]) for a, b in zip(got, want, strict=True) for name in b)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")
@pytest.mark.parametrize("after", [0, 5])
def test_the_protocol_is_that_of_stateful_dataloader(after: int) -> None:
    """The same calls on torchdata's class and on ours: a state between batches goes on with the next."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    def steps(make: Any, first: Any) -> tuple[list[Any], list[Any]]:
        loader = make()
        iterator = iter(loader)
        for _ in range(after):
            next(iterator)
        state = loader.state_dict()
        want = [first(next(iterator)) for _ in range(3)]
        other = make()
        other.load_state_dict(state)
        iterator = iter(other)
        return [first(next(iterator)) for _ in range(3)], want

    for got, want in (
        steps(lambda: StatefulDataLoader(list(range(20)), batch_size=2), lambda b: b.tolist()),
        steps(mix_kinds.make_loader, lambda b: b["input_ids"].tolist()),
    ):
        assert got == want


def test_state_is_one_of_torch_distributed_checkpoint() -> None:
    from torch.distributed.checkpoint.stateful import Stateful

    assert isinstance(stoker.DataLoader, type) and issubclass(stoker.DataLoader, Stateful)
