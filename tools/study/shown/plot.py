"""One picture a grid: its arms with their qualities, quality against the rate, or quality against each cost."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, NullLocator

from topkast.tools.common.figures import BLUE, COLOURS, GREY, SMALL, VERMILLION, frame, svg
from topkast.tools.study.tasks import task_of

from .estimates import Row, estimate
from .grid_tables import DENSE

OWN = {"topkast": BLUE, "dense": VERMILLION}  # arms that the eye looks for; the others are grey
MARKERS = "osD^v<>P"
COSTS = {"time": "training time", "bytes": "training state", "file": "ONNX file", "latency": "time in ONNX Runtime"}
Panels = dict[str, dict[str, list[Row]]]  # task -> place -> rows


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
        _draw_rates(ran, name, f"Against the learning rate. {says}", path)
    elif name == "frontier" and any(row.arm in DENSE for row in ran):
        _draw_frontier(ran, name, says, path)
    else:
        _draw_arms(ran, name, says, path)
    return path


def _panels(ran: Sequence[Row], *apart: str) -> Panels:
    """The rows of each place; the axes in ``apart`` are no part of a place."""
    made: Panels = defaultdict(dict)
    for row in ran:
        place = ", ".join(f"{axis} {value}" for axis, value in row.where if axis not in ("task", *apart))
        made[row.task].setdefault(place or task_of(row.task).quality, []).append(row)
    return made


def _half(row: Row) -> float:
    half = estimate(list(row.qualities.values())).half
    return 0.0 if math.isnan(half) else half


def _draw_arms(ran: Sequence[Row], name: str, says: str, path: Path) -> None:
    """A row of panels a task, an arm a line, the best one first."""
    panels = _panels(ran)
    orders = {task: _order([row for rows in places.values() for row in rows]) for task, places in panels.items()}
    heights, columns = [len(order) + 1 for order in orders.values()], max(map(len, panels.values()))
    with svg(path, height=0.19 * sum(heights) + 0.45 * len(heights) + 0.8) as figure:
        grid = figure.subplots(len(panels), columns, squeeze=False, height_ratios=heights)
        for line, (task, places) in zip(grid, panels.items(), strict=True):
            for axes in line[len(places) :]:
                axes.set_axis_off()
            for axes, (place, rows) in zip(line, places.items(), strict=False):
                _draw_qualities(axes, place, orders[task], rows)
            line[0].set_ylabel(task)
            line[0].set_yticks(range(len(orders[task])), orders[task])
            for label in line[0].get_yticklabels():
                label.set_color(OWN.get(label.get_text(), GREY))
        frame(figure, name, says)


def _order(rows: Sequence[Row]) -> list[str]:
    ends = defaultdict(list)
    for row in rows:
        ends[row.arm].append(row.mean())
    return sorted(ends, key=lambda arm: sum(ends[arm]) / len(ends[arm]))


def _draw_qualities(axes: Axes, title: str, order: Sequence[str], rows: Sequence[Row]) -> None:
    axes.set(title=title, ylim=(len(order) - 0.4, -0.6), yticks=[])
    axes.tick_params(length=0)
    for row in rows:
        if row.arm == "topkast":
            axes.axvline(row.mean(), color=BLUE, linewidth=0.6, alpha=0.5)
        colour = OWN.get(row.arm, GREY)
        axes.errorbar([row.mean()], [order.index(row.arm)], xerr=[_half(row)], fmt="o", color=colour, elinewidth=1.4)
    axes.locator_params(axis="x", nbins=4)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def _draw_rates(ran: Sequence[Row], name: str, says: str, path: Path) -> None:
    """A panel a place, a line an arm; their ends lie too close for names, so these stand above all panels."""
    arms = list(dict.fromkeys(row.arm for row in ran))
    panels = _panels(ran, "lr")
    with svg(path, height=2.1 * len(panels) + 0.9) as figure:
        grid = figure.subplots(len(panels), max(map(len, panels.values())), squeeze=False)
        named: dict[str, Any] = {}
        for line, (task, places) in zip(grid, panels.items(), strict=True):
            for axes, (place, rows) in zip(line, places.items(), strict=True):
                named |= _draw_lines(axes, rows, arms)
                axes.set_title(place)
            line[0].set_ylabel(task)
        figure.legend(
            [named[arm] for arm in arms], arms, loc="outside upper left", title=name, ncols=2, frameon=False,
            alignment="left", borderpad=0,
        ).get_title().set(size=11.5, weight="bold")  # fmt: skip
        frame(figure, "", says)


def _draw_lines(axes: Axes, rows: Sequence[Row], arms: Sequence[str]) -> dict[str, Any]:
    """A line an arm over the rates; returns arm -> what the legend shows of it."""
    named: dict[str, Any] = {}
    for number, arm in enumerate(arms):
        if own := sorted((row for row in rows if row.arm == arm), key=lambda row: row.lr):
            named[arm] = axes.errorbar(
                [row.lr for row in own], [row.mean() for row in own], [_half(row) for row in own],
                color=COLOURS[number], marker=MARKERS[number], elinewidth=0.9,
            )  # fmt: skip
    rates = sorted({row.lr for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{lr:g}" for lr in rates])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y")
    return named


def _draw_frontier(ran: Sequence[Row], name: str, says: str, path: Path) -> None:
    """A panel a cost, in shares of the dense arm's; a cost that no other arm has been measured for has no panel."""
    base = next(row for row in ran if row.arm in DENSE)
    costs = [cost for cost in COSTS if cost in base.costs and any(cost in row.costs for row in ran if row is not base)]
    with svg(path, height=3.2) as figure:
        (panels,) = figure.subplots(1, max(1, len(costs)), squeeze=False, sharey=True)
        for axes, cost in zip(panels, costs, strict=False):
            for row in (row for row in ran if cost in row.costs):
                share, colour = row.costs[cost] / base.costs[cost], VERMILLION if row.arm.startswith("dense") else BLUE
                axes.errorbar([share], [row.mean()], [_half(row)], fmt="o", color=colour, elinewidth=1.2)
                short = row.arm.removeprefix("topkast ")  # blue says the rest
                axes.annotate(short, (share, row.mean()), (4, 4), textcoords="offset points", size=SMALL)
            axes.set_xlabel(f"{COSTS[cost]}, of {base.arm}")
            axes.set_xlim(left=0)
            axes.margins(x=0.25)
            axes.grid()
        panels[0].set_ylabel("bits per byte")
        frame(figure, name, f"Blue: Top-KAST, sparsity and width. {says}")
