"""Table 2: whole training steps of a decoder of 1.3 billion parameters, dense and sparse at 0.9/0.8."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import topkast

from .decoder import Size, Trainer, build, clear, clock, peak, ran
from .timing import device

SIZE = Size(layers=24, width=2048, heads=16, vocabulary=50304, sequence=1024, batch=8)
TOY = Size(layers=1, width=32, heads=2, vocabulary=96, sequence=16, batch=2)
GRAPHS = "reduce-overhead"
SHOWN = 25  # kernels of a profile
HELD = ("values", "gradient", "optimizer")


def run(dry: bool, add: Callable[[dict[str, Any]], None]) -> None:
    """Dense comes first and last: what lies between them is the drift of the GPU's clock."""
    ways: list[tuple[tuple[int, int] | None, str | None]] = [(None, None), ((16, 16), None), ((1, 1), None)]
    if not dry:
        sparse = [((128, 128), mode) for mode in (None, GRAPHS)] + [((64, 64), None), ((1, 1), None)]
        ways = [(None, None), (None, GRAPHS), *sparse, (None, None)]
    dense: dict[str, Any] = {}
    for block, mode in ways:
        row = _train(dry, block, mode)
        dense = dense or row
        if block is not None:
            row["time / dense"] = row["seconds a step"] / dense["seconds a step"]
            row["peak / dense"] = row["peak"] / dense["peak"] if dense["peak"] else None
            held, other = (sum(each["bytes"][name] for name in HELD) for each in (row, dense))
            row["parameters, gradient and optimizer / dense"] = held / other
        add(row)


def _train(dry: bool, block: tuple[int, int] | None, mode: str | None) -> dict[str, Any]:
    where, size = device(dry), TOY if dry else SIZE
    clear(where)
    start = clock(where)
    model = build(size, where, block, "host", 10**6, mode=mode)
    built = clock(where)
    trainer = Trainer(model, size, where)
    losses = [trainer.step()]
    first = clock(where)
    losses += [trainer.step() for _ in range(0 if dry else 3)]
    peak(where)
    seconds = []
    for _ in range(2 if dry else 12):
        begin = clock(where)
        losses.append(trainer.step())
        seconds.append(clock(where) - begin)
    row: dict[str, Any] = {
        "block": block,
        "mode": mode,
        "parameters": sum(p.numel() for p in model.parameters()) if block is None else None,
        "seconds a step": statistics.median(seconds),
        "seconds of all steps": seconds,
        "peak": peak(where),
        "bytes": trainer.bytes,
        "seconds to build": built - start,
        "seconds of the first step": first - built,
        "losses": [losses[0], losses[-1]],
    }
    if block is not None:
        if mode is None:
            row["profile"] = _profile(trainer)
        begin = clock(where)
        topkast.refresh(model)
        refresh = clock(where) - begin
        share = refresh / (refresh + 100 * row["seconds a step"])
        row |= {"seconds of a refresh": refresh, "share of time at 1 in 100": share, "kernels": ran(model)}
    return row


def _profile(trainer: Trainer) -> list[dict[str, Any]]:
    """One step under PyTorch's profiler: what took longest, with its calls and its time on the GPU and on the host."""
    from torch.profiler import profile

    with profile() as trace:
        trainer.step()
    found = [
        {"name": each.key[:80], "calls": each.count, "device us": round(each.self_device_time_total, 1),
         "host us": round(each.self_cpu_time_total, 1)}
        for each in trace.key_averages()
    ]  # fmt: skip
    return sorted(found, key=lambda each: -(each["device us"] or each["host us"]))[:SHOWN]
