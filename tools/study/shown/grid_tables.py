"""Tables of a grid: one a point, best arm first, for the terminal and as Markdown."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from topkast.tools.common import markdown
from topkast.tools.study.tasks import task_of

from .estimates import Row, estimate

DENSE = ("dense", "dense 128")  # arms that costs are given in shares of


@dataclass(frozen=True)
class Sheet:
    """A table: the first column is text, the others are figures; ``note`` stands below it."""

    title: str
    headings: list[str]
    lines: list[list[str]]
    note: str = ""

    def rich(self) -> Table:
        """For the terminal."""
        table = Table(title=self.title, title_justify="left", caption=self.note or None, caption_justify="left")
        for number, heading in enumerate(self.headings):
            table.add_column(heading, justify="right" if number else "left")
        for line in self.lines:
            table.add_row(*line)
        return table

    def markdown(self) -> str:
        """For a file, with an empty line at either end of the title."""
        title, note = ([f"**{self.title}**", ""] if self.title else []), (["", self.note] if self.note else [])
        return "\n".join([*title, markdown.table(self.headings, self.lines, numbers=True), *note]) + "\n"


def baseline(found: Sequence[Row]) -> str:
    """The arm that the others of a grid are compared with: topkast, or dense where its arms have widths."""
    names = [row.arm for row in found]
    return "topkast" if "topkast" in names else names[0]


def sheets(found: Sequence[Row], against: str) -> list[Sheet]:
    """One table a point of the grid; ``against`` is the arm that the others are compared with, seed by seed."""
    points: dict[str, list[Row]] = defaultdict(list)
    for row in found:
        points[place(row)].append(row)
    return [_sheet(point, here, against) for point, here in points.items()]


def place(row: Row) -> str:
    """Where on the axes, in words."""
    where = dict(row.where)
    task = where.pop("task")
    return ", ".join([task, *(f"{name} {value}" for name, value in where.items())])


def _sheet(point: str, here: Sequence[Row], against: str) -> Sheet:
    base = next((row for row in here if row.arm == against), None)
    dense = next((row.costs for row in here if row.arm in DENSE and row.costs), {})
    title = point
    if any(row.tuned is not None for row in here):
        title += " (each arm at the rates, for matrices / for the rest, that its tuning runs chose)"
    elif any(row.rates > 1 for row in here):
        title += " (each arm at the rate with its best mean on these seeds, of as many as are said)"
    headings = [
        "arm", "lr", "steps", "seeds", f"{task_of(here[0].task).quality}: mean ± sd [95 %]",
        f"less {against} ± 95 %", f"FLOPs, of {here[0].unit} dense steps", "MB (of dense)",
        "measured time, s (of dense)",
    ]  # fmt: skip
    return Sheet(title, headings, [_cells(row, base, dense) for row in sorted(here, key=Row.mean)])


def _cells(row: Row, base: Row | None, dense: dict[str, float]) -> list[str]:
    if not row.costs:
        return [row.arm, _rate(row), str(row.steps), "0", "not run", "", "", "", ""]
    left = [f"{row.diverged} diverged"] * bool(row.diverged) + [f"{row.missing} missing"] * bool(row.missing)
    seeds = str(len(row.qualities)) + (f" ({', '.join(left)})" if left else "")
    rate = _rate(row) + (f" of {row.rates}" if row.rates > 1 else "")
    gap = row.against(base) if base is not None and base is not row else None
    difference = "" if gap is None else f"{gap.mean:+.3f}" + ("" if math.isnan(gap.half) else f" ± {gap.half:.3f}")
    if gap is not None and gap.count < len(row.qualities):
        difference += f", n = {gap.count}"
    return [
        row.arm, rate, str(row.steps), seeds, str(estimate(list(row.qualities.values()))) if row.qualities else "-",
        difference, f"{row.costs['flops']:.3f}", share(row, "bytes", 1e6, dense), share(row, "time", 1, dense),
    ]  # fmt: skip


def _rate(row: Row) -> str:
    return f"{row.lr:g}" + ("" if row.lr_rest is None else f" / {row.lr_rest:g}")


def share(row: Row, cost: str, unit: float, dense: dict[str, float]) -> str:
    """A cost, and in brackets what it is of the dense model's."""
    if cost not in row.costs:
        return "-"
    figure = f"{row.costs[cost] / unit:.2f}"
    return figure + (f" ({row.costs[cost] / dense[cost]:.0%})" if cost in dense else "")
