"""A weight that is cut along its rows before it is used becomes several weights, each of which can fuse.

    before: q = slice(weight(values, index, ...), 0, 8, 16)
    after:  q = weight(rows_values(values, ...), rows_index(index, ...), ...)

Packed projections (queries, keys and values in one matrix) are cut like this wherever attention looks at something else
than its own input: ``split``, ``chunk`` or a slice in the forward, ``cat`` or ``slice_backward`` in the backward. A
loop over experts takes one matrix after another out of a tensor of them: ``select`` or ``unbind``, in the backward
``select_backward`` or ``stack``.
"""

from __future__ import annotations

import itertools
import math
import operator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import fx

from topkast.passes.aten.base import Pass
from topkast.passes.aten.moves import slice_limits
from topkast.passes.aten.nodes import aten, emit, getitems, topkast
from topkast.passes.aten.weight_call import WEIGHT, WEIGHT_GRAD, WeightCall
from topkast.runtime.layout import Geometry
from topkast.runtime.ops import row_slices  # noqa: F401  (defines its operators)

ZEROS = {aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default}
CUTS = {
    *(aten.slice.Tensor, aten.split.Tensor, aten.split_with_sizes.default),
    *(aten.select.int, aten.unbind.int),
}


class Stretch(NamedTuple):
    """A piece of a weight or of its gradient, from ``low`` to ``high`` along ``dim``."""

    piece: fx.Node
    dim: int
    low: int
    high: int


@dataclass(frozen=True)
class Part:
    """Block rows from ``start`` to ``stop`` of a weight: a weight of this geometry with room for ``slots`` blocks, of
    which about ``n_fwd`` are in A."""

    start: int
    stop: int
    slots: int
    n_fwd: int
    geometry: Geometry

    @property
    def limits(self) -> tuple[int, int, int]:
        return self.start, self.stop, self.slots


