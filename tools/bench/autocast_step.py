"""Layers in bfloat16, and training steps under autocast beside those in float32: dense and sparse, all in turn."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

import topkast
from topkast.runtime.kernels.candidates import launch
from topkast.tools.common.arguments import block
from topkast.tools.common.pairs import add_timing, bound, measure, show, spread
from topkast.tools.common.results import CONSOLE

from .layer import PRODUCTS, block_name, random_layer
from .step import Trainer, kernels
from .step_models import Workload, gpt2

CPU = torch.device("cpu")
SHAPES = [(2048, 1024, 4096), (2048, 1024, 1024), (256, 1024, 4096)]  # M, K, N
DTYPES = {"fp32": None, "bf16": torch.bfloat16}


class Tower(nn.Module):
    """Two layers and GELU. A class of its own, because ``compile()`` leaves an ``nn.Sequential`` as it is."""

    def __init__(self, narrow: int, wide: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(narrow, wide), nn.GELU(), nn.Linear(wide, narrow))

    def forward(self, input: Tensor) -> Tensor:
        return self.layers(input)


def tower(quick: bool) -> Workload:
    """Two layers, 1024 to 4096 and back, on 2048 rows of noise."""
    narrow, wide, rows = (64, 96, 32) if quick else (1024, 4096, 2048)
    x, y = torch.randn(2, rows, narrow, generator=torch.Generator().manual_seed(0))

    def build() -> nn.Module:
        torch.manual_seed(0)
        return Tower(narrow, wide)

    return Workload(
        build, {"input": x}, lambda m: F.mse_loss(m(x).float(), y), f"tower {narrow}-{wide}-{narrow}, {rows} rows"
    )


WORKLOADS: dict[str, Callable[[bool], Workload]] = {
    "tower": tower,
    "gpt2": lambda quick: gpt2(quick, CPU, layers=4),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_timing(parser, repeats=9)
    parser.add_argument("--model", nargs="*", choices=WORKLOADS, default=list(WORKLOADS), help="none: only layers")
    parser.add_argument("--block", nargs="+", type=block, default=[(16, 1), (1, 1), (32, 32)], metavar="RxC")


def under(workload: Workload, dtype: torch.dtype | None) -> Workload:
    """The workload with its forward under autocast; in float32 if there is no dtype."""
    if dtype is None:
        return workload

    def loss(model: nn.Module) -> Tensor:
        with torch.autocast("cpu", dtype):
            return workload.loss(model)

    return replace(workload, loss=loss)


def run(args: argparse.Namespace) -> dict[str, object]:
    backend = "aot_eager" if args.quick else "inductor"
    rows = [
        measured(WORKLOADS[name](args.quick), threads, args.block, args.repeats, backend)
        for name in args.model
        for threads in args.threads
    ]
    layers = [
        measured_layer((m // 16, k // 16, n // 16) if args.quick else (m, k, n), unit, threads, args.repeats)
        for m, k, n in SHAPES
        for unit in args.block
        for threads in args.threads
    ]
    CONSOLE.print(layer_table(layers))
    if rows:
        CONSOLE.print(autocast_table(rows))
    return {"layers": layers, "rows": rows}


def clock_for(threads: int) -> Callable[[], float]:
    """Other programs cost one thread no CPU time; several threads wait for one another, which only the time shows."""
    return time.thread_time if threads == 1 else time.perf_counter


def measured_layer(shape: tuple[int, int, int], unit: tuple[int, int], threads: int, repeats: int) -> dict[str, Any]:
    """The three products of a layer in bfloat16 as shares of dense ones: by the kernels for bfloat16, and through
    float32. Values are rounded at each call, and dW comes in float32, as under autocast."""
    layer = random_layer(shape, unit, 0.9, 0.8)
    low = layer.to(torch.bfloat16)
    found: dict[str, Any] = {}
    torch.set_num_threads(threads)
    for kernel in ("bf16", "native"):
        weight = (layer.values, layer.index, layer.geometry)
        sparse = [
            partial(launch(kernel, "spmm"), low.x, *weight, None),
            partial(launch(kernel, "spmm_t"), low.dy, *weight),
            partial(launch(kernel, "sddmm"), low.dy, low.x, *weight[1:], dtype=torch.float32),
        ]
        pairs = measure(low.dense(), sparse, repeats, clock=clock_for(threads))
        parts = {name: pairs.ratio(number) for number, name in enumerate(PRODUCTS.values())}
        found[kernel] = {"step": pairs.ratio(), **parts, "seconds": pairs.seconds()}
    return {"shape": shape, "block": unit, "threads": threads, "bound": bound(0.9, 0.8), "kernels": found}


def layer_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="products of a layer in bfloat16, time / dense bf16, median and quartiles")
    for head in ("M, K, N", "block", "threads", "kernel", "step", *PRODUCTS.values()):
        table.add_column(head, justify="right")
    for row in rows:
        for kernel, found in row["kernels"].items():
            shares = [show(found[what]) for what in ("step", *PRODUCTS.values())]
            table.add_row(str(row["shape"]), block_name(row["block"]), str(row["threads"]), kernel, *shares)
    return table


def measured(
    workload: Workload, threads: int, blocks: list[tuple[int, int]], repeats: int, backend: str
) -> dict[str, Any]:
    """All sides of one model, step by step in turn, each as a share of dense bf16 in the same round."""
    torch._dynamo.reset()
    torch.set_num_threads(threads)
    clock = clock_for(threads)
    sides: dict[str, Trainer] = {}
    for dtype, kind in DTYPES.items():
        mine = under(workload, kind)
        dense = workload.build()
        dense.compile(backend=backend)
        sides[f"dense {dtype}"] = Trainer(mine, dense)
        for unit in blocks:
            model = topkast.compile(
                workload.build(), 0.9, 0.8, block=unit, refresh_every=1000, example_inputs=workload.inputs,
                backend=backend,
            )  # fmt: skip
            sides[f"{block_name(unit)} {dtype}"] = Trainer(mine, model)
    for name, side in sides.items():
        side.first_step(name)
        side.step()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(repeats):
        for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
            start = clock()
            sides[name].step()
            seconds[name].append(clock() - start)
    base = seconds["dense bf16"]
    return {
        "says": workload.says,
        "threads": threads,
        "clock": clock.__name__,
        "backend": backend,
        "bound": bound(0.9, 0.8),
        "ratios": {name: spread(a / b for a, b in zip(found, base, strict=True)) for name, found in seconds.items()},
        "seconds": {name: spread(found) for name, found in seconds.items()},
        "kernels": {name: kernels(topkast.report(side.model)) for name, side in sides.items() if "dense" not in name},
    }


def autocast_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="training step, time / dense bf16, median and quartiles")
    for head in ("model", "threads", "what", "time", "seconds"):
        table.add_column(head, justify="right")
    for row in rows:
        for name, ratio in row["ratios"].items():
            table.add_row(row["says"], str(row["threads"]), name, show(ratio), f"{row['seconds'][name]['median']:.3f}")
    return table
