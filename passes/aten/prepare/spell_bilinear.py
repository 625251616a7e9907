"""``nn.Bilinear``, one opaque operator forward and another for each gradient, becomes matrix products.

    before: y = _trilinear(x1, weight(values, ...), x2, ...)
    after:  y = mm(reshape(x1 * x2), permute(view(weight(values, ...))))

y[n,o] = Σ x1[n,i] W[o,i,j] x2[n,j] is the product of W, seen as [o, ij], with the outer products x1 x2 of each row of
the batch, which are held whole: n·i·j numbers. The gradients are like that.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from topkast.passes.aten.base import Pass
from topkast.passes.aten.moves import MOVES
from topkast.passes.aten.nodes import aten, emit
from topkast.passes.aten.weight_call import WEIGHT, WEIGHT_GRAD

Dims = tuple[int, ...]
# The dimensions are numbered n, o, i, j; each operand, and the result, has some of them.
GRAD, FIRST, SECOND, WHOLE = (0, 1), (0, 2), (0, 3), (1, 2, 3)


class SpellBilinear(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.target is not aten._trilinear.default:
                continue
            args: Any = node.args
            *operands, missing1, missing2, missing3, summed, _ = (*args, 1)[:8]
            dims = [tuple(d for d in range(4) if d not in gone) for gone in (missing1, missing2, missing3)]
            with graph.inserting_before(node):
                new = _as_products(graph, node, dict(zip(dims, operands, strict=True)), tuple(summed))
            if new is not None:
                self.replace(node, new, "product")


def _as_products(graph: fx.Graph, node: fx.Node, operands: dict[Dims, Any], summed: Dims) -> fx.Node | None:
    """The product or gradient that a node is, as matrix products; None if it has no sparse weight.

    Args:
        operands: the operands by the dimensions they have.
        summed: the dimensions that the result does not have.
    """

    def call(target: Any, *args: Any) -> fx.Node:
        return emit(graph, target, *args, like=node)

    def outer() -> fx.Node:
        column, row = (
            call(aten.unsqueeze.default, operands[FIRST], 2),
            call(aten.unsqueeze.default, operands[SECOND], 1),
        )
        return call(aten.reshape.default, call(aten.mul.Tensor, column, row), [-1, i * j])

    if operands.keys() == {GRAD, FIRST, SECOND} and summed == (0,) and _goes_to_values(node):
        i, j = (operands[dims].meta["val"].shape[1] for dims in (FIRST, SECOND))
        made = call(aten.mm.default, call(aten.permute.default, operands[GRAD], [1, 0]), outer())
        return call(aten.view.default, made, list(node.meta["val"].shape))
    weight = operands.get(WHOLE)
    if weight is None or weight.target is not WEIGHT:
        return None
    o, i, j = weight.meta["val"].shape
    matrix = call(aten.view.default, weight, [o, i * j])
    if operands.keys() == {FIRST, WHOLE, SECOND} and summed == (2, 3):
        return call(aten.mm.default, outer(), call(aten.permute.default, matrix, [1, 0]))
    for other, shape, dim in ((SECOND, 1, 2), (FIRST, 2, 1)):
        if operands.keys() == {GRAD, WHOLE, other} and summed == (1, other[1]):
            back = call(aten.view.default, call(aten.mm.default, operands[GRAD], matrix), [-1, i, j])
            scaled = call(aten.mul.Tensor, back, call(aten.unsqueeze.default, operands[other], shape))
            return call(aten.sum.dim_IntList, scaled, [dim])
    return None


def _goes_to_values(node: fx.Node) -> bool:
    return any(u.target is WEIGHT_GRAD or (u.target in MOVES and _goes_to_values(u)) for u in node.users)
