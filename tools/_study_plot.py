"""Quality against what it costs: one picture a task, one panel a cost."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from _study_table import Row, estimate
from _study_tasks import TASKS

PANELS = {
    "density": "forward density",
    "flops": "weight FLOPs of a step, share of dense",
    "cpu_seconds": "CPU seconds of a step, measured",
    "bytes": "bytes of training state",
}


def _place(row: Row, cost: str, densities: dict[str, float]) -> float:
    if cost != "density":
        return row.costs[cost]
    fwd = row.where.get("fwd")
    return densities[row.arm] if fwd is None else 1 - fwd


def plot(found: Sequence[Row], densities: dict[str, float], folder: Path) -> list[Path]:
    """Draw every task's arms, mean and 95 % interval over seeds, into ``folder``/TASK.png.

    Args:
        found: the rows; those without a result are left out.
        densities: arm -> forward density where the rows' points do not say it.
        folder: is made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_task: dict[str, list[Row]] = defaultdict(list)
    for row in found:
        if row.qualities:
            by_task[row.where["task"]].append(row)
    written = []
    for task, here in by_task.items():
        figure, axes = plt.subplots(1, len(PANELS), figsize=(4.4 * len(PANELS), 5), layout="constrained", sharey=True)
        arms = sorted({row.arm for row in here}, key=lambda arm: _mean(here, arm))
        for panel, cost in zip(axes, PANELS, strict=True):
            for number, arm in enumerate(arms):
                own = [(_place(row, cost, densities), row) for row in here if row.arm == arm]
                points = sorted(own, key=lambda point: point[0])
                means = [estimate(list(row.qualities.values())) for _, row in points]
                halves = [0.0 if m.count == 1 else m.half for m in means]
                look = {"fmt": "osD^v<>PX*"[number // 10 % 10] + "-", "color": f"C{number % 10}", "label": arm}
                panel.errorbar([place for place, _ in points], [m.mean for m in means], halves, **look)
            panel.set(xlabel=PANELS[cost], xscale="log")
            panel.grid(alpha=0.3)
        axes[0].set_ylabel(TASKS[task].quality)
        axes[-1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
        figure.suptitle(f"{task}: mean over seeds, 95 % interval")
        written.append(folder / f"{task}.png")
        figure.savefig(written[-1], dpi=110)
        plt.close(figure)
    return written


def _mean(rows: Sequence[Row], arm: str) -> float:
    return statistics.fmean(q for row in rows if row.arm == arm for q in row.qualities.values())
