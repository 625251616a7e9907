"""Convolutions with W_A, 1-3d, grouped or transposed, become sparse in all three products.

    before: y = convolution(x, weight(values, ...), bias, stride, ...)    dx, dw, _ = convolution_backward(dy, x, ...)
    after:  y = conv(x, values, ..., bias, stride, ...)                   conv_input_grad(...), conv_weight_grad(...)

A convolution's weight may be a view of a parameter of another shape: a linear layer's weight with a tap added, or a
parameter whose dimensions are merged, cut or swapped. A product then carries the geometry of the weight as the
convolution sees the weight. That is possible if both are the same matrix, output channels by input channels and taps:
the blocks, and so the index, are then the same too.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from topkast.passes.aten.base import Pass
from topkast.passes.aten.find_weight import WeightGradient, as_matrix, weight_behind
from topkast.passes.aten.moves import positions
from topkast.passes.aten.nodes import aten, emit, getitems, topkast
from topkast.passes.aten.weight_call import WeightCall
from topkast.runtime.layout import Geometry

MIXED = "the weight's rows and columns are mixed before the convolution"
STRIDES = "the result lies in memory as no convolution of the kernels leaves one"
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def seen_as(of_convolution: Tensor, of_parameter: Tensor, g: Geometry, transposed: Any) -> Geometry | None:
    """The geometry of a convolution's weight.

    Args:
        of_convolution: a number for each element of the convolution's weight.
        of_parameter: the same numbers, each at the place that the element has in the parameter.
        g: the parameter's geometry.
        transposed: whether the convolution is a transposed one.

    Returns:
        The geometry that gives the parameter's matrix; None if there is none.
    """
    shape, dims = tuple(of_convolution.shape), tuple(range(of_convolution.dim()))
    seen = Geometry(shape, (1, 0, *dims[2:]) if transposed else dims, 1, g.block)
    if torch.equal(as_matrix(of_convolution, seen), as_matrix(of_parameter, g)):
        return seen
    # The parameter as it is, but cut into blocks as another op's matrix: the dense kernels take any.
    return g if torch.equal(of_convolution, of_parameter) else None


class FuseConvolution(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            gradient = WeightGradient.of(node)
            if gradient is not None:
                self._weight_gradient(graph, gradient)
        # The views that a gradient went through have no reader now: they must not count as one.
        graph.eliminate_dead_code()
        for node in list(graph.nodes):
            if node.target is aten.convolution.default:
                self._forward(graph, node)
            elif node.target is aten.convolution_backward.default:
                self._input_gradient(graph, node)

    def _weight(self, operand: object, transposed: Any) -> tuple[fx.Node, WeightCall] | None:
        """The ``weight`` node behind a convolution's weight, and the weight as the convolution sees it."""
        behind = weight_behind(operand)
        if behind is None:
            return None
        weight, where = behind
        call = WeightCall.of(weight)
        seen = seen_as(where, positions(call.geometry.shape), call.geometry, transposed)
        if seen is None:
            self.refused(MIXED, weight)
            return None
        return weight, call.seen_as(seen)

    def _forward(self, graph: fx.Graph, node: fx.Node) -> None:
        x, operand, bias, *conv = node.args
        _, _, _, transposed, *_ = conv
        behind = self._weight(operand, transposed)
        if behind is None:
            return
        weight, call = behind
        with graph.inserting_before(node):
            new = emit(graph, topkast.conv.default, x, *call.args, bias, *conv, like=node)
            laid_out = _in_strides_of(graph, new, node)
        if laid_out is None:
            return self.refused(STRIDES, weight)
        self.replace(node, laid_out, "conv")

    def _weight_gradient(self, graph: fx.Graph, gradient: WeightGradient) -> None:
        node, maker = gradient.node, gradient.maker
        if maker.target is not operator.getitem:
            return
        backward, output = maker.args
        is_convolution = isinstance(backward, fx.Node) and backward.target is aten.convolution_backward.default
        if not is_convolution or output != 1:
            return
        dy, x, _, _, *conv, _mask = backward.args  # type: ignore[union-attr]
        _, _, _, transposed, *_ = conv
        moved, call = gradient.moved, gradient.call
        seen = None if moved is None else seen_as(gradient.where, moved, call.geometry, transposed)
        if seen is None:
            return self.refused("the gradient is rearranged after the convolution", node)
        with graph.inserting_before(node):
            args = (dy, x, *call.seen_as(seen).args, *conv)
            new = emit(graph, topkast.conv_weight_grad.default, *args, like=node)
        self.replace(node, new, "conv_weight_grad")

    def _input_gradient(self, graph: fx.Graph, node: fx.Node) -> None:
        dy, x, operand, _, *conv, _mask = node.args
        _, _, _, transposed, *_ = conv
        outputs = {at: output for at, output in getitems(node).items() if output.users}
        behind = self._weight(operand, transposed)
        if behind is None:
            return
        weight, call = behind
        if 1 in outputs:
            return self.refused("its dense gradient is used by other ops", weight)
        with graph.inserting_before(node):
            if 0 in outputs:
                new = emit(graph, topkast.conv_input_grad.default, dy, x, *call.args, *conv, like=node)
                laid_out = _in_strides_of(graph, new, outputs[0])
                if laid_out is None:
                    return self.refused(STRIDES, weight)
                self.replace(outputs[0], laid_out, "conv_input_grad")
            if 2 in outputs:  # the bias' gradient must not keep the dense weight alive
                dims = [d for d in range(dy.meta["val"].dim()) if d != 1]  # type: ignore[union-attr]
                outputs[2].replace_all_uses_with(emit(graph, aten.sum.dim_IntList, dy, dims, like=node))
        for output in list(node.users):
            graph.erase_node(output)
        graph.erase_node(node)


def _in_strides_of(graph: fx.Graph, new: fx.Node, old: fx.Node) -> fx.Node | None:
    """``new`` in the strides of ``old``, which later views rely on. They depend on how the dense weight lies in memory,
    and a view of the weight may lie otherwise than the kernels' own. None if no memory format gives them."""

    def strides(node: fx.Node) -> str:  # as text: sizes that are symbols are compared without a guard
        return str(tuple(node.meta["val"].stride()))

    if strides(new) == strides(old):
        return new
    for form in (torch.contiguous_format, CHANNELS_LAST.get(new.meta["val"].dim())):
        moved = None if form is None else emit(graph, aten.clone.default, new, like=old, memory_format=form)
        if moved is not None and strides(moved) == strides(old):
            return moved
    return None
