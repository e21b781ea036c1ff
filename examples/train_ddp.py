"""Trains the tiny transformer of mix_kinds.py with DistributedDataParallel, and goes on from a checkpoint on any number
of ranks that divides the global batch:

    torchrun --nproc-per-node 2 examples/train_ddp.py --steps 20 --checkpoint .demo/ddp.pt
    torchrun --nproc-per-node 4 examples/train_ddp.py --steps 40 --checkpoint .demo/ddp.pt

The loader finds rank and world size itself. Its state is saved with the model's; every global batch is the one that an
uninterrupted run would have had.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import mix_kinds
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from stoker.distributed import full_state

GLOBAL_BATCH = 8


def train(steps: int, checkpoint: Path, history: Path | None = None) -> None:
    """Trains up to step `steps`, from the checkpoint if there is one, and writes it."""
    torch.manual_seed(0)
    model = mix_kinds.TinyTransformer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loader = mix_kinds.make_loader(batch_size=None, global_batch_size=GLOBAL_BATCH, epoch_size="1m")
    step = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
        step = saved["step"]
    ddp = DistributedDataParallel(model)
    with loader:
        while step < steps:
            for batch in loader:
                counts = torch.tensor([(batch["labels"][:, 1:] != -100).sum(), batch["input_ids"].sum()])
                dist.all_reduce(counts)  # of the global batch: tokens with loss, and a checksum
                loss = mix_kinds.token_losses(ddp, batch).sum() / counts[0]
                (loss * dist.get_world_size()).backward()  # DDP takes the mean over ranks
                optimizer.step()
                optimizer.zero_grad()
                dist.all_reduce(loss.detach())
                step += 1
                if dist.get_rank() == 0:
                    print(f"step {step:4}  loss {loss:.4f}")
                    if history is not None:
                        with history.open("a") as file:
                            file.write(f"{step} {counts[1]} {loss:.6f}\n")
                if step == steps:
                    break
        state = full_state(loader)  # on all ranks
    if dist.get_rank() == 0:
        torch.save(
            {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "loader": state, "step": step},
            checkpoint,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--checkpoint", type=Path, default=mix_kinds.OUT / "ddp.pt")
    parser.add_argument("--data", type=Path, default=mix_kinds.OUT, help="where the streams are, or are written")
    parser.add_argument("--history", type=Path, help="append step, checksum of the global batch and loss to this file")
    options = parser.parse_args()
    dist.init_process_group("gloo")
    mix_kinds.OUT = options.data
    if dist.get_rank() == 0 and not (options.data / "chat").exists():
        mix_kinds.write_streams()
    dist.barrier()
    train(options.steps, options.checkpoint, options.history)
    dist.destroy_process_group()
    time.sleep(0.5)  # gloo's threads may hold the last tensors, and an exit before they let go aborts (pytorch#179291)


if __name__ == "__main__":
    main()
