"""A batched product that repeats its weights over the batch becomes a product with each weight once, and more rows.

    before: y = bmm(x, expand(weight(values, ...)))            [B·E, N, K] @ [B·E, K, M]
    after:  y = unfold(bmm(fold(x), weight(values, ...)))      [E, B·N, K] @ [E, K, M]

``x @ W`` with a stack of matrices W [E, K, M] and activations x [B, E, N, K] repeats W for each of B and multiplies B·E
matrices. With B moved into the rows the product is E products of B·N rows, which :mod:`.fuse_matmul` knows. The
gradient, B·E products of which B at a time are summed, likewise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from topkast.passes.aten.find_weight import WeightFactor, WeightGradient, side_of
from topkast.passes.aten.matrix_products import MatrixProduct, ProductPass, has_one_symbol_at_most
from topkast.passes.aten.moves import positions, replay, walk_back
from topkast.passes.aten.nodes import aten, emit, is_static, transposed


@dataclass(frozen=True)
class Batch:
    """A batch of matrices, ``stack`` of them each ``times`` times: all one after another, or (``inside``) each."""

    times: int
    stack: int
    inside: bool

    @property
    def sizes(self) -> list[int]:
        return [self.stack, self.times] if self.inside else [self.times, self.stack]

    def first(self, where: Tensor) -> Tensor:
        """Each matrix once."""
        return where.unflatten(0, self.sizes).select(int(self.inside), 0)

    def fold(self, graph: fx.Graph, x: Any) -> fx.Node:
        """[times * stack, n, k] as [stack, times * n, k]."""
        k = x.meta["val"].shape[-1]
        cut = emit(graph, aten.reshape.default, x, [*self.sizes, -1, k], like=x)
        if not self.inside:
            cut = emit(graph, aten.permute.default, cut, [1, 0, 2, 3], like=x)
        return emit(graph, aten.reshape.default, cut, [self.stack, -1, k], like=x)

    def unfold(self, graph: fx.Graph, y: fx.Node) -> fx.Node:
        """[stack, times * n, m] as [times * stack, n, m]."""
        m = y.meta["val"].shape[-1]
        cut = emit(graph, aten.reshape.default, y, [self.stack, self.times, -1, m], like=y)
        if not self.inside:
            cut = emit(graph, aten.permute.default, cut, [1, 0, 2, 3], like=y)
        return emit(graph, aten.reshape.default, cut, [self.times * self.stack, -1, m], like=y)


class FoldBatch(ProductPass):
    def _product(self, graph: fx.Graph, product: MatrixProduct) -> None:
        node = product.node
        if node.target is not aten.bmm.default:
            return
        factor = WeightFactor.among(product.left, product.right)
        batch = None if factor is None else _repeated(factor.where)
        if factor is None or batch is None:
            return
        side = side_of(batch.first(factor.where), factor.matrix)
        if side is None or not has_one_symbol_at_most(factor.other):
            return
        weight, g = factor.weight, factor.call.geometry
        with graph.inserting_before(node):
            stack = emit(graph, aten.permute.default, weight, list(g.perm), like=weight)
            stack = emit(graph, aten.reshape.default, stack, [batch.stack, -1, g.cols], like=weight)
            if (side == "transpose") != factor.on_left:
                stack = transposed(graph, stack)
            folded = batch.fold(graph, factor.turn_other(graph))
            new = batch.unfold(graph, emit(graph, aten.bmm.default, folded, stack, like=node))
            new = factor.turn_back(graph, new)
        self.replace(node, new, "product")

    def _gradient(self, graph: fx.Graph, gradient: WeightGradient) -> None:
        total = gradient.maker
        if total.target is not aten.sum.dim_IntList or total.kwargs:
            return
        summed, dims, *_ = total.args
        product, moves = walk_back(summed)
        if product is None or product.target is not aten.bmm.default:
            return
        batch = _summed(product, moves, dims) if all(map(has_one_symbol_at_most, product.args)) else None
        if batch is None:
            return
        left, right = product.args
        with graph.inserting_before(total):
            turned = batch.fold(graph, transposed(graph, left))  # type: ignore[arg-type]
            new = emit(graph, aten.bmm.default, transposed(graph, turned), batch.fold(graph, right), like=product)
            new = emit(graph, aten.reshape.default, new, list(total.meta["val"].shape), like=total)
        self.replace(total, new, "gradient")


def _repeated(where: Tensor) -> Batch | None:
    """How a batch of matrices (their positions in W) repeats a smaller one; None if it does not."""
    again = (torch.equal(matrix, where[0]) for matrix in where[1:])
    period = next((i for i, same in enumerate(again, 1) if same), None) if where.dim() == 3 else None
    if period is None:
        return None
    inside = period == 1
    if inside:
        changes = (not torch.equal(matrix, where[0]) for matrix in where[1:])
        times = next((i for i, other in enumerate(changes, 1) if other), len(where))
    else:
        times = len(where) // period
    batch = Batch(times, len(where) // times, inside)
    if batch.times * batch.stack != len(where):
        return None
    matrices = _matrices(where, batch)
    return batch if torch.equal(matrices, matrices[:1].expand_as(matrices)) else None


def _matrices(where: Tensor, batch: Batch) -> Tensor:
    """[times, everything else]."""
    return where.unflatten(0, batch.sizes).movedim(int(batch.inside), 0).flatten(1)


def _summed(product: fx.Node, moves: list[fx.Node], dims: Any) -> Batch | None:
    """Which part of its batch a sum over ``dims`` of a batched product adds up; None if it is no whole part."""
    dims = list(dims or ())
    if not dims or not is_static(product):
        return None
    here = positions(tuple(product.meta["val"].shape))
    where = replay(moves, here)
    if where is None:
        return None
    times = math.prod(where.shape[d] for d in dims)
    terms = where.movedim(dims, list(range(len(dims)))).reshape(times, -1)
    for inside in (True, False):
        if len(here) % times == 0:
            batch = Batch(times, len(here) // times, inside)
            if torch.equal(_matrices(here, batch), terms):
                return batch
    return None
