"""The log of passes: what each pass did to the graphs of one compile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class PassRun:
    """One run of a pass: its rewrites by kind, its refusals by reason, and how long the run took."""

    name: str
    seconds: float
    matches: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)


@dataclass
class PassLog:
    """The runs of passes over the graphs of one compile, in order.

    Args:
        runs: one for each pass and graph.
        launched: (position of the key among the graph's inputs, product, kernel) -> how many products of this kind
            Inductor launches without an operator of ours.
    """

    runs: list[PassRun] = field(default_factory=list)
    launched: Counter[tuple[int, str, str]] = field(default_factory=Counter)


def summary(logs: Iterable[PassLog]) -> dict[str, dict[str, Any]]:
    """The runs of some logs by pass: their number, their seconds, and the sums of matches and refusals.

    A pass that matched nothing is there too.
    """
    totals: dict[str, dict[str, Any]] = {}
    for run in (run for log in logs for run in log.runs):
        total = totals.setdefault(run.name, {"runs": 0, "seconds": 0.0, "matches": {}, "refusals": {}})
        total["runs"] += 1
        total["seconds"] += run.seconds
        for kind in ("matches", "refusals"):
            total[kind] = dict(Counter(total[kind]) + Counter(getattr(run, kind)))
    return totals
