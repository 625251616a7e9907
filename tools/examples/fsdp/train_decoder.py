"""Train a small decoder under FSDP2, save with torch.distributed.checkpoint, and go on after an interruption.

On a laptop, two processes on the CPU:

    torchrun --nproc-per-node 2 tools/examples/fsdp/train_decoder.py --folder run

On a cluster, 64 GPUs (8 nodes of 8), bf16 products:

    torchrun --nnodes 8 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400 --max-restarts 3 \\
        tools/examples/fsdp/train_decoder.py --folder /shared/run --device cuda --bf16 \\
        --dim 4096 --layers 32 --heads 32 --vocab 32000 --sequence 2048 --batch 8 --refresh-every 100 --save-every 500

A run that starts again with the same folder continues from the last complete checkpoint: with the same number of ranks
bit for bit, with another number up to rounding. The text is made up from a seed, so nothing is downloaded.
"""

import argparse
import hashlib
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import topkast


class Block(nn.Module):
    """Causal attention and two layers, each after a norm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    def __init__(self, dim: int, layers: int, heads: int, vocab: int, sequence: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocab, dim), nn.Embedding(sequence, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class TrainState(Stateful):
    """What a checkpoint holds."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, schedule: Any) -> None:
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "schedule": self.schedule.state_dict(), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step = state["step"]


def last_complete(folder: Path) -> Path | None:
    """The last checkpoint that was written completely: its ``.metadata`` is written last, under another name first."""
    return max((path.parent for path in folder.glob("step-*/.metadata")), default=None)


def batch(args: argparse.Namespace, step: int, rank: int, ranks: int) -> tuple[Tensor, Tensor]:
    """This rank's part of a step's text: arithmetic sequences, of which the model must find the difference."""
    draw = torch.Generator().manual_seed(1000 * args.seed + step)
    first, difference = (torch.randint(1, args.vocab, (args.batch * ranks, 1), generator=draw) for _ in range(2))
    text = (first + difference * torch.arange(args.sequence + 1)) % args.vocab
    mine = text[rank::ranks].to(args.device)
    return mine[:, :-1], mine[:, 1:]


def prepared(args: argparse.Namespace) -> TrainState:
    mesh = init_device_mesh(args.device, (dist.get_world_size(),))
    torch.manual_seed(args.seed)  # every rank starts from the same weights
    model = Decoder(args.dim, args.layers, args.heads, args.vocab, args.sequence).to(args.device)
    options = {"fwd": args.fwd, "bwd": args.bwd, "refresh_every": args.refresh_every, "seed": args.seed}
    model = topkast.sparsify(model, include="blocks.*", min_size=1, mesh=mesh, **options)
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if args.bf16 else MixedPrecisionPolicy()
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=10)
    return TrainState(model, optimizer, schedule)


def digest(model: nn.Module) -> str:
    """A hash of all weights and sets; the ranks call this together."""
    found = hashlib.sha256()
    for value in topkast.dense_state_dict(model, values="all", full=True).values():
        found.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    for pair in topkast.masks(model).values():
        for mask in pair:
            found.update(mask.cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def train(args: argparse.Namespace) -> None:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    state = prepared(args)
    if (found := last_complete(args.folder)) is not None:
        dcp.load({"run": state}, checkpoint_id=found)
        if rank == 0:
            print(f"continue after step {state.step}", flush=True)
    while state.step < args.steps:
        x, y = batch(args, state.step, rank, ranks)
        state.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(state.model(x).flatten(0, 1).float(), y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in state.model.parameters() if p.requires_grad], 1.0)
        state.optimizer.step()
        state.schedule.step()
        state.step += 1
        if state.step % args.save_every == 0:
            dcp.save({"run": state}, checkpoint_id=args.folder / f"step-{state.step:08}")
        if rank == 0 and state.step % args.print_every == 0:
            print(f"step {state.step}: loss {loss.item():.4f}", flush=True)
    text = digest(state.model)
    if rank == 0:
        print(f"end after step {state.step}: weights and sets have the hash {text}", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for checkpoints; all ranks must see it")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--bf16", action="store_true", help="bf16 products; values and gradients stay in float32")
    numbers = {"dim": 32, "layers": 2, "heads": 4, "vocab": 31, "sequence": 16, "batch": 8, "steps": 30, "seed": 0}
    numbers |= {"refresh-every": 3, "save-every": 5, "print-every": 5}
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, rate in {"fwd": 0.9, "bwd": 0.8, "lr": 3e-3}.items():
        parser.add_argument(f"--{name}", type=float, default=rate)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        torch.set_num_threads(1)
    dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
    train(args)
    dist.destroy_process_group()
    # gloo's threads let go of the tensors of the last gather a moment after the gather has returned, and need Python
    # for this. If Python ends before, the process aborts: 2 of 6 runs did. torch has no call that waits for these
    # threads (a barrier does not).
    time.sleep(1.0)


if __name__ == "__main__":
    main()
