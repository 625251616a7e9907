"""Put the refresh of a graph's sites, and of all others of their model, in front of the compiled graph.

    before: out = compiled(*args)
    after:  refresh_due(sites of args); out = compiled(*args)

The refresh stands in front of the compiled graph and not inside: a graph that writes to the values and the index would,
at every forward, mark them as changed for autograd, and a second forward before the backward would then be an error.
In front, nothing is marked unless something was refreshed. A refresh is in place, into fixed shapes, so nothing is
recompiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from topkast.runtime.state.find_sites import alive, relatives, site_of
from topkast.runtime.state.refresh import refresh_due
from topkast.runtime.state.site_module import SiteModule
from topkast.runtime.state.snapshots import restore_snapshots
from topkast.runtime.state.when import any_due
from topkast.runtime.training.standing_clock import notice_standing


def keyed_sites(module: fx.GraphModule, examples: Sequence[Any]) -> dict[int, SiteModule]:
    """The sites whose keys are inputs of a captured graph, by the input's position; keys of subgraphs (checkpointed
    regions) are inputs too."""
    found: dict[int, SiteModule] = {}
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    for position, (node, example) in enumerate(zip(placeholders, examples, strict=True)):
        source = node.meta.get("grapharg")
        real = source.example if source is not None else example
        if isinstance(real, Tensor):
            found.update((position, site) for site in alive() if site.key is real)
    return found


def insert_refresh(
    module: fx.GraphModule, examples: Sequence[Any], compile_graph: Callable[[], Callable[..., Any]]
) -> Callable[..., Any]:
    """The compiled graph behind a refresh of its sites.

    Args:
        module: the graph as captured. A graph without gradients refreshes nothing.
        examples: the inputs that the graph was captured with.
        compile_graph: gives the compiled graph.

    Returns:
        A callable that takes the inputs of the graph.
    """
    positions, trains = list(keyed_sites(module, examples)), torch.is_grad_enabled()
    compiled = compile_graph()
    if not positions:
        return compiled

    def run(*args: Any) -> Any:
        sites = [site for position in positions if (site := site_of(args[position])) is not None]
        for site in sites:
            site.check_whole()
        if any(site.snapshot is not None for site in sites):
            restore_snapshots(relatives(sites))
        # The model's sites that this graph does not use too: as in eager mode, and on ranks that take other branches.
        if trains and any_due(sites):
            refresh_due(relatives(sites))
        if trains:
            notice_standing(sites)
        return compiled(*args)

    return run
