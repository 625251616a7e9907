"""Matrix products with W_A become ``spmm`` and ``spmm_t``; products sampled at B become ``sddmm``.

Every way of writing a linear layer (``F.linear``, ``addmm``, ``matmul``, ``einsum``, attention's projections, batched
experts) is one of ``mm``, ``addmm``, ``bmm``, ``baddbmm`` here, after some moves of the weight's elements. Which of the
products it is depends on where the moves took the elements, see :func:`topkast.passes.aten.nodes.weight_operand`.
"""

from __future__ import annotations

from torch import fx

from topkast.passes.aten.matrix_products import PRODUCTS, ProductPass, is_scaled, side_of
from topkast.passes.aten.nodes import (  # fmt: skip
    as_matrix,
    aten,
    emit,
    geometry,
    positions,
    replay,
    source,
    topkast,
    transposed,
    weight_operand,
)


class FuseMatmul(ProductPass):
    def _product(self, graph: fx.Graph, node: fx.Node) -> None:
        first = PRODUCTS[node.target]  # type: ignore[index]
        bias = node.args[0] if first else None
        left, right = node.args[first : first + 2]
        swapped = False
        operand = weight_operand(right)
        if operand is None:
            operand, swapped = weight_operand(left), True
        if operand is None:
            return
        weight, where = operand
        if is_scaled(node):
            return self.refused("scaled by alpha or beta", weight)
        g = geometry(weight)
        # W y = (y^T W^T)^T: a weight on the left is the other product on transposed activations.
        side = side_of(where.mT if swapped else where, as_matrix(positions(g.shape), g))
        if side is None:
            return self.refused("the weight's rows and columns are mixed before the product", weight)
        with graph.inserting_before(node):
            x = transposed(graph, right) if swapped else left  # type: ignore[arg-type]
            fused_bias = bias if side == "transpose" and not swapped else None
            if side == "transpose":
                new = emit(graph, topkast.spmm.default, x, *weight.args[:9], fused_bias, like=node)
            else:
                new = emit(graph, topkast.spmm_t.default, x, *weight.args[:9], like=node)
            if swapped:
                new = transposed(graph, new)
            if bias is not None and fused_bias is None:
                new = emit(graph, aten.add.Tensor, new, bias, like=node)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        self.matched("spmm" if side == "transpose" else "spmm_t")

    def _gradient(self, graph: fx.Graph, node: fx.Node) -> None:
        found, chain = source(node.args[0])
        if found is None or found.target not in (aten.mm.default, aten.bmm.default):
            return
        g = geometry(node)
        shape = found.meta["val"].shape
        if not all(isinstance(size, int) for size in shape):
            return self.refused("a gradient of symbolic shape", node)
        where = positions(tuple(shape))
        came = replay(chain, where)
        side = None if came is None else side_of(where, as_matrix(came, g))
        if side is None:
            return self.refused("the gradient's rows and columns are mixed after the product", node)
        a, b = found.args  # dW = a b
        with graph.inserting_before(node):
            if side == "matrix":  # dW = dY^T X
                dy, x = transposed(graph, a), b  # type: ignore[arg-type]
            else:  # dW^T = X^T dY
                dy, x = b, transposed(graph, a)  # type: ignore[arg-type, assignment]
            new = emit(graph, topkast.sddmm.default, dy, x, *node.args[1:9], like=node)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        self.matched("sddmm")
