"""Convolutions with W_A, 1-3d, grouped or transposed, become sparse in all three products.

A convolution's weight may be a view of a parameter of another shape: a linear layer's weight with a tap added, or a
parameter whose dimensions are merged, cut or swapped. A product then carries the geometry of the weight as the
convolution sees it. That is possible if both are the same matrix, output channels by input channels and taps: the
blocks, and so the index, are then the same too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from topkast.passes.aten.base import Pass
from topkast.passes.aten.nodes import (  # fmt: skip
    WEIGHT_GRAD,
    as_matrix,
    aten,
    emit,
    geometry,
    getitems,
    positions,
    replay,
    source,
    topkast,
    weight_operand,
)
from topkast.runtime.layout import Geometry

MIXED = "the weight's rows and columns are mixed before the convolution"
LIES = "the result lies in memory as no convolution of the kernels leaves one"
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def seen_as(of_convolution: Tensor, of_parameter: Tensor, g: Geometry, transposed: Any) -> Geometry | None:
    """The geometry of a convolution's weight.

    Args:
        of_convolution: a number for each element of the convolution's weight.
        of_parameter: the same numbers, each at the place that the element has in the parameter.
        g: of the parameter.
        transposed: whether the convolution is.

    Returns:
        The geometry that gives the parameter's matrix; None if there is none.
    """
    shape, dims = tuple(of_convolution.shape), tuple(range(of_convolution.dim()))
    seen = Geometry(shape, (1, 0, *dims[2:]) if transposed else dims, 1, g.block)
    if torch.equal(as_matrix(of_convolution, seen), as_matrix(of_parameter, g)):
        return seen
    # The parameter as it is, but cut into blocks as another op's matrix: the dense kernels take any.
    return g if torch.equal(of_convolution, of_parameter) else None


def _sizes(g: Geometry) -> tuple[list[int], list[int], int, list[int]]:
    return list(g.shape), list(g.perm), g.lead, list(g.block)


class FuseConvolution(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.target is WEIGHT_GRAD:
                self._weight_gradient(graph, node)
        # The views that a gradient went through have no reader now: they must not count as one.
        graph.eliminate_dead_code()
        for node in list(graph.nodes):
            if node.target is aten.convolution.default:
                self._forward(graph, node)
            elif node.target is aten.convolution_backward.default:
                self._input_gradient(graph, node)

    def _weight(self, node: object, transposed: Any) -> tuple[fx.Node, Geometry] | None:
        """The ``weight`` node that a convolution's weight comes from, and its geometry in the convolution."""
        operand = weight_operand(node)
        if operand is None:
            return None
        weight, where = operand
        g = geometry(weight)
        seen = seen_as(where, positions(g.shape), g, transposed)
        if seen is None:
            self.refused(MIXED, weight)
            return None
        return weight, seen

    def _forward(self, graph: fx.Graph, node: fx.Node) -> None:
        x, w, bias, *conv = node.args
        found = self._weight(w, conv[3])
        if found is None:
            return
        weight, g = found
        with graph.inserting_before(node):
            new = emit(graph, topkast.conv.default, x, *weight.args[:5], *_sizes(g), bias, *conv, like=node)
            laid = _laid_out(graph, new, node)
        if laid is None:
            return self.refused(LIES, weight)
        node.replace_all_uses_with(laid)
        graph.erase_node(node)
        self.matched("conv")

    def _weight_gradient(self, graph: fx.Graph, node: fx.Node) -> None:
        found, chain = source(node.args[0])
        backward = found.args[0] if found is not None and found.args else None
        is_output = isinstance(backward, fx.Node) and backward.target is aten.convolution_backward.default
        if not is_output or found.args[1] != 1:  # type: ignore[union-attr]
            return
        dy, x, _, _, *conv, _mask = backward.args  # type: ignore[union-attr]
        where = positions(tuple(found.meta["val"].shape))  # type: ignore[union-attr]
        came = replay(chain, where)
        g = None if came is None else seen_as(where, came, geometry(node), conv[3])
        if g is None:
            return self.refused("the gradient is rearranged after the convolution", node)
        with graph.inserting_before(node):
            new = emit(graph, topkast.conv_weight_grad.default, dy, x, *node.args[1:5], *_sizes(g), *conv, like=node)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        self.matched("conv_weight_grad")

    def _input_gradient(self, graph: fx.Graph, node: fx.Node) -> None:
        dy, x, w, _, *conv, _mask = node.args
        outputs = {k: v for k, v in getitems(node).items() if v.users}
        found = self._weight(w, conv[3])
        if found is None:
            return
        weight, g = found
        if 1 in outputs:
            return self.refused("its dense gradient is used by other ops", weight)
        with graph.inserting_before(node):
            if 0 in outputs:
                new = emit(
                    graph, topkast.conv_input_grad.default, dy, x, *weight.args[:5], *_sizes(g), *conv, like=node
                )
                laid = _laid_out(graph, new, outputs[0])
                if laid is None:
                    return self.refused(LIES, weight)
                outputs[0].replace_all_uses_with(laid)
                self.matched("conv_input_grad")
            if 2 in outputs:  # the bias' gradient must not keep the dense weight alive
                dims = [d for d in range(dy.meta["val"].dim()) if d != 1]  # type: ignore[union-attr]
                outputs[2].replace_all_uses_with(emit(graph, aten.sum.dim_IntList, dy, dims, like=node))
        for item in list(node.users):
            graph.erase_node(item)
        graph.erase_node(node)


def _laid_out(graph: fx.Graph, new: fx.Node, old: fx.Node) -> fx.Node | None:
    """``new`` in the strides of ``old``, which later views rely on. They depend on how the dense weight lies in memory,
    and a view of it may lie otherwise than the kernels' own. None if no memory format gives them."""

    def lies(node: fx.Node) -> str:  # as text: sizes that are symbols are compared without a guard
        return str(tuple(node.meta["val"].stride()))

    if lies(new) == lies(old):
        return new
    for form in (torch.contiguous_format, FORMATS.get(new.meta["val"].dim())):
        moved = None if form is None else emit(graph, aten.clone.default, new, like=old, memory_format=form)
        if moved is not None and lies(moved) == lies(old):
            return moved
    return None
