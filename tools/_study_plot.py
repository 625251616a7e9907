"""Quality against what it costs: one picture a grid, a row of panels a task, one panel a cost."""

from __future__ import annotations

import io
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from _study_rows import Row, estimate
from _study_tasks import task_of
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image

PANELS = {
    "density": "forward density",
    "flops": "weight FLOPs, in dense runs",
    "time": "measured time, s",
    "bytes": "training state, MB",
}
UNITS = {"bytes": 1e6}  # of a panel whose cost is kept in another unit
COLOURS = 128  # enough for ten arms and letters, and half of the bytes


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
    costs = [cost for cost in PANELS if any(cost in row.costs for row in found)]
    size = 3.4 * len(costs) + 1.6, 3.4 * len(by_task) + 0.4
    figure, axes = plt.subplots(len(by_task), len(costs), figsize=size, layout="constrained", squeeze=False)
    for panels, (task, here) in zip(axes, by_task.items(), strict=True):
        arms = sorted(dict.fromkeys(row.arm for row in here), key=lambda arm: _mean(here, arm))
        for panel, cost in zip(panels, costs, strict=True):
            for arm in arms:
                _line(panel, [row for row in here if row.arm == arm and cost in row.costs], cost, numbers[arm])
            places = {row.costs[cost] for row in here if cost in row.costs}
            panel.set_xlabel(PANELS[cost])
            if len(places) > 1:
                panel.set_xscale("log")
                panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                panel.xaxis.set_minor_formatter(NullFormatter())
            panel.xaxis.set_major_formatter("{x:g}")
            panel.grid(alpha=0.3)
        panels[0].set_ylabel(f"{task}: {task_of(task).quality}")
        panels[0].legend(fontsize="x-small")
    figure.suptitle(f"{name}: mean over seeds, 95 % interval")
    held = io.BytesIO()
    figure.savefig(held, dpi=75)
    plt.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(held).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    return path


def _line(panel: plt.Axes, own: Sequence[Row], cost: str, number: int) -> None:
    """One arm, its points in the order of what they cost."""
    if not own:
        return
    points = sorted(own, key=lambda row: row.costs[cost])
    means = [estimate(list(row.qualities.values())) for row in points]
    halves = [0.0 if m.count == 1 else m.half for m in means]
    look = {"fmt": "osD^v<>PX*"[number // 10 % 10] + "-", "color": f"C{number % 10}", "markersize": 4}
    places = [row.costs[cost] / UNITS.get(cost, 1) for row in points]
    panel.errorbar(places, [m.mean for m in means], halves, label=own[0].arm, **look)


def _mean(rows: Sequence[Row], arm: str) -> float:
    return statistics.fmean(q for row in rows if row.arm == arm for q in row.qualities.values())
