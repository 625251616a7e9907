"""Convolutions with W_A, 1-3d, grouped or transposed, become sparse in all three products."""

from __future__ import annotations

import torch
from torch import fx

from .base import Pass
from .nodes import (
    WEIGHT_GRAD,
    aten,
    emit,
    geometry,
    getitems,
    positions,
    replay,
    source,
    topkast,
    weight_operand,
)  # fmt: skip


def _plain_weight(node: object) -> fx.Node | None:
    """The ``weight`` node, if every element is still where it was."""
    operand = weight_operand(node)
    if operand is None or not torch.equal(operand[1], positions(geometry(operand[0]).shape)):
        return None
    return operand[0]


class FuseConvolution(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.target is WEIGHT_GRAD:
                self._weight_gradient(graph, node)
        for node in list(graph.nodes):
            if node.target is aten.convolution.default:
                self._forward(graph, node)
            elif node.target is aten.convolution_backward.default:
                self._input_gradient(graph, node)

    def _forward(self, graph: fx.Graph, node: fx.Node) -> None:
        x, w, bias, *conv = node.args
        weight = _plain_weight(w)
        if weight is None:
            return
        with graph.inserting_before(node):
            new = emit(graph, topkast.conv.default, x, *weight.args[:9], bias, *conv, like=node)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        self.matched("conv")

    def _weight_gradient(self, graph: fx.Graph, node: fx.Node) -> None:
        found, chain = source(node.args[0])
        backward = found.args[0] if found is not None and found.args else None
        is_output = isinstance(backward, fx.Node) and backward.target is aten.convolution_backward.default
        if not is_output or found.args[1] != 1:  # type: ignore[union-attr]
            return
        start = positions(geometry(node).shape)
        came = replay(chain, start)
        if came is None or not torch.equal(came, start):
            return self.refused("the gradient is rearranged after the convolution", node)
        dy, x = backward.args[:2]  # type: ignore[union-attr]
        with graph.inserting_before(node):
            conv = backward.args[4:10]  # type: ignore[union-attr]
            new = emit(graph, topkast.conv_weight_grad.default, dy, x, *node.args[1:9], *conv, like=node)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        self.matched("conv_weight_grad")

    def _input_gradient(self, graph: fx.Graph, node: fx.Node) -> None:
        dy, x, w, _, *conv, _mask = node.args
        weight = _plain_weight(w)
        if weight is None:
            return
        outputs = {k: v for k, v in getitems(node).items() if v.users}
        if 1 in outputs:
            return self.refused("its dense gradient is used by other ops", weight)
        with graph.inserting_before(node):
            if 0 in outputs:
                new = emit(graph, topkast.conv_input_grad.default, dy, x, *weight.args[:9], *conv, like=node)
                outputs[0].replace_all_uses_with(new)
                self.matched("conv_input_grad")
            if 2 in outputs:  # the bias' gradient must not keep the dense weight alive
                dims = [d for d in range(dy.meta["val"].dim()) if d != 1]  # type: ignore[union-attr]
                outputs[2].replace_all_uses_with(emit(graph, aten.sum.dim_IntList, dy, dims, like=node))
        for item in list(node.users):
            graph.erase_node(item)
        graph.erase_node(node)
