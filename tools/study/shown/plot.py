"""Quality against what it costs, or against the rate: one picture a grid, a row of panels a task."""

from __future__ import annotations

import io
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image

from topkast.tools.study.tasks import task_of

from .figures import Row, estimate

COSTS = {
    "density": "forward density",
    "flops": "weight FLOPs, in dense runs",
    "time": "measured time, s",
    "bytes": "training state, MB",
}
UNITS = {"bytes": 1e6}  # of a cost that is kept in another unit
COLOURS = 128  # enough for ten arms and letters, and half of the bytes


@dataclass(frozen=True)
class Panel:
    """One system of axes: which rows, and where along x each lies."""

    label: str
    rows: list[Row]
    x: Callable[[Row], float]


def plot(found: Sequence[Row], name: str, path: Path) -> Path | None:
    """Draw every task's arms, mean and 95 % interval over seeds, into the PNG ``path``.

    Args:
        found: the rows; those without a result are left out, and a panel leaves out those without its cost.
        name: of the grid, for the title.
        path: its folder is made if it is not there.

    Returns:
        The path, or None where there is nothing to draw.
    """
    by_task: dict[str, list[Row]] = defaultdict(list)
    for row in found:
        if row.qualities:
            by_task[row.task].append(row)
    if not by_task:
        return None
    # One look an arm, whatever the task, and no panel that nothing was measured for.
    numbers = {arm: number for number, arm in enumerate(dict.fromkeys(row.arm for row in found))}
    every = {task: panels_of(here, found) for task, here in by_task.items()}
    columns = max(map(len, every.values()))
    size = 3.4 * columns + 1.6, 3.4 * len(every) + 0.4
    figure, axes = plt.subplots(len(every), columns, figsize=size, layout="constrained", squeeze=False)
    for line, (task, panels) in zip(axes, every.items(), strict=True):
        here = by_task[task]
        arms = sorted(dict.fromkeys(row.arm for row in here), key=lambda arm: _mean(here, arm))
        for at, panel in zip(line, panels, strict=False):
            for arm in arms:
                _line(at, [row for row in panel.rows if row.arm == arm], panel.x, numbers[arm])
            at.set_xlabel(panel.label)
            if len(set(map(panel.x, panel.rows))) > 1:
                at.set_xscale("log")
                at.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                at.xaxis.set_minor_formatter(NullFormatter())
            at.xaxis.set_major_formatter("{x:g}")
            at.grid(alpha=0.3)
        line[0].set_ylabel(f"{task}: {task_of(task).quality}")
        line[0].legend(fontsize="x-small")
    figure.suptitle(f"{name}: mean over seeds, 95 % interval")
    held = io.BytesIO()
    figure.savefig(held, dpi=75)
    plt.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(held).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def panels_of(here: Sequence[Row], found: Sequence[Row]) -> list[Panel]:
    """Of one task: a panel a cost that ``found`` has; where the rate is an axis, a panel a place, along it."""
    if "lr" not in dict(here[0].where):
        return [
            Panel(label, [row for row in here if cost in row.costs], partial(_scaled, cost))
            for cost, label in COSTS.items()
            if any(cost in row.costs for row in found)
        ]
    places: dict[str, list[Row]] = defaultdict(list)
    for row in here:
        places["".join(f"{name} {value}, " for name, value in row.where if name not in ("task", "lr"))].append(row)
    return [Panel(f"{place}learning rate", rows, lambda row: row.lr) for place, rows in places.items()]


def _scaled(cost: str, row: Row) -> float:
    return row.costs[cost] / UNITS.get(cost, 1)


def _line(panel: plt.Axes, own: Sequence[Row], x: Callable[[Row], float], number: int) -> None:
    """One arm, its points in the order of x."""
    if not own:
        return
    points = sorted(own, key=x)
    means = [estimate(list(row.qualities.values())) for row in points]
    halves = [0.0 if m.count == 1 else m.half for m in means]
    look: dict[str, Any] = {"fmt": "osD^v<>PX*"[number // 10 % 10] + "-", "color": f"C{number % 10}", "markersize": 4}
    panel.errorbar([x(row) for row in points], [m.mean for m in means], halves, label=own[0].arm, **look)


def _mean(rows: Sequence[Row], arm: str) -> float:
    return statistics.fmean(q for row in rows if row.arm == arm for q in row.qualities.values())
