"""Table 3: a model whose dense training state is more than there is, trained with the reservoir on the host."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

import topkast

from .decoder import Decoder, Size, Trainer, build, clear, clock, peak, ran
from .timing import device

Add = Callable[[dict[str, Any]], None]

STATE = 16  # bytes a parameter of dense training: value, gradient and AdamW's two moments, in float32
SIZE = Size(layers=24, width=2560, heads=20, vocabulary=50304, sequence=1024, batch=2)  # 2 billion
HEADLINE = Size(layers=44, width=6144, heads=48, vocabulary=50304, sequence=1024, batch=1)  # 20 billion
TOY = Size(layers=1, width=32, heads=2, vocabulary=96, sequence=16, batch=2)


def run(dry: bool, add: Add) -> None:
    """Under a cap of three quarters of the dense state: dense runs out of memory, ours does not."""
    where, size = device(dry), TOY if dry else SIZE
    state = STATE * count(size)
    if not dry:
        total = torch.cuda.get_device_properties(where).total_memory
        cap = 0.75 * state
        torch.cuda.set_per_process_memory_fraction(cap / total)
        add({"dense training state": state, "cap": cap})
        try:
            Trainer(build(size, where, None, "device", 1), size, where).step()
            raise RuntimeError("dense training did not run out of memory: the cap shows nothing")
        except torch.cuda.OutOfMemoryError as error:
            add({"dense": str(error)[:200]})
        clear(where)
    add(_train(size, where, 4 if dry else 8))
    clear(where)
    # A quarter of its layers says what a refresh costs when threads choose the sets, and takes a quarter of the time.
    add(_in_background(replace(size, layers=max(1, size.layers // 4)), where, 2 if dry else 8))


def run_headline(dry: bool, add: Add) -> None:
    """As large as one GPU of 139 GiB should hold."""
    add(_train(TOY if dry else HEADLINE, device(dry), 2 if dry else 6))


def count(size: Size) -> int:
    """Parameters of a decoder of this size."""
    with torch.device("meta"):
        return sum(p.numel() for p in Decoder(size).parameters())


def _in_background(size: Size, where: torch.device, every: int) -> dict[str, Any]:
    """Seconds of plain steps, of the one that asks for sets, and of the one where they come into force."""
    model = build(size, where, (16, 16) if where.type == "cpu" else (128, 128), "host", every, background=True)
    trainer, seconds = Trainer(model, size, where), []
    for _ in range(2 * every + 1):
        begin = clock(where)
        trainer.step()
        seconds.append(clock(where) - begin)
    plain = [s for i, s in enumerate(seconds[1:], 1) if i % every]
    asks, applies, step = seconds[every], seconds[2 * every], statistics.median(plain)
    if topkast.report(model).totals["churn"] is None:
        raise RuntimeError("no sets came into force")
    return {
        "parameters": count(size),
        "in the background": True,
        "seconds of a step": step,
        "seconds of all steps": seconds,
        "a step that asks / a plain one": asks / step,
        "a step that asks and applies / a plain one": applies / step,
        "share of time at 1 in 100": max(0.0, (applies - step) / (applies + 99 * step)),
    }


def _train(size: Size, where: torch.device, steps: int) -> dict[str, Any]:
    """Steps of AdamW with a refresh after half of them. Raises RuntimeError if the loss does not fall."""
    start = clock(where)
    model = build(size, where, (16, 16) if where.type == "cpu" else (128, 128), "host", steps // 2)
    built, building = clock(where) - start, peak(where)
    trainer = Trainer(model, size, where)
    losses, seconds = [], []
    for _ in range(steps):
        begin = clock(where)
        losses.append(trainer.step())
        seconds.append(clock(where) - begin)
    if not all(map(math.isfinite, losses)) or losses[-1] >= losses[0]:
        raise RuntimeError(f"the loss did not fall: {losses}")
    most, begin = peak(where), clock(where)
    topkast.refresh(model)
    refresh, step = clock(where) - begin, statistics.median(seconds[1:])
    return {
        "parameters": count(size),
        "dense training state": STATE * count(size),
        "peak of building": building,
        "peak of steps": most,
        "peak of a refresh": peak(where),
        "bytes": trainer.bytes,
        "seconds to build": built,
        "seconds of all steps": seconds,
        "seconds of a refresh, streamed": refresh,
        "share of time at 1 in 100": refresh / (refresh + 100 * step),
        "losses": losses,
        "kernels": ran(model),
    }
