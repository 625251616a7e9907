"""Move casts off the dense weight onto the compact values, and off dense gradients onto sampled ones.

Autocast casts W_A; elementwise ops commute with scattering and sampling, so the few values can be cast instead. For
the same reason a sum of dense gradients (a weight used twice) becomes a sum of sampled ones, each of which can fuse.
"""

from __future__ import annotations

from torch import fx

from topkast.passes.aten.base import Pass
from topkast.passes.aten.nodes import WEIGHT, WEIGHT_GRAD, aten, emit, is_cast, source


class SinkCasts(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        # A rewrite may expose another one above it: repeat until nothing moves.
        while any(self._weight(graph, n) or self._gradient(graph, n) for n in list(graph.nodes) if n.users):
            pass

    def _weight(self, graph: fx.Graph, node: fx.Node) -> bool:
        """cast(move*(weight(v))) -> move*(weight(cast(v)))"""
        if not is_cast(node):
            return False
        found, chain = source(node.args[0])
        if found is None or found.target is not WEIGHT:
            return False
        with graph.inserting_before(node):
            values = emit(graph, node.target, found.args[0], *node.args[1:], like=node, **node.kwargs)  # type: ignore[arg-type]
            new = emit(graph, WEIGHT, values, *found.args[1:], like=found)
            for move in chain:
                new = emit(graph, move.target, new, *move.args[1:], like=move, **move.kwargs)  # type: ignore[arg-type]
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        self.matched("weight cast")
        return True

    def _gradient(self, graph: fx.Graph, node: fx.Node) -> bool:
        """weight_grad(cast(g)) -> cast(weight_grad(g)), and the same with a sum; moves between them are kept."""
        if node.target is not WEIGHT_GRAD:
            return False
        found, chain = source(node.args[0])
        if found is None:
            return False
        summed = found.target is aten.add.Tensor and not found.kwargs and self._same_shapes(found)
        if not (is_cast(found) or summed):
            return False
        with graph.inserting_before(node):
            parts = []
            for part in found.args if summed else found.args[:1]:
                for move in chain:
                    part = emit(graph, move.target, part, *move.args[1:], like=move, **move.kwargs)  # type: ignore[arg-type]
                parts.append(emit(graph, WEIGHT_GRAD, part, *node.args[1:], like=node))
            rest = () if summed else found.args[1:]
            new = emit(graph, found.target, *parts, *rest, like=node, **found.kwargs)  # type: ignore[arg-type]
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        self.matched("gradient sum" if summed else "gradient cast")
        return True

    @staticmethod
    def _same_shapes(node: fx.Node) -> bool:
        shapes = [arg.meta["val"].shape for arg in node.args if isinstance(arg, fx.Node)]
        return len(shapes) == 2 and shapes[0] == shapes[1]
