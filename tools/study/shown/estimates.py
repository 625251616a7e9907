"""From runs to figures: mean, standard deviation, 95 % interval, and the difference from one arm seed by seed."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy import stats

from topkast.tools.study.grid import Point, arms, chosen
from topkast.tools.study.store import Results
from topkast.tools.study.times import Times


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
    """One arm at one point of the grid, at its best rate.

    Args:
        where: (axis, value) of the grid's axes, the seed left out.
        lr, lr_rest: the rates, of the fewest seeds that diverged or were not run, then with the best mean.
        rates: how many rates the arm has results of.
        qualities: seed -> quality, of the runs that stayed finite.
        diverged, missing: seeds whose loss was not finite, and that have not been run.
        costs: means of a whole run's "density" (forward), "flops" (of weights, in dense runs of ``unit`` steps),
            "bytes", "time" (seconds by the measured step), "file" and "latency" (of dense); the last three are absent
            where not measured. Empty without a result.
        measured: "time", "bytes", "file" and "latency" as in ``costs``, also where nothing was trained yet.
        tuned: quality of the tuning run that chose the rates; None without one.
    """

    arm: str
    where: tuple[tuple[str, Any], ...]
    lr: float
    rates: int
    steps: int
    qualities: dict[int, float]
    diverged: int
    missing: int
    costs: dict[str, float]
    unit: int
    lr_rest: float | None = None
    tuned: float | None = None
    measured: dict[str, float] = field(default_factory=dict)

    @property
    def task(self) -> str:
        """Of the row's axes."""
        return dict(self.where)["task"]

    def mean(self) -> float:
        """Mean quality, infinite for none."""
        return statistics.fmean(self.qualities.values()) if self.qualities else math.inf

    def against(self, other: Row) -> Estimate | None:
        """The mean difference over the seeds that both have."""
        shared = self.qualities.keys() & other.qualities.keys()
        return estimate([self.qualities[s] - other.qualities[s] for s in sorted(shared)]) if shared else None


def rows(grid: Sequence[Point], held: Results, times: Times) -> list[Row]:
    """A row for each arm and place, in the order of the grid: at the rates that tuning runs chose; without such, at
    those with the best mean."""
    return [_arm(group, held, times) for group in arms(grid)]


def _arm(group: Sequence[Point], held: Results, times: Times) -> Row:
    points = chosen(group, held)
    by_rate: dict[Any, list[Point]] = defaultdict(list)
    for point in points or group:
        by_rate[point.run.lr, point.run.lr_rest].append(point)
    each = [_row(same, held if points else {}, times) for same in by_rate.values()]
    best = min(each, key=lambda row: (not row.costs, row.diverged, row.missing, row.mean()))
    best.rates = max(1, sum(bool(row.costs) for row in each))
    if points and group[0].tuned:
        best.rates = len({point.trial().key for point in group})
        best.tuned = held[points[0].trial().key]["quality"]
    return best


def compared(found: Sequence[Row]) -> list[Row]:
    """The rows of the places where at least two arms have a result."""
    ran = Counter(row.where for row in found if row.costs)
    return [row for row in found if ran[row.where] > 1]


def _row(points: Sequence[Point], held: Results, times: Times) -> Row:
    first, run = points[0], points[0].run
    results = {point.run.seed: held[point.run.key] for point in points if point.run.key in held}
    good = {seed: result["quality"] for seed, result in results.items() if result["quality"] is not None}
    measured, costs = times.costs(run), dict[str, float]()
    if results:
        mean = {name: statistics.fmean(result[name] for result in results.values()) for name in ("flops", "bytes")}
        own = {"density": 1 - (run.fwd or 0.0), "flops": mean["flops"] * run.steps / first.unit, "bytes": mean["bytes"]}
        costs = measured | own
    return Row(
        first.arm, tuple((dict(first.where) | {"task": run.task}).items()), run.lr, 1, run.steps, good,
        len(results) - len(good), len({point.run.seed for point in points}) - len(results), costs, first.unit,
        run.lr_rest, None, measured,
    )  # fmt: skip
