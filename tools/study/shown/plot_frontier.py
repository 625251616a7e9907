"""Quality against what a model costs: a panel a cost, a point an arm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from topkast.tools.common.figures import BLUE, SMALL, VERMILLION, frame, svg

from .estimates import Row, estimate
from .grid_tables import DENSE

COSTS = {"time": "training time", "bytes": "training state", "file": "ONNX file", "latency": "time in ONNX Runtime"}


def draw_frontier(ran: Sequence[Row], says: str, path: Path) -> None:
    """Costs are in shares of the dense arm's; a cost that no other arm has been measured for has no panel.

    Args:
        ran: rows of the grid, each with a result, the dense arm among them.
        says: the lines below the panels.
        path: of the SVG.
    """
    base = next(row for row in ran if row.arm in DENSE)
    costs = [cost for cost in COSTS if cost in base.costs and any(cost in row.costs for row in ran if row is not base)]
    with svg(path, height=3.2) as figure:
        (panels,) = figure.subplots(1, max(1, len(costs)), squeeze=False, sharey=True)
        for axes, cost in zip(panels, costs, strict=False):
            for row in (row for row in ran if cost in row.costs):
                found = estimate(list(row.qualities.values()))
                share, half = row.costs[cost] / base.costs[cost], 0.0 if found.count == 1 else found.half
                colour = VERMILLION if row.arm.startswith("dense") else BLUE
                axes.errorbar([share], [found.mean], [half], fmt="o", color=colour, elinewidth=1.2)
                axes.annotate(row.arm, (share, found.mean), (4, 4), textcoords="offset points", size=SMALL)
            axes.set_xlabel(f"{COSTS[cost]}, of {base.arm}")
            axes.set_xlim(left=0)
            axes.grid()
        panels[0].set_ylabel("bits per byte")
        frame(figure, "frontier", says)
