"""Matrix products with W_A become ``spmm`` and ``spmm_t``; products sampled at B become ``sddmm``.

    before: y = addmm(bias, x, permute(weight(values, ...)))    grad = weight_grad(mm(permute(dy), x), ...)
    after:  y = spmm(x, values, ..., bias)                      grad = sddmm(dy, x, ...)

Every way of writing a linear layer (``F.linear``, ``addmm``, ``matmul``, ``einsum``, attention's projections, batched
experts) is one of ``mm``, ``addmm``, ``bmm``, ``baddbmm`` here, after some moves of the weight's elements. The place
to which the moves take the elements decides between the products, see :mod:`topkast.passes.aten.find_weight`.
"""

from __future__ import annotations

from torch import fx

from topkast.passes.aten.find_weight import MIXED, WeightFactor, WeightGradient, side_of
from topkast.passes.aten.matrix_products import MatrixProduct, ProductPass, is_product
from topkast.passes.aten.nodes import aten, emit, topkast, transposed


class FuseMatmul(ProductPass):
    def _product(self, graph: fx.Graph, product: MatrixProduct) -> None:
        factor, bias = WeightFactor.among(product.left, product.right), product.bias
        if factor is None:
            return
        if product.is_scaled:
            return self.refused("scaled by alpha or beta", factor.weight)
        side = side_of(factor.where_on_right, factor.matrix)
        if side is None:
            return self.refused(MIXED, factor.weight)
        node, fuses_bias = product.node, side == "transpose" and not factor.on_left
        with graph.inserting_before(node):
            x = factor.turn_other(graph)
            if side == "transpose":
                fused = bias if fuses_bias else None
                new = emit(graph, topkast.spmm.default, x, *factor.call.args, fused, like=node)
            else:
                by_columns = {name: factor.call.options[name] for name in ("turned",) if name in factor.call.options}
                new = emit(graph, topkast.spmm_t.default, x, *factor.call.args, like=node, **by_columns)
            new = factor.turn_back(graph, new)
            if bias is not None and not fuses_bias:
                new = emit(graph, aten.add.Tensor, new, bias, like=node)
        self.replace(node, new, "spmm" if side == "transpose" else "spmm_t")

    def _gradient(self, graph: fx.Graph, gradient: WeightGradient) -> None:
        node, product = gradient.node, gradient.maker
        if not is_product(product):
            return
        if gradient.refusal is not None:
            return self.refused(gradient.refusal, node)
        left, right = product.args
        with graph.inserting_before(node):
            turned = transposed(graph, left)  # type: ignore[arg-type]
            # The product is dW = dYᵀ X, or its transpose dWᵀ = Xᵀ dY.
            dy, x = (turned, right) if gradient.side == "matrix" else (right, turned)
            new = emit(graph, topkast.sddmm.default, dy, x, *gradient.call.args, like=node)
        self.replace(node, new, "sddmm")