def part_of(call: WeightCall, stretch: Stretch) -> Part | None:
    """The part of a weight that a stretch is; None if its rows are not whole block rows, one after the other."""
    _, dim, low, high = stretch
    g = call.geometry
    inner, r = math.prod(g.permuted[1 : g.lead]), g.block[0]
    is_whole = low * inner % r == 0 and (high * inner % r == 0 or high == g.shape[dim])
    if g.perm[0] != dim or not is_whole or low >= high:
        return None
    shape = tuple(high - low if d == dim else size for d, size in enumerate(g.shape))
    own = Geometry(shape, g.perm, g.lead, g.block)
    # A has no more blocks than B. For rows of the same size the number is exact, otherwise it is the mean of all rows.
    start, stop, slots = low * inner // r, -(-high * inner // r), min(call.slots, own.units)
    return Part(start, stop, slots, min(slots, -(-call.n_fwd * own.units // g.units)), own)


class SplitRows(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.target is WEIGHT:
                for user in list(node.users):
                    for stretch in _pieces(user):
                        self._cut(graph, node, stretch)
            elif node.target is WEIGHT_GRAD:
                self._join(graph, node)

    def _cut(self, graph: fx.Graph, weight: fx.Node, stretch: Stretch) -> None:
        """A piece of a weight is a weight of its own."""
        call, piece = WeightCall.of(weight), stretch.piece
        part = part_of(call, stretch)
        if part is None:
            return
        values, row_ptr, cols = call.values, call.row_ptr, call.cols
        with graph.inserting_before(piece):
            own = emit(graph, topkast.rows_values.default, values, row_ptr, cols, part.start, part.slots, like=weight)
            new = emit(graph, WEIGHT, own, *_part_args(graph, weight, call, part), like=weight)
            if piece.meta["val"].dim() < new.meta["val"].dim():  # one row of the first dimension, or one expert
                new = emit(graph, aten.squeeze.dim, new, stretch.dim, like=piece)
        self.replace(piece, new, "part of a weight")

    def _join(self, graph: fx.Graph, node: fx.Node) -> None:
        """The gradient of a whole is the sum of the gradients of its parts, each put at its slots among all slots."""
        call = WeightCall.of(node)
        # A part that was not used has zeros for its gradient.
        stretches = [s for s in _joined(call.operands["grad"]) if s.piece.target not in ZEROS]
        parts = [part_of(call, stretch) for stretch in stretches]
        if not parts or not all(parts):
            return
        total: fx.Node | None = None
        for (gradient, dim, _, _), part in zip(stretches, parts, strict=True):
            assert part is not None
            with graph.inserting_before(node):
                if gradient.meta["val"].dim() < len(part.geometry.shape):
                    gradient = emit(graph, aten.unsqueeze.default, gradient, dim, like=node)
                own = emit(graph, WEIGHT_GRAD, gradient, *_part_args(graph, node, call, part), like=node)
                args = (own, call.row_ptr, call.cols, *part.limits)
                term = emit(graph, topkast.rows_grad.default, *args, like=node)
                total = term if total is None else emit(graph, aten.add.Tensor, total, term, like=node)
        assert total is not None
        self.replace(node, total, "gradient of parts")


def _part_args(graph: fx.Graph, node: fx.Node, call: WeightCall, part: Part) -> tuple[Any, ...]:
    """The index, key and geometry of a part, as the operators take them."""
    index = emit(graph, topkast.rows_index.default, *call.index, *part.limits, like=node)
    row_ptr, row_fwd, cols = (emit(graph, operator.getitem, index, i, like=node) for i in range(3))
    own = replace(call, values=None, row_ptr=row_ptr, row_fwd=row_fwd, cols=cols, n_fwd=part.n_fwd)
    return own.seen_as(part.geometry).args


def _pieces(node: fx.Node) -> list[Stretch]:
    """The pieces that ``node`` cuts its argument into, if ``node`` cuts and its places are numbers."""
    if node.target not in CUTS or len(node.all_input_nodes) > 1:
        return []
    args: Any = node.args
    whole, *given = args
    value = whole.meta["val"]
    if node.target is aten.select.int:
        dim, at = given
        dim, at = dim % value.dim(), at % value.shape[dim]
        return [Stretch(node, dim, at, at + 1)]
    if node.target is aten.unbind.int:
        (dim,) = given or (0,)
        return [Stretch(piece, dim % value.dim(), at, at + 1) for at, piece in getitems(node).items()]
    if node.target is aten.slice.Tensor:
        limits = slice_limits(node)
        return [] if limits is None else [Stretch(node, *limits)]
    _, dim = (*given, 0)[:2]
    dim %= value.dim()
    sizes = [piece.shape[dim] for piece in node.meta["val"]]
    return _one_after_another([(getitems(node).get(i), size) for i, size in enumerate(sizes)], dim)


def _joined(node: object) -> list[Stretch]:
    """The gradients that ``node`` puts one after another, or the one that it puts among zeros."""
    if not isinstance(node, fx.Node):
        return []
    args: Any = node.args
    if node.target in (aten.cat.default, aten.stack.default):
        parts, dim = (*args, 0)[:2]
        dim %= node.meta["val"].dim()
        if node.target is aten.stack.default:
            return [Stretch(part, dim, at, at + 1) for at, part in enumerate(parts)]
        return _one_after_another([(part, part.meta["val"].shape[dim]) for part in parts], dim)
    if len(node.all_input_nodes) > 1:  # a place that is a node
        return []
    if node.target is aten.slice_backward.default:
        gradient, sizes, dim, low, high, step = args
        low, high, _ = slice(low, high).indices(sizes[dim])
        return [Stretch(gradient, dim % len(sizes), low, high)] if step == 1 else []
    if node.target is aten.select_backward.default:
        gradient, sizes, dim, at = args
        dim, at = dim % len(sizes), at % sizes[dim]
        return [Stretch(gradient, dim, at, at + 1)]
    return []


def _one_after_another(parts: list[tuple[fx.Node | None, int]], dim: int) -> list[Stretch]:
    ends = list(itertools.accumulate(size for _, size in parts))
    placed = zip(parts, ends, strict=True)
    return [Stretch(part, dim, end - size, end) for (part, size), end in placed if part is not None]
