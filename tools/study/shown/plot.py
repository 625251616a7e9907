"""One picture a grid: the arms as lines with their names, each with its quality and what it costs.

A grid whose axis is the learning rate is drawn by ``plot_rates`` instead.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from topkast.tools.common.figures import BLUE, FAINT, GREY, SMALL, VERMILLION, frame, svg
from topkast.tools.study.tasks import task_of

from .estimates import Row, estimate
from .grid_tables import DENSE
from .plot_frontier import draw_frontier
from .plot_rates import draw_rates

COSTS = {"flops": ("FLOPs", 1.0), "time": ("time, s", 1.0), "bytes": ("state, MB", 1e6)}  # title, unit
OWN = {"topkast": BLUE, "dense": VERMILLION}  # arms that the eye looks for; the others are grey
ACROSS = 4  # panels beside each other; more could not be read


@dataclass(frozen=True)
class Line:
    """Panels beside each other: the same arms, from top to bottom.

    Args:
        task: of all of them.
        arms: their names, the best one first.
        places: title -> arm -> its row at that place.
        costs: names in ``COSTS`` of those that differ, if there is one place; more places leave no room.
    """

    task: str
    arms: list[str]
    places: dict[str, dict[str, Row]]
    costs: list[str]


def plot(found: Sequence[Row], name: str, path: Path) -> Path | None:
    """Draw every task's arms, mean and 95 % interval over seeds, into the SVG ``path``.

    Args:
        found: the rows; those without a result are left out.
        name: of the grid, for the title.
        path: its folder is made if it is not there.

    Returns:
        The path, or None if there is nothing to draw.
    """
    if not (ran := [row for row in found if row.qualities]):
        return None
    tasks = dict.fromkeys(row.task for row in ran)
    says = "Mean over seeds and its 95 % interval; lower is better. "
    says += "; ".join(f"{task}: {task_of(task).quality}" for task in tasks) + "."
    if "lr" in dict(ran[0].where):
        draw_rates(ran, name, says, path)
    elif name == "frontier" and any(row.arm in DENSE for row in ran):
        draw_frontier(ran, says, path)
    else:
        _draw_arms(ran, name, says, path)
    return path


def lines_of(ran: Sequence[Row]) -> list[Line]:
    """A line a task, or several if it has many places."""
    made = []
    for task in dict.fromkeys(row.task for row in ran):
        here = [row for row in ran if row.task == task]
        arms = sorted(dict.fromkeys(row.arm for row in here), key=lambda arm: _mean(here, arm))
        places: dict[str, dict[str, Row]] = {}
        for row in here:
            where = ", ".join(f"{name} {value}" for name, value in row.where if name != "task")
            places.setdefault(where or task_of(task).quality, {})[row.arm] = row
        costs = [cost for cost in COSTS if len(places) == 1 and _differ(cost, here)]
        across = math.ceil(len(places) / math.ceil(len(places) / ACROSS))
        titles = list(places)
        for start in range(0, len(titles), across):
            made.append(Line(task, arms, {title: places[title] for title in titles[start : start + across]}, costs))
    return made


def _draw_arms(ran: Sequence[Row], name: str, says: str, path: Path) -> None:
    lines = lines_of(ran)
    counts = [len(line.arms) for line in lines]
    columns = max(len(line.places) + len(line.costs) for line in lines)
    first = 1.6 if lines[0].costs else 1.0
    if lines[0].costs:
        says = f"FLOPs: of the weights, in dense runs. State: what training keeps from step to step.\n{says}"
    with svg(path, height=0.19 * sum(counts) + 0.62 * len(lines) + 0.8) as figure:
        widths, heights = [first, *[1.0] * (columns - 1)], [count + 1 for count in counts]
        grid = figure.subplots(len(lines), columns, squeeze=False, width_ratios=widths, height_ratios=heights)
        for line, panels in zip(lines, grid, strict=True):
            _draw_line(panels, line)
        frame(figure, name, says)


def _draw_line(panels: Sequence[Axes], line: Line) -> None:
    for axes in panels:
        axes.set_ylim(len(line.arms) - 0.4, -0.6)
        axes.tick_params(length=0)
        axes.set_yticks([])
    for axes, (title, rows) in zip(panels, line.places.items(), strict=False):
        _draw_qualities(axes, title, line.arms, rows)
    for axes, cost in zip(panels[len(line.places) :], line.costs, strict=False):
        _draw_cost(axes, cost, line.arms, next(iter(line.places.values())))
    for axes in panels[len(line.places) + len(line.costs) :]:
        axes.set_axis_off()
    panels[0].set_ylabel(line.task)
    panels[0].set_yticks(range(len(line.arms)), line.arms)
    for label in panels[0].get_yticklabels():
        label.set_color(OWN.get(label.get_text(), GREY))


def _draw_qualities(axes: Axes, title: str, arms: Sequence[str], rows: dict[str, Row]) -> None:
    if (ours := rows.get("topkast")) is not None:
        axes.axvline(ours.mean(), color=BLUE, linewidth=0.6, alpha=0.5)
    for at, arm in enumerate(arms):
        if arm in rows:
            found = estimate(list(rows[arm].qualities.values()))
            half = 0.0 if found.count == 1 else found.half
            axes.errorbar([found.mean], [at], xerr=[half], fmt="o", color=OWN.get(arm, GREY), elinewidth=1.4)
    axes.set_title(title)
    axes.locator_params(axis="x", nbins=4)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def _draw_cost(axes: Axes, cost: str, arms: Sequence[str], rows: dict[str, Row]) -> None:
    label, unit = COSTS[cost]
    values = {arm: rows[arm].costs[cost] / unit for arm in arms if arm in rows and cost in rows[arm].costs}
    most = max(values.values())
    for at, arm in enumerate(arms):
        if arm in values:
            axes.barh(at, values[arm], 0.7, color=OWN.get(arm, FAINT), alpha=0.7 if arm in OWN else 1)
            axes.text(values[arm] + 0.03 * most, at, f"{values[arm]:.3g}", va="center", size=SMALL)
    axes.set_xlim(0, 1.4 * most)
    axes.set_title(label)
    axes.set_xticks([])
    axes.spines[["left", "bottom"]].set_visible(False)


def _differ(cost: str, rows: Sequence[Row]) -> bool:
    return len({f"{row.costs[cost]:.3g}" for row in rows if cost in row.costs}) > 1


def _mean(rows: Sequence[Row], arm: str) -> float:
    return statistics.fmean(q for row in rows if row.arm == arm for q in row.qualities.values())
