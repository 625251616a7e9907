"""Quality after int8: models trained dense and sparse, exported as float32 and int8, scored on held-out data."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

import topkast
from topkast.tools.common.onnx_sessions import session
from topkast.tools.common.results import progress
from topkast.tools.demo import __main__ as demo
from topkast.tools.study import train as study
from topkast.tools.study.run_fields import Run
from topkast.tools.study.tasks import LENGTH, loss_of, task_of

from .dense_int8 import quantise_dynamically

HEADS = ("model", "seeds", "topkast's int8 adds", "quantize_dynamic adds")
ARMS = ("dense", "sparse")


class _Logits(nn.Module):
    """A transformers model as a function from bytes to logits, which is what the study scores."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(input_ids=x).logits


def _demo_model() -> nn.Module:
    return _Logits(demo.build_model(demo.arguments(["--length", str(LENGTH)])))


# name -> the model of a seed that torch has been set to. Both learn the study's bytes.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "demo": _demo_model,
    "study": lambda: task_of("bytes").build(task_of("bytes").width),
}
RATES = {"dense": 2e-3, "sparse": 16e-3}  # those of the study's grid "rates", for either arm


def measure_accuracy(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Bits per byte of each model, arm and seed: float32, int8, and for the sparse arm int8 of both formats."""
    rows, data = [], task_of("bytes").load(None)
    with progress() as bar:
        task = bar.add_task("accuracy", total=len(MODELS) * len(ARMS) * args.seeds)
        for name, build in MODELS.items():
            for arm in ARMS:
                for seed in range(args.seeds):
                    bar.update(task, description=f"{name}, {arm}, seed {seed}")
                    model = _trained(build, arm, seed, data, 5 if args.quick else args.steps)
                    scores = _scores(model, arm, folder, data)
                    rows.append({"model": name, "arm": arm, "seed": seed, "bits": scores})
                    bar.advance(task)
    return rows


def _trained(build: Callable[[], nn.Module], arm: str, seed: int, data: Any, steps: int) -> nn.Module:
    torch.manual_seed(seed)
    model = build()
    if arm == "sparse":
        model = topkast.sparsify(model, fwd=0.9, bwd=0.8, refresh_every=20, block=(16, 1))
    run = Run(task="bytes", method="dense", lr=RATES[arm], seed=seed, steps=steps, batch=32)
    optimizer = study.make_optimizer(run, model)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: study.schedule(step, steps))
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        x, y = task_of("bytes").batch(data, generator, 32)
        study.train_step(model, optimizer, x, y)
        rates.step()
    return model.eval()


def _scores(model: nn.Module, arm: str, folder: Path, data: Any) -> dict[str, float]:
    """Bits per byte by the name of the file, run in ONNX Runtime with topkast's library."""
    x, _ = data.validation_batches(1, 32, LENGTH)[0]
    files = {}
    if arm == "dense":
        files["fp32"] = folder / "dense.onnx"
        torch.onnx.export(model, (x,), files["fp32"], dynamo=True, verbose=False, external_data=False)
        files["int8"] = quantise_dynamically(files["fp32"], folder / "dense-int8.onnx")
    else:
        for format, precision in (("custom", "fp32"), ("custom", "int8"), ("dense", "fp32")):
            file = folder / f"{format}-{precision}.onnx"
            topkast.export(model, file, (x,), format=format, precision=precision, verify=False)
            files[precision if format == "custom" else "dense file"] = file
        files["int8 by quantize_dynamic"] = quantise_dynamically(files.pop("dense file"), folder / "stock-int8.onnx")
    return {name: _bits(file, data) for name, file in files.items()}


def _bits(file: Path, data: Any) -> float:
    made = session(file, 1, topkast.onnx.library_path())
    name = made.get_inputs()[0].name

    def logits(x: Tensor) -> Tensor:
        return torch.from_numpy(made.run(None, {name: x.numpy()})[0])

    losses = [loss_of(logits, x, y).item() for x, y in data.validation_batches(16, 32, LENGTH)]  # type: ignore[arg-type]
    return statistics.fmean(losses) / math.log(2)


def accuracy_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="bits per byte, and what int8 adds: mean over seeds (largest of a seed)")
    for head in HEADS:
        table.add_column(head, justify="left" if head == HEADS[0] else "right")
    for line in accuracy_lines(rows):
        table.add_row(*line)
    return table


def accuracy_lines(rows: list[dict[str, Any]]) -> list[list[str]]:
    """One line for each model and arm, under :data:`HEADS`."""
    lines = []
    for name, arm in dict.fromkeys((row["model"], row["arm"]) for row in rows):
        own = [row["bits"] for row in rows if (row["model"], row["arm"]) == (name, arm)]
        ours = _added(own, "int8") if arm == "sparse" else ""
        theirs = _added(own, "int8 by quantize_dynamic" if arm == "sparse" else "int8")
        lines.append([f"{name}, {arm}", str(len(own)), ours, theirs])
    return lines


def _added(own: list[dict[str, float]], name: str) -> str:
    added = [bits[name] - bits["fp32"] for bits in own]
    return f"{statistics.fmean(added):+.4f} ({max(added, key=abs):+.4f})"
