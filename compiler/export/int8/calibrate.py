"""Measure on the user's batches what int8 changes, and choose the weights that must stay in float32 for a budget."""

from __future__ import annotations

import contextlib
import glob
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from topkast.passes.onnx.convert import Wanted, convert
from topkast.passes.onnx.switch_integers import switch_integers
from topkast.passes.onnx.writer import remove, save_proto, serialize
from topkast.runtime.onnx.session import Session

from .batches import Batches


@dataclass(frozen=True)
class Calibration:
    """What int8 changes on the user's batches, compared with the float32 model in PyTorch.

    Args:
        measure: "loss": the change of the mean loss, as a share of the loss, negative if the loss falls. "outputs": the
            root mean square of the difference, as a share of that of the output; the largest of all outputs.
        batches: the number of batches.
        int8: the change by the file.
        dense_int8: the change by the same model as a dense file that onnxruntime's ``quantize_dynamic`` made int8, per
            channel. None if that failed.
        loss: the mean loss of the float32 model; None if there is none.
        costs: weight -> the change of the outputs by int8 of this weight alone, as "outputs" counts it (the loss, if
            that is the only output). Only measured for a budget.
        kept: the weights that stay in float32 for the budget.
    """

    measure: str
    batches: int
    int8: float
    dense_int8: float | None
    loss: float | None = None
    costs: dict[str, float] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)


def calibrate(
    batches: Batches, dense: ir.Model, wanted: Wanted, budget: float | None, folder: Path
) -> tuple[Calibration, list[tuple[str, str]]]:
    """Measure, and choose what stays in float32.

    With a budget every weight is measured alone. The weights that change the outputs most stay in float32, as few of
    them as needed (found by halving); the change by all others together is measured, and is within the budget.

    Args:
        batches: what to measure with.
        dense: a model that takes the batches, with dense weights in float32; not changed.
        wanted: how to store the weights.
        budget: the largest change; None: nothing more stays in float32.
        folder: for files, which are removed.

    Returns:
        (what was measured, globs of the weights that stay in float32, each with the reason).
    """
    sites, _ = convert(dense.clone(), wanted)
    names = list(dict.fromkeys(site.name for site in sites if site.precision == "int8"))
    switchable = dense.clone()
    switch_integers(switchable, wanted, names)
    costs, kept = dict[str, float](), list[str]()
    with _session(switchable, folder / "switches.onnx") as session, _bar(len(names) if budget else 0) as advance:

        def measure(used: Sequence[str]) -> tuple[float, float]:
            return batches.change(session, torch.tensor([name in used for name in names], dtype=torch.bool))

        change, _ = measure(names)
        if budget is not None and abs(change) > budget:
            for name in names:
                costs[name] = measure([name])[1]
                advance()
            names_by_cost = sorted(names, key=lambda name: -costs[name])
            low, high = 0, len(names)  # so many stay: too few, enough
            while high - low > 1:
                middle = (low + high) // 2
                enough = abs(measure(names_by_cost[middle:])[0]) <= budget
                low, high = (low, middle) if enough else (middle, high)
            kept = names_by_cost[:high]
            change, _ = measure(names_by_cost[high:])
    patterns = [(glob.escape(name), f"int8 of it alone changes the outputs by {costs[name]:.2%}") for name in kept]
    result = Calibration(
        "loss" if batches.has_loss else "outputs",
        len(batches.inputs),
        change,
        _dense_int8(batches, dense, folder),
        batches.loss,
        costs,
        kept,
    )
    return result, [*wanted.keep_float, *patterns]


def _dense_int8(batches: Batches, dense: ir.Model, folder: Path) -> float | None:
    """The change by ONNX Runtime's own int8 of the dense model."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    file, quantised = folder / "dense.onnx", folder / "dense.int8.onnx"
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it recommends its own preprocessing
    try:
        save_proto(serialize(dense.clone()), file)
        quantize_dynamic(
            file, quantised, per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=_is_large(file)
        )
        return batches.change(Session(quantised))[0]
    except Exception:  # a comparison that ONNX Runtime cannot make is no reason to refuse the export
        return None
    finally:
        root.setLevel(level)
        remove(file)
        remove(quantised)


def _is_large(file: Path) -> bool:
    return file.with_name(f"{file.name}.data").exists()


@contextlib.contextmanager
def _session(model: ir.Model, file: Path) -> Iterator[Session]:
    try:
        save_proto(serialize(model), file)
        yield Session(file)
    finally:
        remove(file)


@contextlib.contextmanager
def _bar(steps: int) -> Iterator[Callable[[], None]]:
    """A progress bar for the weights that are measured one by one."""
    console = Console(stderr=True)
    columns = TextColumn("measuring int8 of each weight"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not (steps and console.is_terminal)) as bar:
        task = bar.add_task("", total=steps)
        yield lambda: bar.advance(task)
