"""Never keep a dense W_A from forward to backward: to make W_A again from the values is cheaper than to hold it.

before: w = weight(values, ...); y = sin(w)    and the backward reads w
after:  the same, but the backward makes its own w = weight(values, ...)
"""

from __future__ import annotations

from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from topkast.passes.aten.base import Pass
from topkast.passes.aten.moves import MOVES
from topkast.passes.aten.nodes import is_cast
from topkast.passes.aten.weight_call import WEIGHT


class RecomputeWeight(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        dense: set[fx.Node] = set()
        for node in graph.nodes:
            is_moved = node.target in MOVES or is_cast(node)
            if node.target is WEIGHT or (is_moved and node.args[0] in dense):
                dense.add(node)
                node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
                node.meta.setdefault("ac_graph_id", 0)
                self.matched("recomputed")
