"""A GPT-2-style decoder, one training step of it, and what that takes in time and memory."""

from __future__ import annotations

import gc
import os
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import topkast
from topkast.compiler.backend import topkast_aot_eager, topkast_backend
from topkast.tools.common.measure import memory


@dataclass(frozen=True)
class Size:
    """Of a decoder and its batch."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    sequence: int
    batch: int


class Block(nn.Module):
    """Attention and MLP, each behind a norm."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.first, self.second = nn.LayerNorm(size.width), nn.LayerNorm(size.width)
        self.qkv, self.out = nn.Linear(size.width, 3 * size.width), nn.Linear(size.width, size.width)
        self.up, self.down = nn.Linear(size.width, 4 * size.width), nn.Linear(4 * size.width, size.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Decoder(nn.Module):
    """The head is tied to the embedding, as in GPT-2."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(size.sequence, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        # Rows of an embedding have length sqrt(width): without the factor the logits of a fresh model are huge.
        return F.linear(self.norm(x) / x.shape[-1] ** 0.5, self.embedding.weight)


def build(
    size: Size,
    where: torch.device,
    block: tuple[int, int] | None,
    reservoir: str,
    every: int,
    background: bool = False,
    mode: str | None = None,
) -> Decoder:
    """The model, compiled block by block, which compiles one for all.

    Args:
        block: of the sparse weights, at 0.9/0.8; None: a dense model. A sparse one is built on the meta device.
        reservoir, every, background: as ``topkast.sparsify`` has them.
        mode: of ``torch.compile``; "reduce-overhead" runs the steps as CUDA graphs. A dry run has no modes.
    """
    torch.manual_seed(0)
    dry = where.type == "cpu"
    backend: Any = "aot_eager" if dry else "inductor"
    if dry:  # a dry run takes what a GPU would
        os.environ["TOPKAST_KERNEL"] = "transient" if block == (1, 1) else "triton"
    with where if block is None else torch.device("meta"):
        model = Decoder(size)
    if block is not None:
        topkast.sparsify(
            model, 0.9, 0.8, example_inputs=torch.zeros(1, 8, dtype=torch.long), block=block, device=where,
            exclude=["embedding*", "positions*"], reservoir=reservoir, refresh_every=every,
            refresh_in_background=background,
            balanced=False if dry else None,  # the interpreter would take a minute to choose by rows
        )  # fmt: skip
        backend = topkast_aot_eager if dry else topkast_backend
    for one in model.blocks:
        one.compile(backend=backend, mode=None if dry else mode)
    return model.train()


class Trainer:
    """A model, its optimizer and one batch of random tokens, which it can only learn by heart."""

    def __init__(self, model: Decoder, size: Size, where: torch.device, lr: float = 1e-4) -> None:
        self.model, self.where = model, where
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)
        shape = size.batch, size.sequence + 1
        self.tokens = torch.randint(size.vocabulary, shape, generator=torch.Generator().manual_seed(0)).to(where)
        self.bytes: dict[str, int] = {}

    def step(self) -> float:
        """Forward in bfloat16 autocast, backward, AdamW; the loss."""
        with torch.autocast(self.where.type, torch.bfloat16):
            logits = self.model(self.tokens[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), self.tokens[:, 1:].flatten())
        loss.backward()
        self.optimizer.step()
        self.bytes = self.bytes or memory(self.model, self.optimizer)
        self.optimizer.zero_grad()
        return loss.item()


def peak(where: torch.device) -> int:
    """Bytes that tensors took on the GPU at most since the last call; 0 on the CPU."""
    if where.type == "cpu":
        return 0
    found = torch.cuda.max_memory_allocated(where)
    torch.cuda.reset_peak_memory_stats(where)
    return found


def clock(where: torch.device) -> float:
    """The time, once the GPU is done."""
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    return time.perf_counter()


def clear(where: torch.device) -> None:
    """Give back what a model held that nobody names any more, and what was compiled for it."""
    torch._dynamo.reset()
    gc.collect()
    if where.type == "cuda":
        torch.cuda.empty_cache()


def ran(model: nn.Module) -> dict[str, dict[str, int]]:
    """Product -> kernel -> how many sites ran it, or why a dense weight was read."""
    count: dict[str, dict[str, Any]] = {}
    for site in topkast.report(model).sites:
        found = [(product, kernel) for product, kernels in site["fused"].items() for kernel in kernels]
        for product, kernel in found + [(entry["product"], entry["why"]) for entry in site["unfused"]]:
            count.setdefault(product, {}).setdefault(kernel, 0)
            count[product][kernel] += 1
    return count
