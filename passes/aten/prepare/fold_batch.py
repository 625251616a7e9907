"""A batched product whose weights are repeated over the batch becomes one of the weights alone, with more rows.

``x @ W`` with a stack of matrices W [E, K, M] and activations x [B, E, N, K] repeats W for each of B and multiplies B·E
matrices. With B moved into the rows it is E products of B·N rows, which :mod:`.fuse_matmul` knows. The gradient, B·E
products of which B at a time are summed, likewise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from topkast.passes.aten.matrix_products import ProductPass, known, side_of
from topkast.passes.aten.nodes import (
    as_matrix,
    aten,
    emit,
    geometry,
    positions,
    replay,
    source,
    transposed,
    weight_operand,
)


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
    def _product(self, graph: fx.Graph, node: fx.Node) -> None:
        if node.target is not aten.bmm.default:
            return
        left, right = node.args
        operand, at_left = weight_operand(right), False
        if operand is None:
            operand, at_left = weight_operand(left), True
        if operand is None:
            return
        weight, where = operand
        batch, x, g = _repeated(where), right if at_left else left, geometry(weight)
        side = None if batch is None else side_of(batch.first(where), as_matrix(positions(g.shape), g))
        if batch is None or side is None or not known(x):
            return
        with graph.inserting_before(node):
            stack = emit(graph, aten.permute.default, weight, list(g.perm), like=weight)
            stack = emit(graph, aten.reshape.default, stack, [batch.stack, -1, g.cols], like=weight)
            # W x = (xᵀ Wᵀ)ᵀ: a weight on the left is the other product on transposed activations.
            if (side == "transpose") != at_left:
                stack = transposed(graph, stack)
            folded = batch.fold(graph, transposed(graph, x) if at_left else x)  # type: ignore[arg-type]
            new = batch.unfold(graph, emit(graph, aten.bmm.default, folded, stack, like=node))
            if at_left:
                new = transposed(graph, new)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        self.matched("product")

    def _gradient(self, graph: fx.Graph, node: fx.Node) -> None:
        total, _ = source(node.args[0])
        if total is None or total.target is not aten.sum.dim_IntList or total.kwargs:
            return
        made, chain = source(total.args[0])
        if made is None or made.target is not aten.bmm.default or not all(map(known, made.args)):
            return
        batch = _summed(made, chain, total)
        if batch is None:
            return
        a, b = made.args
        with graph.inserting_before(total):
            a = transposed(graph, batch.fold(graph, transposed(graph, a)))  # type: ignore[arg-type]
            new = emit(graph, aten.bmm.default, a, batch.fold(graph, b), like=made)
            new = emit(graph, aten.reshape.default, new, list(total.meta["val"].shape), like=total)
        total.replace_all_uses_with(new)
        graph.erase_node(total)
        self.matched("gradient")


def _repeated(where: Tensor) -> Batch | None:
    """How a batch of matrices (their positions in W) repeats a smaller one; None if it does not."""
    again = (torch.equal(one, where[0]) for one in where[1:])
    period = next((i for i, same in enumerate(again, 1) if same), None) if where.dim() == 3 else None
    if period is None:
        return None
    inside = period == 1
    if inside:
        changes = (not torch.equal(one, where[0]) for one in where[1:])
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


def _summed(made: fx.Node, chain: list[fx.Node], total: fx.Node) -> Batch | None:
    """Over what of its batch a sum of batched products goes, if that is a whole part of it and nothing else moves."""
    args: Any = total.args
    shape, dims = tuple(made.meta["val"].shape), list(args[1] or ())
    if not dims or not all(isinstance(size, int) for size in shape):
        return None
    where = replay(chain, positions(shape))
    if where is None:
        return None
    times = math.prod(where.shape[d] for d in dims)
    terms = where.movedim(dims, list(range(len(dims)))).reshape(times, -1)
    for inside in (True, False):
        if shape[0] % times == 0:
            batch = Batch(times, shape[0] // times, inside)
            if torch.equal(_matrices(positions(shape), batch), terms):
                return batch
    return None
