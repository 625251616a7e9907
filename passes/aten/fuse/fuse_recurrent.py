"""A recurrent layer with a sparse weight multiplies with the sparse weight at each step.

    before: h = recurrence(gates, h0, c0, weight(values, ...), bias)
    after:  h = sparse_recurrence(gates, h0, c0, values, ..., bias)

The product over all inputs and the gradient of the weight are products over all steps, which :mod:`.fuse_matmul` fuses.
"""

from __future__ import annotations

from torch import fx

from topkast.passes.aten.base import Pass
from topkast.passes.aten.find_weight import MIXED, as_matrix, side_of, weight_behind
from topkast.passes.aten.moves import positions
from topkast.passes.aten.nodes import emit, topkast
from topkast.passes.aten.weight_call import WeightCall

_SPARSE = {
    topkast.recurrence.default: topkast.sparse_recurrence.default,
    topkast.recurrence_backward.default: topkast.sparse_recurrence_backward.default,
}


class FuseRecurrent(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.target in _SPARSE:
                self._recurrence(graph, node)

    def _recurrence(self, graph: fx.Graph, node: fx.Node) -> None:
        names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        behind = weight_behind(given.pop("weight"))
        if behind is None:
            return
        weight, where = behind
        call = WeightCall.of(weight)
        if side_of(where, as_matrix(positions(call.geometry.shape), call.geometry)) != "matrix":
            return self.refused(MIXED, weight)
        options = {name: given.pop(name) for name in ("bias", "cell") if name in given}
        bias = [options.pop("bias")] if "bias" in options else []
        with graph.inserting_before(node):
            new = emit(graph, _SPARSE[node.target], *given.values(), *call.args, *bias, like=node, **options)  # type: ignore[index]
        self.replace(node, new, "recurrence")
