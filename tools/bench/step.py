"""Whole training steps, compiled: forward, loss, backward, AdamW; and what the refreshes add to them."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import topkast
from topkast.compiler.report.report import Report
from topkast.tools.common.arguments import add_device, block, positive
from topkast.tools.common.pairs import Spread, add_timing, bound, measure, show
from topkast.tools.common.results import CONSOLE, progress

from .layer import block_name
from .step_models import MODELS, Workload

REFRESHES = 3  # timed; the steps' own interval is far longer than the measurement


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_timing(parser, repeats=15)
    add_device(parser)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=["gpt2", "resnet50"])
    parser.add_argument("--block", nargs="+", type=block, default=[(16, 1)], metavar="RxC", help="each is compiled")
    parser.add_argument("--fwd", type=float, default=0.9, help="forward sparsity")
    parser.add_argument("--bwd", type=float, default=0.8, help="backward sparsity")
    parser.add_argument("--refresh-every", type=positive, default=100, metavar="N", help="steps between refreshes")


class Trainer:
    """A model with its optimizer. ``step`` is one whole step on the workload's batch."""

    def __init__(self, workload: Workload, model: nn.Module):
        self.workload, self.model = workload, model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.workload.loss(self.model).backward()
        self.optimizer.step()

    def first_step(self, what: str) -> float:
        """The step that compiles; its seconds."""
        CONSOLE.print(f"compiling {what} (minutes on a small machine)", highlight=False)
        start = time.perf_counter()
        self.step()
        seconds = now(next(self.model.parameters()).device) - start
        CONSOLE.print(f"compiled {what} in {seconds:.0f} s", highlight=False)
        return seconds


# Beyond its limit Dynamo would go on uncompiled, and the figure would be of something else.
@torch._dynamo.config.patch(fail_on_recompile_limit_hit=True)
def run(args: argparse.Namespace) -> dict[str, object]:
    backend = "aot_eager" if args.quick else "inductor"
    rows = []
    for name in args.model:
        workload = MODELS[name](args.quick, args.device)
        flops = count_flops(workload)
        for threads in args.threads:
            # Generated code is made for one number of threads.
            torch._dynamo.reset()
            torch.set_num_threads(threads)
            dense = Trainer(workload, workload.build())
            dense.model.compile(backend=backend)
            dense_seconds = dense.first_step(f"dense {name}, {threads} threads")
            for unit in args.block:
                row = {"model": name, "says": workload.says, "threads": threads, "backend": backend}
                row |= measure_sparse(args, workload, dense, unit, backend, flops)
                row["seconds to compile"]["dense"] = dense_seconds
                rows.append(row)
    CONSOLE.print(step_table(rows))
    return {"rows": rows}


def count_flops(workload: Workload) -> int:
    """FLOPs of a dense training step, all of its products."""
    with FlopCounterMode(display=False) as counter:
        workload.loss(workload.build()).backward()
    return counter.get_total_flops()


def measure_sparse(
    args: argparse.Namespace, workload: Workload, dense: Trainer, unit: tuple[int, int], backend: str, flops: int
) -> dict[str, Any]:
    """One sparse model against the dense one, step by step in turn."""
    model = topkast.compile(
        workload.build(),
        args.fwd,
        args.bwd,
        block=unit,
        refresh_every=args.refresh_every,
        example_inputs=workload.inputs,
        backend=backend,
    )
    sparse = Trainer(workload, model)
    seconds = sparse.first_step(f"topkast {block_name(unit)}")
    with progress() as bar:
        task = bar.add_task(f"{workload.says}, {block_name(unit)}", total=args.repeats + 2)
        pairs = measure(
            [dense.step], [sparse.step], args.repeats, after=lambda: bar.update(task, advance=1), device=args.device
        )
    ratio, step = pairs.ratio(), pairs.seconds()
    refresh = time_refresh(model, args.device)
    report = topkast.report(model)
    interval = args.refresh_every * step["sparse"] + refresh
    return {
        "block": unit,
        "fwd": args.fwd,
        "bwd": args.bwd,
        "bound": bound(args.fwd, args.bwd),
        "bound of the model": model_bound(report, flops),
        "ratio": ratio,
        "seconds": step,
        "refresh": {"every": args.refresh_every, "seconds": refresh, "share of time": refresh / interval},
        "ratio with refresh": with_refresh(ratio, refresh / args.refresh_every / step["sparse"]),
        "seconds to compile": {"topkast": seconds},
        "kernels": kernels(report),
        "parameters left dense": report.dense,
    }


def time_refresh(model: nn.Module, device: torch.device) -> float:
    """Median seconds in which every site chooses its sets again."""
    times = []
    for _ in range(REFRESHES):
        start = now(device)
        topkast.refresh(model)
        times.append(now(device) - start)
    return statistics.median(times)


def now(device: torch.device) -> float:
    """The time, once a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def with_refresh(ratio: Spread, more: float) -> Spread:
    """The ratio when each sparse step carries its share of a refresh."""
    return {key: value * (1 + more) for key, value in ratio.items()}


def model_bound(report: Report, flops: int) -> float | None:
    """The ideal ratio of the whole step: what is not in sites (attention, what stayed dense) costs the same."""
    found = report.totals["flops"]
    if found["per"] != "traced call":
        return None
    return 1 - (found["dense_training"] - found["sparse_training"]) / flops


def kernels(report: Report) -> dict[str, dict[str, int]]:
    """Product -> kernel -> how many sites ran it; "read" where a dense weight was read instead."""
    count: dict[str, dict[str, int]] = {}
    for site in report.sites:
        ran = [(product, kernel) for product, found in site["fused"].items() for kernel in found]
        ran += [(entry["product"], entry["why"]) for entry in site["unfused"]]
        for product, kernel in ran:
            count.setdefault(product, {}).setdefault(kernel, 0)
            count[product][kernel] += 1
    return count


def step_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="training step, time topkast / dense, median and quartiles")
    heads = (
        "model",
        "threads",
        "block",
        "bound: layers",
        "bound: model",
        "ratio",
        "with refresh",
        "dense s",
        "refresh",
    )
    for head in heads:
        table.add_column(head, justify="right")
    for row in rows:
        whole, refresh = row["bound of the model"], row["refresh"]
        table.add_row(
            row["model"],
            str(row["threads"]),
            block_name(row["block"]),
            f"{row['bound']:.3f}",
            "unknown" if whole is None else f"{whole:.3f}",
            show(row["ratio"]),
            show(row["ratio with refresh"]),
            f"{row['seconds']['dense']:.2f}",
            f"{refresh['share of time']:.1%} of the time at 1 in {refresh['every']}",
        )
    return table
