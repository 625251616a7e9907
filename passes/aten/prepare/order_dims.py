"""A product over several of a weight's dimensions in another order than the weight's becomes one in the weight's order.

    before: y = mm(x, matrix of w.permute(1, 0, 2))
    after:  y = mm(x with its columns in the order of w, matrix of w)

``einsum("ibnd,hnd->ibh")`` multiplies a matrix whose columns run over d first and n second, and moves its activations
likewise. The pass moves both once more, into the weight's own order, which
:mod:`topkast.passes.aten.fuse.fuse_matmul` needs.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, fx

from topkast.passes.aten.find_weight import Side, WeightFactor, WeightGradient, as_matrix, side_of
from topkast.passes.aten.matrix_products import MatrixProduct, ProductPass, has_one_symbol_at_most, is_product
from topkast.passes.aten.nodes import aten, emit, is_static
from topkast.runtime.layout import Geometry

Order = tuple[int, ...]
WITHOUT_BIAS: dict[Any, Any] = {aten.addmm.default: aten.mm.default, aten.baddbmm.default: aten.bmm.default}


class OrderDims(ProductPass):
    def _product(self, graph: fx.Graph, product: MatrixProduct) -> None:
        factor = WeightFactor.among(product.left, product.right)
        if factor is None or product.is_scaled:
            return
        g = factor.call.geometry
        mixed = _mixed(factor.where_on_right, factor.matrix, g)
        if mixed is None or not has_one_symbol_at_most(factor.other):
            return
        side, rows, cols = mixed  # the other factor meets the columns in one product and the rows in the other
        into, out = (cols, rows) if side == "transpose" else (rows, cols)
        node, dim = product.node, -2 if factor.on_left else -1
        with graph.inserting_before(node):
            x = _moved(graph, factor.other, dim, *into, back=True)
            transposes = (side == "transpose") != factor.on_left
            ordered = _matrix_of(graph, factor.weight, g, transposes, factor.where.dim())
            factors = (ordered, x) if factor.on_left else (x, ordered)
            new = emit(graph, WITHOUT_BIAS.get(node.target, node.target), *factors, like=node)
            new = _moved(graph, new, dim, *out)
            if product.bias is not None:
                new = emit(graph, aten.add.Tensor, new, product.bias, like=node)
        self.replace(node, new, "product")

    def _gradient(self, graph: fx.Graph, gradient: WeightGradient) -> None:
        node, product, g = gradient.node, gradient.maker, gradient.call.geometry
        if not is_product(product) or not is_static(product) or not all(map(has_one_symbol_at_most, product.args)):
            return
        moved = gradient.moved
        mixed = None if moved is None else _mixed(gradient.where, as_matrix(moved, g), g)
        if mixed is None:
            return
        side, rows, cols = mixed
        outer, inner = (rows, cols) if side == "matrix" else (cols, rows)
        left, right = product.args
        with graph.inserting_before(node):
            left = _moved(graph, left, -2, *outer, back=True)
            right = _moved(graph, right, -1, *inner, back=True)
            new = emit(graph, product.target, left, right, like=product)  # type: ignore[arg-type]
            dense = _weight_of(graph, new, g, side == "transpose")
        node.replace_input_with(gradient.call.operands["grad"], dense)
        self.matched("gradient")


def _mixed(where: Tensor, matrix: Tensor, g: Geometry) -> tuple[Side, tuple[Any, Order], tuple[Any, Order]] | None:
    """How ``where`` ([a, b] or [1, a, b]) is the matrix of a weight, or its transpose, with its dimensions in another
    order: the side, then sizes and order of the rows' dimensions and of the columns'. None if ``where`` is something
    else, or in order.
    """
    if (where.dim() == 3 and where.shape[0] != 1) or side_of(where, matrix) is not None:
        return None
    where, dims = where.reshape(where.shape[-2:]), g.permuted
    rows, cols = dims[: g.lead], dims[g.lead :]
    if len(dims) > 5 or not len(rows) + len(cols) > 2:
        return None
    whole = matrix.reshape(dims)
    sides: tuple[tuple[Side, Tensor], ...] = (("matrix", where), ("transpose", where.mT))
    for side, seen in sides:
        for r, c in itertools.product(*(itertools.permutations(range(len(part))) for part in (rows, cols))):
            order = (*r, *(g.lead + i for i in c))
            if seen.shape == matrix.shape and torch.equal(seen, whole.permute(order).reshape(matrix.shape)):
                return side, (rows, r), (cols, c)
    return None


def _moved(graph: fx.Graph, node: Any, dim: int, sizes: Any, order: Order, back: bool = False) -> fx.Node:
    """A value with a dimension cut into ``sizes`` and joined in that order; ``back`` undoes that."""
    if order == tuple(range(len(order))):
        return node
    shape = [size if isinstance(size, int) else -1 for size in node.meta["val"].shape]
    at = len(shape) + dim
    now = [sizes[i] for i in order] if back else list(sizes)
    turn = [order.index(i) for i in range(len(order))] if back else list(order)
    dims = [*range(at), *(at + i for i in turn), *range(at + len(sizes), len(shape) + len(sizes) - 1)]
    cut = emit(graph, aten.reshape.default, node, [*shape[:at], *now, *shape[at + 1 :]], like=node)
    return emit(graph, aten.reshape.default, emit(graph, aten.permute.default, cut, dims, like=node), shape, like=node)


def _matrix_of(graph: fx.Graph, weight: fx.Node, g: Geometry, transpose: bool, ndim: int) -> fx.Node:
    """The matrix of a weight, or its transpose, as a node of ``ndim`` dimensions."""
    permuted = emit(graph, aten.permute.default, weight, list(g.perm), like=weight)
    matrix = emit(graph, aten.reshape.default, permuted, [g.rows, g.cols], like=weight)
    if transpose:
        matrix = emit(graph, aten.permute.default, matrix, [1, 0], like=weight)
    return matrix if ndim == 2 else emit(graph, aten.unsqueeze.default, matrix, 0, like=weight)


def _weight_of(graph: fx.Graph, matrix: fx.Node, g: Geometry, transpose: bool) -> fx.Node:
    """A matrix, or its transpose, in the shape of the weight."""
    if matrix.meta["val"].dim() == 3:
        matrix = emit(graph, aten.squeeze.dim, matrix, 0, like=matrix)
    if transpose:
        matrix = emit(graph, aten.permute.default, matrix, [1, 0], like=matrix)
    whole = emit(graph, aten.reshape.default, matrix, list(g.permuted), like=matrix)
    return emit(graph, aten.permute.default, whole, list(g.inverse), like=matrix)
