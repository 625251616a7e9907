"""Put the refresh of a graph's sites, and of all others of their model, before its first op.

It stands in front of the compiled graph and not inside it: a graph that writes to the values and the index would, at
every forward, mark them as changed for autograd, and a second forward before the backward would then be an error.
In front, nothing is marked unless something was refreshed; it is in place into fixed shapes, so nothing is recompiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from topkast.runtime.state.copies import settle
from topkast.runtime.state.refresh import refresh_due
from topkast.runtime.state.registry import SITES, alive, relatives
from topkast.runtime.state.site import Site
from topkast.runtime.training.standing_clock import notice_standing


def keyed_sites(module: fx.GraphModule, examples: Sequence[Any]) -> dict[int, Site]:
    """Position -> site of those inputs of a captured graph that are keys, in subgraphs (checkpointed regions) too."""
    found: dict[int, Site] = {}
    holders = [node for node in module.graph.nodes if node.op == "placeholder"]
    for position, (node, example) in enumerate(zip(holders, examples, strict=True)):
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
        module: the graph as captured; one without gradients refreshes nothing.
        examples: its inputs.
        compile_graph: compiles it.
    """
    keys, trains = list(keyed_sites(module, examples)), torch.is_grad_enabled()
    compiled = compile_graph()
    if not keys:
        return compiled

    def run(*args: Any) -> Any:
        found = [site for position in keys if (site := SITES.get(int(args[position]))) is not None]
        for site in found:
            site.check_whole()
        if any(site.snapshot is not None for site in found):
            settle(relatives(found))
        # Those that this graph does not use as well: the same in eager mode, and on ranks that take other branches.
        if trains and any(site.due for site in found):
            refresh_due(relatives(found))
        if trains:
            notice_standing(found)
        return compiled(*args)

    return run
