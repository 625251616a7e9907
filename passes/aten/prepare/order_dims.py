"""A product over several of a weight's dimensions in another order than the weight's is made one in the weight's order.

``einsum("ibnd,hnd->ibh")`` multiplies a matrix whose columns run over d first and n second, and moves its activations
likewise. Moved once more, both are as the weight has them, which the products of :mod:`.fuse_matmul` need.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, fx

from topkast.passes.aten.matrix_products import PRODUCTS, ProductPass, is_scaled, known, side_of
from topkast.passes.aten.nodes import as_matrix, aten, emit, geometry, positions, replay, source, weight_operand
from topkast.runtime.layout import Geometry

Order = tuple[int, ...]
PLAIN: dict[Any, Any] = {aten.addmm.default: aten.mm.default, aten.baddbmm.default: aten.bmm.default}


class OrderDims(ProductPass):
    def _product(self, graph: fx.Graph, node: fx.Node) -> None:
        first = PRODUCTS[node.target]  # type: ignore[index]
        left, right = node.args[first : first + 2]
        at_left = weight_operand(right) is None
        operand, x = weight_operand(left if at_left else right), right if at_left else left
        if operand is None or is_scaled(node):
            return
        weight, where = operand
        g = geometry(weight)
        matrix = as_matrix(positions(g.shape), g)
        found = _mixed(where.mT if at_left else where, matrix, g)
        if found is None or not known(x):
            return
        side, rows, cols = found  # x meets the columns in one product and the rows in the other
        into, out = (cols, rows) if side == "transpose" else (rows, cols)
        dim = -2 if at_left else -1
        with graph.inserting_before(node):
            x = _moved(graph, x, dim, *into, back=True)
            ordered = _matrix_of(graph, weight, g, (side == "transpose") != at_left, where.dim())
            operands = (ordered, x) if at_left else (x, ordered)
            new = emit(graph, PLAIN.get(node.target, node.target), *operands, like=node)
            new = _moved(graph, new, dim, *out)
            if first:
                new = emit(graph, aten.add.Tensor, new, node.args[0], like=node)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        self.matched("product")

    def _gradient(self, graph: fx.Graph, node: fx.Node) -> None:
        made, chain = source(node.args[0])
        if made is None or made.target not in (aten.mm.default, aten.bmm.default):
            return
        g, shape = geometry(node), made.meta["val"].shape
        if not all(isinstance(size, int) for size in shape) or not all(map(known, made.args)):
            return
        where = positions(tuple(shape))
        came = replay(chain, where)
        found = None if came is None else _mixed(where, as_matrix(came, g), g)
        if found is None:
            return
        side, rows, cols = found
        outer, inner = (rows, cols) if side == "matrix" else (cols, rows)
        with graph.inserting_before(node):
            a = _moved(graph, made.args[0], -2, *outer, back=True)
            b = _moved(graph, made.args[1], -1, *inner, back=True)
            new = emit(graph, made.target, a, b, like=made)
            dense = _weight_of(graph, new, g, side == "transpose")
        node.args = (dense, *node.args[1:])
        self.matched("gradient")


def _mixed(where: Tensor, matrix: Tensor, g: Geometry) -> tuple[str, tuple[Any, Order], tuple[Any, Order]] | None:
    """How ``where`` ([a, b] or [1, a, b]) is the matrix of a weight, or its transpose, with its dimensions in another
    order: the side, and of the rows and the columns their sizes and their order; else None, also where it is in order.
    """
    if (where.dim() == 3 and where.shape[0] != 1) or side_of(where, matrix) is not None:
        return None
    where, dims = where.reshape(where.shape[-2:]), g.permuted
    rows, cols = dims[: g.lead], dims[g.lead :]
    if len(dims) > 5 or not len(rows) + len(cols) > 2:
        return None
    whole = matrix.reshape(dims)
    for side, seen in (("matrix", where), ("transpose", where.mT)):
        for r, c in itertools.product(*(itertools.permutations(range(len(part))) for part in (rows, cols))):
            order = (*r, *(g.lead + i for i in c))
            if seen.shape == matrix.shape and torch.equal(seen, whole.permute(order).reshape(matrix.shape)):
                return side, (rows, r), (cols, c)
    return None


def _moved(graph: fx.Graph, node: Any, dim: int, sizes: Any, order: Order, back: bool = False) -> fx.Node:
    """One dimension of a value, cut into ``sizes`` and joined in that order; ``back`` undoes that."""
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
    turned = emit(graph, aten.permute.default, weight, list(g.perm), like=weight)
    matrix = emit(graph, aten.reshape.default, turned, [g.rows, g.cols], like=weight)
    if transpose:
        matrix = emit(graph, aten.permute.default, matrix, [1, 0], like=weight)
    return matrix if ndim == 2 else emit(graph, aten.unsqueeze.default, matrix, 0, like=weight)


def _weight_of(graph: fx.Graph, matrix: fx.Node, g: Geometry, transpose: bool) -> fx.Node:
    if matrix.meta["val"].dim() == 3:
        matrix = emit(graph, aten.squeeze.dim, matrix, 0, like=matrix)
    if transpose:
        matrix = emit(graph, aten.permute.default, matrix, [1, 0], like=matrix)
    whole = emit(graph, aten.reshape.default, matrix, list(g.permuted), like=matrix)
    return emit(graph, aten.permute.default, whole, [g.perm.index(d) for d in range(len(g.perm))], like=matrix)
