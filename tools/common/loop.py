"""The training loop: two models step by step on the same batches, timed as pairs."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

import topkast

from .measure import churn
from .text import Text

NATS_TO_BITS = 1 / math.log(2)


@dataclass
class Side:
    """One of the two models with what belongs to it and what was seen of it. Losses are in bits per byte."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    training: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def make_side(name: str, model: nn.Module, args: argparse.Namespace) -> Side:
    """The model with its AdamW and its schedule: linear warm-up over a tenth of the steps, then a cosine to 5 %."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    warm = max(1, args.steps // 10)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, args.steps - warm)))

    return Side(name, model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor))


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy in nats of the bytes `y` that follow `x`, both [batch, length]."""
    return F.cross_entropy(model(input_ids=x).logits.flatten(0, 1).float(), y.flatten())


def train_step(side: Side, x: Tensor, y: Tensor) -> None:
    """One step of a loop that knows nothing of sparsity, timed."""
    _wait(x)
    start = time.perf_counter()
    loss = loss_of(side.model, x, y)
    loss.backward()
    nn.utils.clip_grad_norm_(side.model.parameters(), 1.0)
    side.optimizer.step()
    value = loss.item()
    _wait(x)
    side.seconds.append(time.perf_counter() - start)
    side.training.append(value * NATS_TO_BITS)
    side.schedule.step()


def validate(side: Side, batches: list[tuple[Tensor, Tensor]], device: str) -> float:
    """Bits per byte over `batches`."""
    side.model.eval()
    with torch.no_grad():
        losses = [loss_of(side.model, x.to(device), y.to(device)).item() for x, y in batches]
    side.model.train()
    return sum(losses) / len(losses) * NATS_TO_BITS


def train(args: argparse.Namespace, text: Text, sides: tuple[Side, Side], console: Console) -> list[tuple]:
    """Train both models side by side; return the churn, (step, share of A that is new, share of B), per refresh."""
    sparse = sides[1].model
    generator = torch.Generator().manual_seed(args.seed)
    few, many = (text.validation_batches(n, args.batch, args.length) for n in (4, 24))
    evaluations = {round(args.steps * share / 6) for share in range(6)}
    held, turnover = topkast.masks(sparse), []
    for side in sides:
        side.model.train()

    def validate_all(step: int, batches: list[tuple[Tensor, Tensor]]) -> None:
        for side in sides:
            side.validation.append((step, validate(side, batches, args.device)))
        scores = ", ".join(f"{side.name} {side.validation[-1][1]:.3f}" for side in sides)
        console.print(f"step {step}: validation bits per byte: {scores}", highlight=False)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("compiling (first steps)", total=args.steps)
        for step in range(args.steps):
            if step in evaluations:
                validate_all(step, few)
            x, y = (part.to(args.device) for part in text.batch(generator, args.batch, args.length))
            for side in sides if step % 2 == 0 else reversed(sides):
                train_step(side, x, y)
            if step and step % args.refresh_every == 0:  # this step's forward chose the sets again
                now = topkast.masks(sparse)
                turnover.append((step, *churn(held, now)))
                held = now
            losses = ", ".join(f"{side.name} {side.training[-1]:.3f}" for side in sides)
            progress.update(task, advance=1, description=f"bits per byte: {losses}")
        validate_all(args.steps, many)
    return turnover


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
