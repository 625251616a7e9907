"""A matrix that is joined of weights just before a product becomes one product of each weight, and each can fuse.

    before: y = mm(x, t(cat([v, w])))                   grad = weight_grad(slice(mm(t(dy), x), 0, low, high), ...)
    after:  y = cat([mm(x, t(v)), mm(x, t(w))], 1)      grad = weight_grad(mm(slice(t(dy), 0, low, high), x), ...)

If the weights are joined along the dimension that is summed, the products are added up. In the backward a piece that is
cut out of one gradient, or of a sum of gradients, becomes the product of pieces that are cut out of the operands.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

from torch import fx

from topkast.passes.aten.find_weight import WeightGradient, side_of
from topkast.passes.aten.matrix_products import MatrixProduct, ProductPass
from topkast.passes.aten.moves import move_alike, positions, replay, slice_limits, walk_back
from topkast.passes.aten.nodes import aten, emit, is_static
from topkast.passes.aten.weight_call import WEIGHT, WEIGHT_GRAD


class SplitJoined(ProductPass):
    def _product(self, graph: fx.Graph, product: MatrixProduct) -> None:
        node = product.node
        if product.is_scaled:
            return
        for side, factor in enumerate((product.left, product.right)):
            joined = _joined(factor)
            if joined is None:
                continue
            weights, dim, flipped = joined
            with graph.inserting_before(node):
                parts = [emit(graph, aten.t.default, w, like=node) if flipped else w for w in weights]
                new = _products(graph, product, parts, dim ^ flipped, side)
                if product.bias is not None:
                    new = emit(graph, aten.add.Tensor, new, product.bias, like=node)
            return self.replace(node, new, "product")

    def _gradient(self, graph: fx.Graph, gradient: WeightGradient) -> None:
        """A piece of a sum of products is the sum of the products' pieces, and so is its gradient at B."""
        node, piece = gradient.node, gradient.maker
        limits = slice_limits(piece)
        if limits is None:
            return
        whole, *_ = piece.args
        dim, low, high = limits
        sampled = []
        for product, flipped in _terms(whole, 0):
            factors: list[Any] = list(product.args)
            axis = dim ^ flipped
            with graph.inserting_before(node):
                factors[axis] = emit(graph, aten.slice.Tensor, factors[axis], axis, low, high, like=product)
                new = emit(graph, aten.mm.default, *factors, like=product)
                new = emit(graph, aten.t.default, new, like=node) if flipped else new
                new = move_alike(graph, gradient.moves, new)
                sampled.append(emit(graph, WEIGHT_GRAD, new, *gradient.call.args, like=node))
        if sampled:
            with graph.inserting_before(node):
                total = _sum(graph, sampled)
            self.replace(node, total, "gradient")


def _terms(node: Any, flipped: int) -> list[tuple[fx.Node, int]]:
    """The products that a gradient is the sum of, and whether each is transposed; none if it has other terms."""
    maker, moves = walk_back(node)
    turned = None if maker is None else _flips(moves, maker)
    if maker is None or turned is None:
        return []
    flipped ^= turned
    if maker.target is aten.mm.default:
        return [(maker, flipped)]
    if maker.target is not aten.add.Tensor or maker.kwargs:
        return []
    terms: Any = maker.args
    if not all(isinstance(term, fx.Node) for term in terms):
        return []
    if any(term.meta["val"].shape != maker.meta["val"].shape for term in terms):
        return []
    left, right = (_terms(term, flipped) for term in terms)
    return left + right if left and right else []


def _sum(graph: fx.Graph, terms: list[fx.Node]) -> fx.Node:
    return functools.reduce(lambda a, b: emit(graph, aten.add.Tensor, a, b, like=b), terms)


def _products(graph: fx.Graph, product: MatrixProduct, parts: list[fx.Node], dim: int, side: int) -> fx.Node:
    """The product, whose factor on that ``side`` is ``parts`` joined along ``dim``, as a product of each part."""
    node, other = product.node, product.left if side else product.right
    summed = dim != side  # the left factor's columns, the right one's rows
    ends = list(itertools.accumulate(part.meta["val"].shape[dim] for part in parts))
    products = []
    for part, low, high in zip(parts, [0, *ends], ends, strict=False):
        beside = emit(graph, aten.slice.Tensor, other, side, low, high, like=node) if summed else other
        factors = (beside, part) if side else (part, beside)
        products.append(emit(graph, aten.mm.default, *factors, like=node))
    if summed:
        return _sum(graph, products)
    return emit(graph, aten.cat.default, products, dim, like=node)


def _joined(factor: Any) -> tuple[list[fx.Node], int, int] | None:
    """The weights that a factor joins, along which dimension, and whether the factor is their transpose."""
    cat, moves = walk_back(factor)
    if cat is None or cat.target is not aten.cat.default:
        return None
    args: Any = cat.args
    weights, dim = (*args, 0)[:2]
    if not all(weight.target is WEIGHT and weight.meta["val"].dim() == 2 for weight in weights):
        return None
    flipped = _flips(moves, cat)
    return None if flipped is None else (weights, dim % 2, flipped)


def _flips(moves: list[fx.Node], start: fx.Node) -> int | None:
    """1 if the moves transpose a matrix, 0 if they leave the matrix as it is, None for anything else."""
    if start.meta["val"].dim() != 2 or not is_static(start):
        return None
    where = positions(tuple(start.meta["val"].shape))
    moved = replay(moves, where)
    if moved is None or moved.dim() != 2:
        return None
    return {"matrix": 0, "transpose": 1}.get(side_of(moved, where) or "")
