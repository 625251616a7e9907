"""From runs to figures: mean, standard deviation, 95 % interval, and the difference from one arm seed by seed."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from _study_run import Run
from _study_store import Results
from _study_tasks import TASKS
from rich.table import Table
from scipy import stats

COSTS = ("flops", "bytes", "cpu_seconds")
OF_TASK = ("seed", "steps", "batch", "lr", "weight_decay")  # what is averaged over, or goes with the task


@dataclass(frozen=True)
class Estimate:
    """A mean over ``count`` seeds; ``half`` is half the width of its 95 % interval by Student's t, NaN for one seed."""

    mean: float
    deviation: float
    half: float
    count: int

    def __str__(self) -> str:
        if math.isnan(self.half):
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ± {self.deviation:.3f} [{self.mean - self.half:.3f}, {self.mean + self.half:.3f}]"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation and interval of at least one value."""
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Estimate(mean, math.nan, math.nan, 1)
    deviation = statistics.stdev(values)
    return Estimate(mean, deviation, float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n), n)


@dataclass
class Row:
    """One arm at one point of the grid.

    Args:
        where: the fields in which the grid's points differ, the seed left out.
        qualities: seed -> quality, of the runs that stayed finite.
        diverged, missing: seeds whose loss was not finite, and that have not been run.
        costs: means of :data:`COSTS`.
    """

    arm: str
    where: dict[str, Any]
    qualities: dict[int, float]
    diverged: int
    missing: int
    costs: dict[str, float]

    def against(self, other: Row) -> Estimate | None:
        """The mean difference over the seeds that both have."""
        shared = self.qualities.keys() & other.qualities.keys()
        return estimate([self.qualities[s] - other.qualities[s] for s in sorted(shared)]) if shared else None


def rows(grid: Sequence[tuple[str, Run]], held: Results) -> list[Row]:
    """A row for each arm and point, in the order of the grid."""
    axes = _axes(grid)
    groups: dict[str, list[Run]] = defaultdict(list)
    heads: dict[str, tuple[str, dict[str, Any]]] = {}
    for arm, run in grid:
        where = {name: getattr(run, name) for name in axes}
        key = f"{where} {arm}"
        heads[key] = arm, where
        groups[key].append(run)
    found = []
    for key, runs in groups.items():
        results = {run.seed: held[run.key] for run in runs if run.key in held}
        good = {seed: result["quality"] for seed, result in results.items() if result["quality"] is not None}
        costs = {name: statistics.fmean(r[name] for r in results.values()) for name in COSTS} if results else {}
        arm, where = heads[key]
        found.append(Row(arm, where, good, len(results) - len(good), len(runs) - len(results), costs))
    return found


def _axes(grid: Sequence[tuple[str, Run]]) -> list[str]:
    """Fields that differ between runs of one arm: those are the grid's axes, whatever the arms set."""
    found: dict[str, None] = {"task": None}
    by_arm: dict[str, dict[str, set]] = defaultdict(lambda: defaultdict(set))
    for arm, run in grid:
        for name, value in asdict(run).items():
            by_arm[arm][name].add(value)
    for values in by_arm.values():
        found |= {
            name: None for name, seen in values.items() if len(seen) > 1 and name not in ("seed", "steps", "batch")
        }
    return [name for name in found if name not in ("lr", "weight_decay")] or ["task"]


def tables(found: Sequence[Row], against: str) -> list[Table]:
    """One table a point of the grid, best first; ``against`` is the arm that the others are compared with."""
    points: dict[str, list[Row]] = defaultdict(list)
    for row in found:
        points[", ".join(f"{name} {value}" for name, value in row.where.items() if value is not None)].append(row)
    made = []
    for point, here in points.items():
        base = next((row for row in here if row.arm == against), None)
        dense = next((row.costs for row in here if row.arm == "dense" and row.costs), None)
        table = Table(title=point, title_justify="left")
        headings = [
            "arm",
            "seeds",
            f"{TASKS[here[0].where['task']].quality}: mean ± sd [95 %]",
            f"less {against} [95 %]",
        ]
        for heading in [*headings, "FLOPs", "MB", "CPU ms a step"]:
            table.add_column(heading, justify="left" if heading == "arm" else "right")
        for row in sorted(here, key=lambda row: statistics.fmean(row.qualities.values() or [math.inf])):
            table.add_row(row.arm, *_cells(row, base, dense))
        made.append(table)
    return made


def _cells(row: Row, base: Row | None, dense: dict[str, float] | None) -> list[str]:
    if not row.costs:
        return ["0", "not run", "", "", "", ""]
    left = [f"{row.diverged} diverged"] * bool(row.diverged) + [f"{row.missing} missing"] * bool(row.missing)
    seeds = str(len(row.qualities)) + (f" ({', '.join(left)})" if left else "")
    quality = str(estimate(list(row.qualities.values()))) if row.qualities else "-"
    gap = row.against(base) if base is not None and base is not row else None
    difference = "" if gap is None else f"{gap.mean:+.3f}" + ("" if math.isnan(gap.half) else f" ± {gap.half:.3f}")
    megabytes = f"{row.costs['bytes'] / 1e6:.2f}"
    if dense:
        megabytes += f" ({row.costs['bytes'] / dense['bytes']:.0%})"
    return [seeds, quality, difference, f"{row.costs['flops']:.3f}", megabytes, f"{1e3 * row.costs['cpu_seconds']:.1f}"]
