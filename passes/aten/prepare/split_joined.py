"""A matrix that is joined of weights just before a product becomes one product of each weight, and each can fuse.

x·cat(V, W)ᵀ is cat(x·Vᵀ, x·Wᵀ); where they are joined along what is summed, the products are added up. In the backward
a piece that is cut out of one gradient, or of a sum of them, becomes the product of what is cut out of its operands.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

from torch import fx

from topkast.passes.aten.matrix_products import PRODUCTS, ProductPass, is_scaled, side_of
from topkast.passes.aten.nodes import WEIGHT, WEIGHT_GRAD, aten, emit, positions, replay, sliced, source


class SplitJoined(ProductPass):
    def _product(self, graph: fx.Graph, node: fx.Node) -> None:
        first = PRODUCTS[node.target]  # type: ignore[index]
        if is_scaled(node):
            return
        for side in (0, 1):
            joined = _joined(node.args[first + side])
            if joined is None:
                continue
            cat, flipped = joined
            args: Any = cat.args
            axis = (args[1] % 2 if len(args) > 1 else 0) ^ flipped
            with graph.inserting_before(node):
                parts = [emit(graph, aten.t.default, w, like=node) if flipped else w for w in args[0]]
                new = _products(graph, node, parts, axis, side)
                if first:
                    new = emit(graph, aten.add.Tensor, new, node.args[0], like=node)
            node.replace_all_uses_with(new)
            graph.erase_node(node)
            return self.matched("product")

    def _gradient(self, graph: fx.Graph, node: fx.Node) -> None:
        """The gradient at B of a piece of a sum is the sum of those of the pieces of its terms."""
        piece, after = source(node.args[0])
        stretch = None if piece is None else sliced(piece)
        if piece is None or stretch is None or not (terms := _terms(piece.args[0], 0)):
            return
        (dim, low, high), found = stretch, []
        for product, flipped in terms:
            operands: list[Any] = list(product.args)
            axis = dim ^ flipped
            with graph.inserting_before(node):
                operands[axis] = emit(graph, aten.slice.Tensor, operands[axis], axis, low, high, like=product)
                new = emit(graph, aten.mm.default, *operands, like=product)
                new = emit(graph, aten.t.default, new, like=node) if flipped else new
                for move in after:
                    new = emit(graph, move.target, new, *move.args[1:], like=move)  # type: ignore[arg-type]
                found.append(emit(graph, WEIGHT_GRAD, new, *node.args[1:], like=node))
        with graph.inserting_before(node):
            node.replace_all_uses_with(_sum(graph, found))
        graph.erase_node(node)
        self.matched("gradient")


def _terms(node: Any, flipped: int) -> list[tuple[fx.Node, int]]:
    """The products that a gradient is the sum of, and whether each is transposed; none if it has other terms."""
    found, chain = source(node)
    turned = None if found is None else _flips(chain, found)
    if found is None or turned is None:
        return []
    if found.target is aten.mm.default:
        return [(found, flipped ^ turned)]
    if found.target is not aten.add.Tensor or found.kwargs or not isinstance(found.args[1], fx.Node):
        return []
    if any(term.meta["val"].shape != found.meta["val"].shape for term in found.args):  # type: ignore[union-attr]
        return []
    left, right = (_terms(term, flipped ^ turned) for term in found.args)
    return left + right if left and right else []


def _sum(graph: fx.Graph, terms: list[fx.Node]) -> fx.Node:
    return functools.reduce(lambda a, b: emit(graph, aten.add.Tensor, a, b, like=b), terms)


def _products(graph: fx.Graph, node: fx.Node, parts: list[fx.Node], axis: int, side: int) -> fx.Node:
    """The product, with ``parts`` joined along ``axis`` as its operand on that ``side``, as a product of each part."""
    other: Any = node.args[PRODUCTS[node.target] + 1 - side]  # type: ignore[index]
    summed = axis != side  # the left operand's columns, the right one's rows
    ends = list(itertools.accumulate(part.meta["val"].shape[axis] for part in parts))
    found = []
    for part, low, high in zip(parts, [0, *ends], ends, strict=False):
        beside = emit(graph, aten.slice.Tensor, other, side, low, high, like=node) if summed else other
        operands = (beside, part) if side else (part, beside)
        found.append(emit(graph, aten.mm.default, *operands, like=node))
    if summed:
        return _sum(graph, found)
    return emit(graph, aten.cat.default, found, axis, like=node)


def _joined(operand: Any) -> tuple[fx.Node, int] | None:
    """The ``cat`` of weights that ``operand`` is, and whether it is transposed."""
    cat, chain = source(operand)
    if cat is None or cat.target is not aten.cat.default:
        return None
    parts: Any = cat.args[0]
    if not all(part.target is WEIGHT and part.meta["val"].dim() == 2 for part in parts):
        return None
    flipped = _flips(chain, cat)
    return None if flipped is None else (cat, flipped)


def _flips(chain: list[fx.Node], start: fx.Node) -> int | None:
    """1 if the moves transpose a matrix, 0 if they leave it as it is, None for anything else."""
    shape = start.meta["val"].shape
    if len(shape) != 2 or not all(isinstance(size, int) for size in shape):
        return None
    where = positions(tuple(shape))
    moved = replay(chain, where)
    if moved is None or moved.dim() != 2:
        return None
    return {"matrix": 0, "transpose": 1}.get(side_of(moved, where) or "")
