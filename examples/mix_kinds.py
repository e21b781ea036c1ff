"""Trains a tiny transformer on text, instructions and conversations together: pretraining and finetuning in one batch.

Reads this interpreter's standard library: sources are the text, "What does X do?" and its documentation string an
instruction, several of them in a row a conversation. Tokens are bytes. `stoker.prepare` makes token shards of all three
(of the last two with loss on the answers only), and one loader packs them into the same rows, 50 / 30 / 20 by tokens.
The loss of each stream falls. Run it with `python examples/mix_kinds.py`; --picture FILE.svg draws the first batch.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo import library_files
from tokenizers import Tokenizer, decoders, models
from torch import nn
from torch.nn import functional

import stoker

OUT = Path(".demo")
SPECIAL_TOKENS = ["<|end|>", "<|user|>", "<|assistant|>", "<|pad|>"]  # behind the bytes
PAD, VOCAB_SIZE = 259, 260
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}<|user|>{{ message.content }}<|assistant|>"
    "{% else %}{{ message.content }}<|end|>{% endif %}{% endfor %}"
)
SEQ_LEN, BATCH_SIZE = 512, 8
WEIGHTS = {"text": 0.5, "instruct": 0.3, "chat": 0.2}
COLORS = {"text": "#4c78a8", "instruct": "#f58518", "chat": "#54a24b"}

Turn = tuple[str, str]  # a question and its answer


def questions(source: str, module: str) -> Iterator[Turn]:
    """What the functions of a module do, by the first paragraphs of their documentation."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and (text := ast.get_docstring(node)):
            yield f"What does {module}.{node.name} do?", text.split("\n\n")[0]


def write_raw(folder: Path) -> None:
    """Writes the three sources as JSON, a row a line, and the tokenizer."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in WEIGHTS}
    for path in library_files():
        source = path.read_text(encoding="utf-8", errors="ignore")
        try:
            turns = list(questions(source, path.stem))
        except (SyntaxError, ValueError):  # templates of other languages
            continue
        rows["text"].append({"text": source})
        rows["instruct"] += [{"prompt": f"<|user|>{q}<|assistant|>", "response": a} for q, a in turns[::2]]
        rows["chat"] += [{"messages": messages_of(turns[i : i + 3])} for i in range(1, len(turns), 3)]
    folder.mkdir(parents=True, exist_ok=True)
    for name, of_source in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_source))
    made = Tokenizer(models.BPE({f"<0x{byte:02X}>": byte for byte in range(256)}, [], byte_fallback=True))
    made.decoder = decoders.ByteFallback()
    made.add_special_tokens(SPECIAL_TOKENS)
    made.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|end|>", "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def messages_of(turns: list[Turn]) -> list[dict[str, str]]:
    pairs = [pair for turn in turns for pair in zip(("user", "assistant"), turn, strict=True)]
    return [{"role": role, "content": content} for role, content in pairs]


def write_streams() -> None:
    """Writes the three streams into .demo/."""
    raw = OUT / "raw"
    write_raw(raw)
    for name in WEIGHTS:
        stoker.prepare(raw / f"{name}.jsonl", OUT / name, raw, overwrite=True)


def make_loader(**changes: object) -> stoker.DataLoader:
    arguments = {
        "seq_len": SEQ_LEN,
        "batch_size": BATCH_SIZE,
        "layout": "pack",
        "weights_in": "tokens",
        "fields": ["input_ids", "labels", "sequence_id", "position_ids", "stream_ids"],
        "pad_id": PAD,
        "vocab_size": VOCAB_SIZE,
        **changes,
    }
    return stoker.DataLoader(
        [stoker.Stream(local=OUT / name, proportion=weight) for name, weight in WEIGHTS.items()],
        **arguments,  # type: ignore[arg-type]
    )


class Block(nn.Module):  # type: ignore[misc]
    """Attention within documents, and a perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rows, length, width = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(attended.transpose(1, 2).reshape(rows, length, width))
        return x + self.mlp(self.norms[1](x))


