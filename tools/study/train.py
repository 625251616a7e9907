"""Train one run, and say what came of it and what it cost."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import topkast
from topkast.tools.common.measure import memory

from .models import start_as_gpt2, width_for
from .references import layers_of, meprop, swat
from .run_fields import Run
from .tasks import Task, loss_of, task_of
from .two_rates import Optimizer, groups, make_optimizer

LOOKS = 20  # how often in a run the sets are counted for its FLOPs


def prepare(run: Run, task: Task) -> nn.Module:
    """The model of a run from its seed."""
    torch.manual_seed(run.seed)
    model = task.build(run.width or task.width)
    if run.method == "dense":
        if run.initial == "gpt2":
            start_as_gpt2(model)
        return model
    if run.method == "small-dense":
        assert run.fwd is not None
        every = sum(p.numel() for p in model.parameters())
        sites = sum(layer.weight.numel() for layer in layers_of(model))
        wanted = every - round(run.fwd * sites)
        torch.manual_seed(run.seed)
        return task.build(width_for(task.build, wanted, task.step, task.width))
    if run.method == "meprop":
        assert run.activations is not None
        return meprop(model, run.activations)
    if run.method == "swat":
        assert run.fwd is not None and run.activations is not None
        return swat(model, run.fwd, run.activations)
    return topkast.compile(model, **run.options())


def train_step(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor, power: float = 1.0) -> Tensor:
    """One step; returns its loss."""
    optimizer.zero_grad()
    loss = loss_of(model, x, y)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    with powers_of(groups(model)[0], power) if power != 1 else nullcontext():
        optimizer.step()
    return loss.detach()


@contextmanager
def powers_of(weights: list[nn.Parameter], power: float) -> Iterator[None]:
    """In here the weights are φ, and so are their gradients, where θ = φ|φ|^(power-1)."""
    with torch.no_grad():
        for weight in weights:
            weight.copy_(weight.sign() * weight.abs() ** (1 / power))
            if weight.grad is not None:
                weight.grad *= power * weight.abs() ** (power - 1)
        yield
        for weight in weights:
            weight.copy_(weight.sign() * weight.abs() ** power)


def schedule(step: int, steps: int) -> float:
    """Warm-up over a tenth of the steps, then a cosine to a twentieth of the peak."""
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.05 + 0.95 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2


def flops_share(run: Run, model: nn.Module, dense: int) -> float:
    """Weight FLOPs of a training step now, of the layers that could be sparse, as a share of the dense model's."""
    if run.method == "dense" and run.width is None:
        return 1.0
    if run.method in ("dense", "small-dense"):
        return sum(layer.weight.numel() for layer in layers_of(model, min_size=1)) / dense
    if run.method == "meprop":
        assert run.activations is not None
        return (1 + 2 * run.activations) / 3
    if run.method == "swat":
        assert run.fwd is not None and run.activations is not None
        return (2 * (1 - run.fwd) + run.activations) / 3
    sets = topkast.masks(model).values()
    share = sum(2 * int(fwd.sum()) + int(bwd.sum()) for fwd, bwd in sets) / (3 * dense)
    if run.method == "rigl":  # a dense weight gradient at every refresh
        assert run.refresh_every is not None
        share += (dense - sum(int(bwd.sum()) for _, bwd in sets)) / (3 * dense * run.refresh_every)
    return share


def train(run: Run, data_path: Path | None = None) -> dict[str, Any]:
    """Train ``run`` and return its quality and costs.

    Returns:
        quality (in the task's unit), nats, training loss (mean of the last tenth of the steps), both None where a loss
        was not finite; flops (mean share of the dense model's over the steps), bytes (values, gradient, optimizer
        state, index and reservoir), parameters (trainable), seconds and cpu_seconds (median of a step; in eager mode
        that is the time of masked dense products and says nothing of the kernels, see clock.py).
    """
    task = task_of(run.task)
    data = task.load(data_path)
    if run.tuning:
        data = task.hold_out(data)
    dense = sum(layer.weight.numel() for layer in layers_of(task.build(task.width)))
    torch._dynamo.reset()  # or a process of many compiled runs would come to the limit of recompilations
    model = prepare(run, task)
    optimizer = make_optimizer(run, model)
    peaks = [group["lr"] for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(run.seed)
    losses, shares, wall, cpu = [], [], [], []
    model.train()
    finish = run.steps - round(run.finish * run.steps)
    for step in range(run.steps):
        if step == finish:
            model = topkast.densify(model).train()
            optimizer = make_optimizer(replace(run, inputs=None), model)
            peaks = [group["lr"] for group in optimizer.param_groups]
        x, y = task.batch(data, generator, run.batch)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule(step, run.steps)
        start = time.perf_counter(), time.process_time()
        losses.append(train_step(model, optimizer, x, y, run.power).item())
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
        if step % max(1, run.steps // LOOKS) == 0:
            shares.append(flops_share(run, model, dense) if step < finish else 1.0)
        if not math.isfinite(losses[-1]):
            break
    tail = losses[-max(1, run.steps // 10) :]
    model.eval()
    with torch.no_grad():
        quality, nats = task.score(model, data)
    finite = math.isfinite(nats) and all(map(math.isfinite, tail))
    return {
        "quality": quality if finite else None,
        "nats": nats if finite else None,
        "training loss": statistics.fmean(tail) if finite else None,
        "flops": statistics.fmean(shares),
        "bytes": memory(model, optimizer)["total"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": statistics.median(wall),
        "cpu_seconds": statistics.median(cpu),
    }
