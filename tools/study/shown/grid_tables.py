"""Tables of a grid in Markdown: one a point, best arm first, and one of all tasks for the page."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

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

    def markdown(self) -> str:
        """With an empty line at either end of the title."""
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
        rest = [f"{name} {value}" for name, value in row.where if name != "task"]
        points[", ".join([row.task, *rest])].append(row)
    return [_sheet(point, here, against) for point, here in points.items()]


def _sheet(point: str, here: Sequence[Row], against: str) -> Sheet:
    base = next((row for row in here if row.arm == against), None)
    dense = next((row.costs for row in here if row.arm in DENSE and row.costs), {})
    if any(row.tuned is not None for row in here):
        point += " (each arm at the rates, for matrices / for the rest, that its tuning runs chose)"
    elif any(row.rates > 1 for row in here):
        point += " (each arm at the rate with its best mean on these seeds, of as many as are said)"
    headings = [
        "arm", "lr", "steps", "seeds", f"{task_of(here[0].task).quality}: mean ± sd [95 %]",
        f"less {against} ± 95 %", f"FLOPs, of {here[0].unit} dense steps", "MB (of dense)",
        "measured time, s (of dense)",
    ]  # fmt: skip
    return Sheet(point, headings, [_cells(row, base, dense) for row in sorted(here, key=Row.mean)])


def _cells(row: Row, base: Row | None, dense: dict[str, float]) -> list[str]:
    rate = f"{row.lr:g}" + ("" if row.lr_rest is None else f" / {row.lr_rest:g}")
    if not row.costs:
        return [row.arm, rate, str(row.steps), "0", "not run", "", "", "", ""]
    left = [f"{row.diverged} diverged"] * bool(row.diverged) + [f"{row.missing} missing"] * bool(row.missing)
    return [
        row.arm, rate + f" of {row.rates}" * (row.rates > 1), str(row.steps),
        str(len(row.qualities)) + f" ({', '.join(left)})" * bool(left),
        str(estimate(list(row.qualities.values()))) if row.qualities else "-",
        less(row, base) if base is not None and base is not row else "", f"{row.costs['flops']:.3f}",
        _share(row, "bytes", 1e6, dense), _share(row, "time", 1, dense),
    ]  # fmt: skip


def less(row: Row, base: Row) -> str:
    """The mean difference, half of its interval, and over how many seeds where some are missing."""
    if (gap := row.against(base)) is None:
        return ""
    half = "" if math.isnan(gap.half) else f" ± {gap.half:.3f}"
    return f"{gap.mean:+.3f}{half}" + f", n = {gap.count}" * (gap.count < len(row.qualities))


def _share(row: Row, cost: str, unit: float, dense: dict[str, float]) -> str:
    """A cost, and in brackets what it is of the dense model's."""
    if cost not in row.costs:
        return "-"
    figure = f"{row.costs[cost] / unit:.2f}"
    return figure + (f" ({row.costs[cost] / dense[cost]:.0%})" if cost in dense else "")


def summary(found: Sequence[Row]) -> Sheet:
    """A table of docs/study.md: an arm a line, a task a column; order and costs are those of the first task."""
    tasks = list(dict.fromkeys(row.task for row in found))
    by_place = {(row.arm, row.task): row for row in found}
    headings = ["", *(f"{task}: {task_of(task).quality}" for task in tasks), "FLOPs, of dense", "state, MB"]
    lines = []
    for row in sorted((row for row in found if row.task == tasks[0]), key=Row.mean):
        each = [_short(by_place[row.arm, task]) if (row.arm, task) in by_place else "-" for task in tasks]
        costs = [f"{row.costs['flops']:.2f}", f"{row.costs['bytes'] / 1e6:.2f}"] if row.costs else ["-", "-"]
        lines.append([row.arm, *each, *costs])
    return Sheet("", headings, lines)


def _short(row: Row) -> str:
    if not row.qualities:
        return "diverged" if row.diverged else "not run"
    found = estimate(list(row.qualities.values()))
    half = f" [{found.mean - found.half:.2f}, {found.mean + found.half:.2f}]" if found.count > 1 else ""
    return f"{found.mean:.2f}{half}, n = {found.count}" + f" ({row.diverged} diverged)" * bool(row.diverged)
