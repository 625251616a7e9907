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

from topkast.runtime.record import SITES, alive, relatives
from topkast.runtime.renew import refresh_due


def key_positions(module: fx.GraphModule, examples: Sequence[Any]) -> list[int]:
    """Which inputs of a captured graph are keys of sites, in subgraphs (checkpointed regions) too."""
    found = []
    holders = [node for node in module.graph.nodes if node.op == "placeholder"]
    for position, (node, example) in enumerate(zip(holders, examples, strict=True)):
        source = node.meta.get("grapharg")
        real = source.example if source is not None else example
        if isinstance(real, Tensor) and any(site.key is real for site in alive()):
            found.append(position)
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
    keys, trains = key_positions(module, examples), torch.is_grad_enabled()
    compiled = compile_graph()
    if not keys:
        return compiled

    def run(*args: Any) -> Any:
        found = [site for position in keys if (site := SITES.get(int(args[position]))) is not None]
        for site in found:
            site.check_whole()
        # Those that this graph does not use as well: the same in eager mode, and on ranks that take other branches.
        if trains and any(site.due for site in found):
            refresh_due(relatives(found))
        return compiled(*args)

    return run
