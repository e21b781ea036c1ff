"""A real training run on text, instructions and conversations in the same rows, and attention confined to documents."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("tokenizers")  # which the example's neighbour imports

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "examples"))
import mix_kinds  # noqa: E402
from demo import library_files  # noqa: E402


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's three streams, of some of the modules, written once."""
    mix_kinds.OUT = tmp_path_factory.mktemp("streams")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mix_kinds, "library_files", lambda: library_files()[::4])
        mix_kinds.write_streams()
    return mix_kinds.OUT


def test_the_loss_of_every_stream_falls(streams: Path) -> None:
    history = mix_kinds.train(80)
    for name in mix_kinds.WEIGHTS:
        losses = [step[name] for step in history if name in step]
        assert len(losses) > 60  # every stream is in nearly every batch
        first, last = np.mean(losses[:10]), np.mean(losses[-10:])
        assert last < first - 1.0, f"{name}: {first:.2f} to {last:.2f}"


def test_attention_confined_to_documents_gives_the_loss_of_unpacked_rows(streams: Path) -> None:
    """The sum of losses of a packed batch is that of its samples, one a row: the first token of none has loss."""
    torch.manual_seed(1)
    model = mix_kinds.TinyTransformer().double()
    with mix_kinds.make_loader(overflow="split") as loader:
        batch = next(iter(loader))
        rows = loader.order(0)
        packed = mix_kinds.token_losses(model, batch).sum()
        alone = torch.zeros((), dtype=torch.float64)
        places = [(r, s) for r, row in enumerate(rows) for s in row]
        assert len(places) > len(rows)
        assert {segment.stream for _, segment in places} == set(mix_kinds.WEIGHTS)
        for _, segment in places:
            alone += loss_alone(model, loader, segment)
    torch.testing.assert_close(packed, alone, rtol=1e-9, atol=1e-9)


def loss_alone(model: Any, loader: Any, segment: Any) -> Any:
    """The loss of one segment in a row of its own, made without the loader."""
    sample = loader.dataset.read(segment.stream, segment.shard, segment.sample)
    part = slice(segment.token_begin, segment.token_end)
    ids = torch.from_numpy(sample["tokens"][part].astype(np.int64))[None]
    labels = torch.from_numpy(sample.get("labels", sample["tokens"])[part].astype(np.int64))[None]
    batch = {
        "input_ids": ids,
        "labels": labels,
        "sequence_id": torch.zeros_like(ids),
        "position_ids": torch.arange(ids.shape[1])[None],
    }
    return mix_kinds.token_losses(model, batch).sum()
