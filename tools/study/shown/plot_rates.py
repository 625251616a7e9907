"""Quality against the learning rate: a panel for each place of the grid, a line for each arm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from topkast.tools.common.figures import COLOURS, frame, svg

from .estimates import Row, estimate

MARKERS = "osD^v<>P"


def draw_rates(ran: Sequence[Row], name: str, says: str, path: Path) -> None:
    """A row of panels a task; their ends lie too close for names, so these stand above all panels.

    Args:
        ran: rows of a grid whose axes have the rate, each with a result.
        name: of the grid, for the title.
        says: the lines below the panels.
        path: of the SVG.
    """
    looks = {arm: (COLOURS[i], MARKERS[i]) for i, arm in enumerate(dict.fromkeys(row.arm for row in ran))}
    panels: dict[str, dict[str, list[Row]]] = {}
    for row in ran:
        place = ", ".join(f"{axis} {value}" for axis, value in row.where if axis not in ("task", "lr"))
        panels.setdefault(row.task, {}).setdefault(place, []).append(row)
    columns = max(map(len, panels.values()))
    with svg(path, height=2.1 * len(panels) + 0.9) as figure:
        grid = figure.subplots(len(panels), columns, squeeze=False)
        for line, (task, places) in zip(grid, panels.items(), strict=True):
            for axes, (place, rows) in zip(line, places.items(), strict=True):
                _draw_panel(axes, rows, looks)
                axes.set_title(place)
            line[0].set_ylabel(task)
        _name_lines(figure, grid.flat, name)
        frame(figure, "", f"Against the learning rate. {says}")


def _name_lines(figure: Figure, panels: Iterable[Axes], title: str) -> None:
    named: dict[str, Artist] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    legend = figure.legend(
        list(named.values()), list(named), loc="outside upper left", title=title, ncols=2, frameon=False,
        alignment="left", borderpad=0,
    )  # fmt: skip
    legend.get_title().set(size=matplotlib.rcParams["figure.titlesize"], weight="bold")


def _draw_panel(axes: Axes, rows: Sequence[Row], looks: dict[str, tuple[str, str]]) -> None:
    for arm, (colour, marker) in looks.items():
        if own := sorted((row for row in rows if row.arm == arm), key=lambda row: row.lr):
            means = [estimate(list(row.qualities.values())) for row in own]
            halves = [0.0 if mean.count == 1 else mean.half for mean in means]
            axes.errorbar(
                [row.lr for row in own], [mean.mean for mean in means], halves, label=arm, color=colour, marker=marker,
                elinewidth=0.9,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(sorted({row.lr for row in rows}), [f"{lr:g}" for lr in sorted({row.lr for row in rows})])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y")
