"""Move casts off the dense weight onto the compact values, and off dense gradients onto sampled ones.

    before: w = _to_copy(weight(values, ...), dtype)    grad = weight_grad(_to_copy(g, dtype), ...)
    after:  w = weight(_to_copy(values, dtype), ...)    grad = _to_copy(weight_grad(g, ...), dtype)

Autocast casts W_A; elementwise ops commute with scattering and sampling, so the few values can be cast instead. For
the same reason a sum of dense gradients (a weight used twice) becomes a sum of sampled ones, each of which can fuse.
"""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from topkast.passes.aten.base import Pass
from topkast.passes.aten.find_weight import WeightGradient
from topkast.passes.aten.moves import move_alike, walk_back
from topkast.passes.aten.nodes import aten, emit, is_cast
from topkast.passes.aten.weight_call import WEIGHT, WEIGHT_GRAD, WeightCall


class SinkCasts(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        # A rewrite may expose another above itself: repeat until nothing moves.
        while any(self._weight(graph, n) or self._gradient(graph, n) for n in list(graph.nodes) if n.users):
            pass

    def _weight(self, graph: fx.Graph, node: fx.Node) -> bool:
        """cast(move*(weight(v))) -> move*(weight(cast(v)))"""
        if not is_cast(node):
            return False
        dense, *options = node.args
        weight, moves = walk_back(dense)
        if weight is None or weight.target is not WEIGHT:
            return False
        call = WeightCall.of(weight)
        with graph.inserting_before(node):
            values = emit(graph, node.target, call.values, *options, like=node, **node.kwargs)  # type: ignore[arg-type]
            new = move_alike(graph, moves, replace(call, values=values).write(graph, weight))
        self.replace(node, new, "weight cast")
        return True

    def _gradient(self, graph: fx.Graph, node: fx.Node) -> bool:
        """weight_grad(cast(g)) -> cast(weight_grad(g)), and the same with a sum; moves between them are kept."""
        gradient = WeightGradient.of(node)
        if gradient is None:
            return False
        maker = gradient.maker
        if _is_sum(maker):
            terms, options = list(maker.args), []
        elif is_cast(maker):
            terms, options = [maker.args[0]], list(maker.args[1:])
        else:
            return False
        with graph.inserting_before(node):
            parts = []
            for term in terms:
                dense = move_alike(graph, gradient.moves, term)  # type: ignore[arg-type]
                parts.append(emit(graph, WEIGHT_GRAD, dense, *gradient.call.args, like=node))
            new = emit(graph, maker.target, *parts, *options, like=node, **maker.kwargs)  # type: ignore[arg-type]
        self.replace(node, new, "gradient sum" if len(parts) > 1 else "gradient cast")
        return True


def _is_sum(node: fx.Node) -> bool:
    """Whether a node adds two tensors of the same shape, and neither is multiplied."""
    if node.target is not aten.add.Tensor or node.kwargs:
        return False
    shapes = [term.meta["val"].shape for term in node.args if isinstance(term, fx.Node)]
    return len(shapes) == 2 and shapes[0] == shapes[1]
