"""Count the products that Inductor launches without an operator of ours, once for each call of a compiled graph.

    before: out = compiled(*args)
    after:  count the forward products of the sites of args; out = compiled(*args);
            before the backward of out: refuse sites that cannot be trained, count the products of the gradients

Operators count their own runs. Refreshes, the notice of eager training and the report need the counts. A call here
takes about a microsecond for each site, and an operator 50 to 130 µs for each product.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from topkast.passes.aten.log import PassLog
from topkast.runtime.state.find_sites import site_of
from topkast.runtime.state.site_module import SiteModule

Counts = list[tuple[SiteModule, str, str, int]]  # site, product, kernel, how many in one run of the graph


def count_launches(compiled: Callable[..., Any], log: PassLog) -> Callable[..., Any]:
    """The compiled graph, or, if Inductor launches products in it, the graph with their counts.

    Args:
        compiled: takes the inputs of the graph.
        log: what the passes did to the graph.
    """
    if not log.launched:
        return compiled

    def run(*args: Any) -> Any:
        forward, backward = _counts(log.launched, args)
        _count(forward)
        found = compiled(*args)
        if backward:
            _before_backward(found, backward)
        return found

    return run


def _counts(launched: Counter[tuple[int, str, str]], args: tuple[Any, ...]) -> tuple[Counts, Counts]:
    forward: Counts = []
    backward: Counts = []
    for (position, product, kernel), count in launched.items():
        site = site_of(args[position])
        if site is not None:
            (backward if product.endswith("gradient") else forward).append((site, product, kernel, count))
    return forward, backward


def _count(counts: Counts) -> None:
    for site, product, kernel, count in counts:
        site.ran[product, kernel, ""] += count


def _before_backward(found: Any, counts: Counts) -> None:
    def before(_: Any) -> None:
        for site, *_rest in counts:
            site.check_trainable("a gradient")
        _count(counts)

    for node in _graph_nodes(found):
        node.register_prehook(before)


def _graph_nodes(found: Any) -> Iterator[Any]:
    """The node of autograd that runs the backward graph; none if no result needs a gradient. A result that is a view
    has the node of the view before that one."""
    results = found if isinstance(found, (tuple, list)) else [found]
    starts = [one.grad_fn for one in results if isinstance(one, Tensor) and one.grad_fn is not None]
    around = [*starts, *(node for start in starts for node, _ in start.next_functions if node is not None)]
    return iter({id(node): node for node in around if "CompiledFunction" in node.name()}.values())
