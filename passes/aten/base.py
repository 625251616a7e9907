"""The base of every pass: timing, the count of its rewrites, and dumps of the graph around it."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import fx
from torch._subclasses.fake_tensor import unset_fake_temporarily

from .log import PassLog, PassRun
from .moves import free_positions
from .nodes import lasting_meta


class Pass:
    """A rewrite. Subclasses implement :meth:`rewrite`.

    They count rewrites with :meth:`replace` or :meth:`matched`, and what they leave alone with :meth:`refused`.
    """

    def __init__(self) -> None:
        self.matches: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()

    def matched(self, what: str) -> None:
        """Count a rewrite of the kind ``what``."""
        self.matches[what] += 1

    def replace(self, node: fx.Node, new: fx.Node, what: str) -> None:
        """Put ``new`` in the place of ``node``, which leaves the graph, and count a rewrite of the kind ``what``.

        ``new`` also gets the metadata of ``node`` that it does not have yet.
        """
        new.meta = {**lasting_meta(node), **new.meta}
        node.replace_all_uses_with(new)
        node.graph.erase_node(node)
        self.matched(what)

    def refused(self, why: str, node: fx.Node) -> None:
        """Leave ``node``, which computes with a sparse weight, as it is; ``explain_unfused`` writes ``why`` into it."""
        self.refusals[why] += 1
        node.meta["refused"] = why

    def rewrite(self, graph: fx.Graph) -> None:
        """Change ``graph`` in place."""
        raise AssertionError(f"{type(self).__name__} must say what it rewrites")

    @property
    def name(self) -> str:
        return type(self).__name__


_numbers = itertools.count()


def _dump(folder: str, number: int, stage: str, graph: fx.Graph, note: str = "") -> None:
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    text = graph.python_code("self").src
    (path / f"{number:04d}-{stage}.py").write_text(f"# {note}\n{text}" if note else text)


def run(pipeline: Sequence[Callable[[], Pass]], graph: fx.Graph, log: PassLog) -> None:
    """Run passes in order. With ``TOPKAST_DEBUG=folder`` the graph before and after each is written there.

    Args:
        pipeline: the passes.
        graph: changed in place.
        log: gets an entry for each pass.
    """
    folder = os.environ.get("TOPKAST_DEBUG")
    for kind in pipeline:
        rule, number = kind(), next(_numbers)
        if folder:
            _dump(folder, number, f"{rule.name}-before", graph)
        start = time.perf_counter()
        with unset_fake_temporarily():  # passes compute with real positions
            rule.rewrite(graph)
        graph.eliminate_dead_code()
        log.runs.append(PassRun(rule.name, time.perf_counter() - start, dict(rule.matches), dict(rule.refusals)))
        if folder:
            _dump(folder, number, f"{rule.name}-after", graph, f"rewritten {rule.matches}, refused {rule.refusals}")
    free_positions()
    graph.lint()
