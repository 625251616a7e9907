"""What every pass shares: timing, the count of its rewrites, and dumps of the graph around it."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import fx
from torch._subclasses.fake_tensor import unset_fake_temporarily


class Pass:
    """A rewrite. Subclasses implement :meth:`rewrite` and count with :meth:`matched` and :meth:`refused`."""

    def __init__(self) -> None:
        self.matches: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()

    def matched(self, what: str) -> None:
        self.matches[what] += 1

    def refused(self, why: str, node: fx.Node) -> None:
        """Leave ``node``, a ``weight`` or ``weight_grad``, as it is; ``explain_unfused`` tells the report."""
        self.refusals[why] += 1
        node.meta["refused"] = why

    def rewrite(self, graph: fx.Graph) -> None:
        """Change ``graph`` in place."""
        raise AssertionError(f"{type(self).__name__} must say what it rewrites")

    @property
    def name(self) -> str:
        return type(self).__name__


@dataclass
class PassRun:
    """One run of a pass: its rewrites by kind, what it refused and why, and how long it took."""

    name: str
    seconds: float
    matches: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)


LOG: list[PassRun] = []
_numbers = itertools.count()


def _dump(folder: str, number: int, stage: str, graph: fx.Graph, note: str = "") -> None:
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    text = graph.python_code("self").src
    (path / f"{number:04d}-{stage}.py").write_text(f"# {note}\n{text}" if note else text)


def run(pipeline: Sequence[type[Pass]], graph: fx.Graph) -> None:
    """Run passes in order. With ``TOPKAST_DEBUG=folder`` the graph before and after each is written there."""
    folder = os.environ.get("TOPKAST_DEBUG")
    for kind in pipeline:
        one, number = kind(), next(_numbers)
        if folder:
            _dump(folder, number, f"{one.name}-before", graph)
        start = time.perf_counter()
        with unset_fake_temporarily():  # passes compute with real positions
            one.rewrite(graph)
        graph.eliminate_dead_code()
        LOG.append(PassRun(one.name, time.perf_counter() - start, dict(one.matches), dict(one.refusals)))
        if folder:
            _dump(folder, number, f"{one.name}-after", graph, f"rewritten {one.matches}, refused {one.refusals}")
    graph.lint()


def summary() -> dict[str, dict[str, Any]]:
    """:data:`LOG` by pass: runs, seconds, and the sums of matches and refusals; passes without a match too."""
    found: dict[str, dict[str, Any]] = {}
    for entry in LOG:
        total = found.setdefault(entry.name, {"runs": 0, "seconds": 0.0, "matches": {}, "refusals": {}})
        total["runs"] += 1
        total["seconds"] += entry.seconds
        for kind in ("matches", "refusals"):
            total[kind] = dict(Counter(total[kind]) + Counter(getattr(entry, kind)))
    return found
