"""Never keep a dense W_A from forward to backward: it is cheaper to make again from the values than to hold."""

from __future__ import annotations

from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from topkast.passes.aten.base import Pass
from topkast.passes.aten.nodes import MOVES, WEIGHT, is_cast


class RecomputeWeight(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        dense: set[fx.Node] = set()
        for node in graph.nodes:
            moved = node.target in MOVES or is_cast(node)
            if node.target is WEIGHT or (moved and node.args[0] in dense):
                dense.add(node)
                node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
                node.meta.setdefault("ac_graph_id", 0)
                self.matched("recomputed")
