"""A weight that is cut along its rows before it is used becomes several weights, each of which can fuse.

Packed projections (queries, keys and values in one matrix) are used like this wherever attention looks at something
else than its own input: ``split``, ``chunk`` or a slice in the forward, ``cat`` or ``slice_backward`` in the backward.
A loop over experts takes one matrix after another out of a tensor of them: ``select`` or ``unbind``, in the backward
``select_backward`` or ``stack``.
"""

from __future__ import annotations

import itertools
import math
import operator
from dataclasses import dataclass
from typing import Any

from torch import fx

from topkast.passes.aten.base import Pass
from topkast.passes.aten.nodes import WEIGHT, WEIGHT_GRAD, aten, emit, geometry, getitems, sliced, topkast
from topkast.runtime.layout import Geometry
from topkast.runtime.reference import rows  # noqa: F401  (defines its operators)

ZEROS = {aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default}
CUTS = {
    *(aten.slice.Tensor, aten.split.Tensor, aten.split_with_sizes.default),
    *(aten.select.int, aten.unbind.int),
}
Stretch = tuple[fx.Node, int, int, int]  # the piece of a weight or of its gradient; a dimension, from where, to where


@dataclass(frozen=True)
class Part:
    """Block rows from ``start`` to ``stop`` of a weight: a weight of this geometry with room for ``slots`` blocks."""

    start: int
    stop: int
    slots: int
    geometry: Geometry


def part_of(node: fx.Node, dim: int, low: int, high: int) -> Part | None:
    """The part of a ``weight`` or ``weight_grad``; None where its rows are not whole block rows in one stretch."""
    g = geometry(node)
    inner, r = math.prod(g.permuted[1 : g.lead]), g.block[0]
    whole = low * inner % r == 0 and (high * inner % r == 0 or high == g.shape[dim])
    if g.perm[0] != dim or not whole or low >= high:
        return None
    shape = tuple(high - low if d == dim else size for d, size in enumerate(g.shape))
    own = Geometry(shape, g.perm, g.lead, g.block)
    held = node.args[3].meta["val"].shape[0]  # type: ignore[union-attr]
    return Part(low * inner // r, -(-high * inner // r), min(held, own.units), own)


class SplitRows(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.target is WEIGHT:
                for user in list(node.users):
                    for stretch in _pieces(user):
                        self._cut(graph, node, *stretch)
            elif node.target is WEIGHT_GRAD:
                self._join(graph, node, _joined(node.args[0]))

    def _cut(self, graph: fx.Graph, weight: fx.Node, piece: fx.Node, dim: int, low: int, high: int) -> None:
        part = part_of(weight, dim, low, high)
        if part is None:
            return
        values, row_ptr, _, cols, key = weight.args[:5]
        with graph.inserting_before(piece):
            own = emit(graph, topkast.rows_values.default, values, row_ptr, cols, part.start, part.slots, like=weight)
            new = emit(graph, WEIGHT, own, *_index(graph, weight, part), key, *_sizes(part), like=weight)
            if piece.meta["val"].dim() < new.meta["val"].dim():  # one row of the first dimension, or one expert
                new = emit(graph, aten.squeeze.dim, new, dim, like=piece)
        piece.replace_all_uses_with(new)
        self.matched("part of a weight")

    def _join(self, graph: fx.Graph, node: fx.Node, stretches: list[Stretch]) -> None:
        """The gradient of a whole is the sum of what its parts' gradients are at all slots."""
        # A part that was not used has zeros for its gradient.
        stretches = [stretch for stretch in stretches if stretch[0].target not in ZEROS]
        found = [(gradient, part_of(node, *rest), rest[0]) for gradient, *rest in stretches]
        if not all(part for _, part, _ in found):
            return
        total: fx.Node | None = None
        for gradient, part, dim in found:
            assert part is not None
            row_ptr, _, cols, key = node.args[1:5]
            with graph.inserting_before(node):
                if gradient.meta["val"].dim() < len(part.geometry.shape):
                    gradient = emit(graph, aten.unsqueeze.default, gradient, dim, like=node)
                own = emit(graph, WEIGHT_GRAD, gradient, *_index(graph, node, part), key, *_sizes(part), like=node)
                limits = (part.start, part.stop, part.slots)
                one = emit(graph, topkast.rows_grad.default, own, row_ptr, cols, *limits, like=node)
                total = one if total is None else emit(graph, aten.add.Tensor, total, one, like=node)
        if total is not None:
            node.replace_all_uses_with(total)
            graph.erase_node(node)
            self.matched("gradient of parts")


def _index(graph: fx.Graph, node: fx.Node, part: Part) -> list[fx.Node]:
    index = emit(graph, topkast.rows_index.default, *node.args[1:4], part.start, part.stop, part.slots, like=node)
    return [emit(graph, operator.getitem, index, i, like=node) for i in range(3)]


def _sizes(part: Part) -> tuple[list[int], list[int], int, list[int]]:
    g = part.geometry
    return list(g.shape), list(g.perm), g.lead, list(g.block)


def _pieces(node: fx.Node) -> list[Stretch]:
    """The pieces that ``node`` cuts its argument into, if it does, and at places that are known."""
    args: Any = node.args
    if node.target not in CUTS or len(node.all_input_nodes) > 1:
        return []
    value = args[0].meta["val"]
    if node.target is aten.select.int:
        dim = args[1] % value.dim()
        return [(node, dim, at := args[2] % value.shape[dim], at + 1)]
    if node.target is aten.unbind.int:
        dim = (args[1] if len(args) > 1 else 0) % value.dim()
        return [(piece, dim, at, at + 1) for at, piece in getitems(node).items()]
    if node.target is aten.slice.Tensor:
        stretch = sliced(node)
        return [] if stretch is None else [(node, *stretch)]
    dim = (args[2] if len(args) > 2 else 0) % value.dim()
    sizes = [piece.shape[dim] for piece in node.meta["val"]]
    return _one_after_another([(getitems(node).get(i), size) for i, size in enumerate(sizes)], dim)


def _joined(node: object) -> list[Stretch]:
    """The gradients that ``node`` puts one after another, or the one that it puts among zeros."""
    if not isinstance(node, fx.Node):
        return []
    args: Any = node.args
    if node.target is aten.cat.default:
        dim = (args[1] if len(args) > 1 else 0) % node.meta["val"].dim()
        parts = list(args[0])
        return _one_after_another([(part, part.meta["val"].shape[dim]) for part in parts], dim)
    if node.target is aten.stack.default:
        dim = (args[1] if len(args) > 1 else 0) % node.meta["val"].dim()
        return [(part, dim, at, at + 1) for at, part in enumerate(args[0])]
    if len(node.all_input_nodes) > 1:  # a place that is not known
        return []
    if node.target is aten.slice_backward.default and args[5] == 1:
        gradient, sizes, dim, low, high = args[:5]
        low, high, _ = slice(low, high).indices(sizes[dim])
        return [(gradient, dim % len(sizes), low, high)]
    if node.target is aten.select_backward.default:
        gradient, sizes, dim, at = args
        dim, at = dim % len(sizes), at % sizes[dim]
        return [(gradient, dim, at, at + 1)]
    return []


def _one_after_another(parts: list[tuple[fx.Node | None, int]], dim: int) -> list[Stretch]:
    ends = list(itertools.accumulate(size for _, size in parts))
    return [(part, dim, end - size, end) for (part, size), end in zip(parts, ends, strict=True) if part is not None]