class TinyTransformer(nn.Module):  # type: ignore[misc]
    """A decoder whose attention stays inside each document of a row, by `sequence_id`."""

    def __init__(self, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB_SIZE, width)
        self.positions = nn.Embedding(SEQ_LEN, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        ids, documents = batch["input_ids"], batch["sequence_id"]
        length = ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        mask = causal & (documents[:, :, None] == documents[:, None, :])
        x = self.tokens(ids) + self.positions(batch["position_ids"])
        for block in self.blocks:
            x = block(x, mask[:, None])
        return self.norm(x) @ self.tokens.weight.T / math.sqrt(self.tokens.embedding_dim)


def token_losses(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(rows, seq_len - 1): the loss of each next token, 0 where there is none."""
    logits = model(batch)[:, :-1]
    return functional.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")


def train(steps: int) -> list[dict[str, float]]:
    """Trains on the three streams at once. Returns the mean loss of each in each step that had some of it."""
    torch.manual_seed(0)
    model = TinyTransformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    with make_loader(epoch_size=steps * SEQ_LEN * BATCH_SIZE * 2) as loader:
        for _, batch in zip(range(steps), loader, strict=False):
            losses = token_losses(model, batch)
            has_loss = batch["labels"][:, 1:] != -100
            (losses.sum() / has_loss.sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
            of_step = {}
            for number, name in enumerate(loader.dataset.names):
                chosen = has_loss & (batch["stream_ids"][:, 1:] == number)
                if chosen.any():
                    of_step[name] = float(losses[chosen].detach().mean())
            history.append(of_step)
    return history


def draw(path: Path) -> None:
    """Draws a batch: rows of documents, coloured by stream, pale where there is no loss, white where is padding."""
    with make_loader() as loader:
        batch = next(iter(loader))
        names, fill = loader.dataset.names, loader.stats()["fill"]
    scale, height = 1.5, 26
    parts = []
    for row in range(BATCH_SIZE):
        fields = [batch[f][row].tolist() for f in ("stream_ids", "sequence_id", "labels")]
        cells = [(s, d, label == -100) for s, d, label in zip(*fields, strict=True)]
        begin = 0
        for at in range(1, SEQ_LEN + 1):
            if at < SEQ_LEN and cells[at] == cells[begin]:
                continue
            stream, document, is_pale = cells[begin]
            color = "#ffffff" if stream < 0 else COLORS[names[stream]]
            opacity = 0.3 if is_pale else 1 - 0.25 * (document % 2)
            parts.append(
                f'<rect x="{begin * scale}" y="{row * (height + 4)}" width="{(at - begin) * scale}" height="{height}" '
                f'fill="{color}" fill-opacity="{opacity if stream >= 0 else 1}"/>'
            )
            begin = at
        parts.append(
            f'<rect x="0" y="{row * (height + 4)}" width="{SEQ_LEN * scale}" height="{height}" fill="none" '
            'stroke="#888888"/>'
        )
    bottom = BATCH_SIZE * (height + 4) + 18
    for i, (name, color) in enumerate(COLORS.items()):
        parts.append(f'<rect x="{i * 110}" y="{bottom - 12}" width="14" height="14" fill="{color}"/>')
        parts.append(f'<text x="{i * 110 + 20}" y="{bottom}">{name}</text>')
    parts.append(f'<text x="340" y="{bottom}">pale: no loss &#183; white: padding, {1 - fill:.1%} of the batch</text>')
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-1 -1 {SEQ_LEN * scale + 2} {bottom + 12}" '
        f'font-family="sans-serif" font-size="14">{"".join(parts)}</svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--picture", type=Path, help="draw the first batch into this SVG file")
    options = parser.parse_args()
    write_streams()
    if options.picture:
        draw(options.picture)
    history = train(options.steps)
    for begin in range(0, options.steps, max(1, options.steps // 6)):
        window = history[begin : begin + 20]
        means = {name: np.mean([h[name] for h in window if name in h]) for name in WEIGHTS}
        print(f"step {begin:4}  " + "  ".join(f"{name} {loss:.2f}" for name, loss in means.items()))


if __name__ == "__main__":
    main()
