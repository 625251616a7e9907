"""The report as an HTML page without scripts and without other files."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from topkast.compiler.report.facts import Facts
from topkast.compiler.report.groups import layers_of, ran
from topkast.compiler.report.headlines import alike, headlines, reasons, title

if TYPE_CHECKING:
    from jinja2 import Template

WIDTH, HEIGHT, EDGE = 560, 150, 24  # the churn's picture and the room for its numbers
APART = 14  # between the labels of two lines


def page(report: Facts) -> str:
    """A whole page, with a row for each layer."""
    return _render(report, whole=True)


def fragment(report: Facts) -> str:
    """The part of the page that a notebook shows: everything except the rows for each layer."""
    return _render(report, whole=False)


@cache
def _template() -> Template:
    # A notebook or a page is rare, so jinja2 is imported only here.
    from jinja2 import Environment, StrictUndefined

    # Names of layers are the user's, so every value is escaped.
    pages = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return pages.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))


def _render(report: Facts, whole: bool) -> str:
    return _template().render(
        whole=whole,
        title=title(report),
        headlines=headlines(report),
        costs=_costs(report),
        warnings=alike(report),
        all_warnings=report.warnings,
        layers=layers_of(report.sites),
        churn=_churn(report.sites),
        dense=reasons(report),
        sites=[{**row, "ran": ran(row)} for row in report.sites],
    )


def _costs(report: Facts) -> dict[str, float]:
    """The costs of training, as shares of dense training; only shares that are known."""
    flops, sizes = report.totals["flops"], report.totals["bytes"]
    pairs = {
        "state in memory, sparse layers": (sizes["sites"]["sparse"], sizes["sites"]["dense"]),
        "state in memory, whole model": (sizes["model"]["sparse"], sizes["model"]["dense"]),
        "weight FLOPs of a training step": (flops["sparse_training"], flops["dense_training"]),
        "weight FLOPs of a forward": (flops["sparse_forward"], flops["dense_forward"]),
    }
    return {what: sparse / dense for what, (sparse, dense) in pairs.items() if dense}


def _churn(sites: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The picture of the mean churn at each refresh; None if there were fewer than two refreshes."""
    found: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for row in sites:
        for entry in row["churn"]:
            found[entry["step"]].append((entry["new_a"], entry["new_b"]))
    steps = sorted(found)
    if len(steps) < 2:
        return None
    lines = {name: [mean(pair[i] for pair in found[step]) for step in steps] for i, name in enumerate("AB")}
    top = max(0.01, *lines["A"], *lines["B"])

    def at(step: int, share: float) -> tuple[float, float]:
        along = (step - steps[0]) / (steps[-1] - steps[0])
        return EDGE * 2 + along * (WIDTH - EDGE * 5), HEIGHT - EDGE - share / top * (HEIGHT - 2 * EDGE)

    ends = {name: at(steps[-1], shares[-1])[1] for name, shares in lines.items()}
    lower, upper = sorted(ends, key=lambda name: ends[name], reverse=True)
    ends[upper] = min(ends[upper], ends[lower] - APART)
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "edge": EDGE,
        "right": at(steps[-1], 0)[0],
        "steps": (steps[0], steps[-1]),
        "top": top,
        "lines": [
            {
                "name": name,
                "points": " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in zip(steps, shares, strict=True)),
                "last": shares[-1],
                "label_at": ends[name],
            }
            for name, shares in lines.items()
        ],
    }
