"""Grouped products of a mixture of experts: each run of rows meets its own weight of those stacked in W_A.

    before: y = _grouped_mm(x, permute(weight(values, ...)), ends)
    after:  y = grouped_spmm(x, ends, values, ...)

They come as ``aten._grouped_mm``, forward and backward alike, or as the operators that transformers has for the dtypes
that ``_grouped_mm`` does not take in a compiled graph. Only on the CPU: on a GPU ``_grouped_mm`` reads the dense W_A.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import fx

from topkast.passes.aten.base import Pass
from topkast.passes.aten.find_weight import MIXED, WeightFactor, WeightGradient, side_of
from topkast.passes.aten.nodes import aten, emit, getitems, topkast, transposed
from topkast.passes.aten.weight_call import WeightCall
from topkast.runtime.layout import Geometry

# Known by name: transformers need not be there.
FORWARD, BACKWARD = "transformers::grouped_mm_fallback", "transformers::grouped_mm_fallback_backward"
GPU = "a grouped product on a GPU: no sparse kernel"


class GroupedProduct(NamedTuple):
    """A product of runs of rows.

    Args:
        left, right: the factors.
        ends: where each run ends.
        transposes: whether one factor is to be transposed: the weight in a product, the left one in a gradient.
    """

    left: fx.Node
    right: fx.Node
    ends: fx.Node
    transposes: bool


def _schema_name(node: fx.Node) -> str:
    return node.target._schema.name if isinstance(node.target, torch._ops.OpOverload) else ""


def _grouped_mm(node: fx.Node) -> GroupedProduct | None:
    """The product that an ``aten._grouped_mm`` with ``offs``, and no other option, computes."""
    if node.target is not aten._grouped_mm.default:
        return None
    args: Any = node.args
    kwargs: Any = dict(node.kwargs)
    left, right, *options = args
    ends = options.pop(0) if options else kwargs.pop("offs", None)
    more = [*options, *kwargs.values()]
    plain = ends is not None and all(value is None for value in more)
    return GroupedProduct(left, right, ends, False) if plain else None


def _gradient_product(maker: fx.Node) -> GroupedProduct | None:
    """The factors of a gradient dW = left @ right, [n, M] by [M, k], run by run."""
    product = _grouped_mm(maker)
    if product is not None:
        return product if all(factor.meta["val"].dim() == 2 for factor in product[:2]) else None
    if maker.target is not operator.getitem:
        return None
    args: Any = maker.args
    backward, output = args
    if _schema_name(backward) != BACKWARD or output != 1:
        return None
    x, _, ends, dy = backward.args
    return GroupedProduct(x, dy, ends, True)


def _as_stack(call: WeightCall, experts: int) -> WeightCall:
    """The weight as the kernels take it, with the experts as the first dimension: a parameter of [experts * out, in],
    say, is seen as a stack."""
    g = call.geometry
    if g.permuted[0] == experts:
        return call
    return call.seen_as(Geometry((experts, g.rows // experts, g.cols), (0, 1, 2), 2, g.block))


class FuseGrouped(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            gradient = WeightGradient.of(node)
            if gradient is not None:
                self._gradient(graph, gradient)
        for node in list(graph.nodes):
            product = _grouped_mm(node)
            if product is not None:
                self._product(graph, node, product)
            elif _schema_name(node) == FORWARD:
                x, weight, ends = node.args
                self._product(graph, node, GroupedProduct(x, weight, ends, False))
            elif _schema_name(node) == BACKWARD and (dx := getitems(node).get(0)) is not None:
                _, weight, ends, dy = node.args
                self._product(graph, dx, GroupedProduct(dy, weight, ends, True))

    def _product(self, graph: fx.Graph, node: fx.Node, product: GroupedProduct) -> None:
        factor = WeightFactor.among(product.left, product.right)
        if factor is None:
            return
        where = factor.where_on_right
        if where.dim() != 3:
            return self.refused("stacked weights are merged before the grouped product", factor.weight)
        if factor.weight.meta["val"].device.type != "cpu":
            return self.refused(GPU, factor.weight)
        side = side_of(where.mT if product.transposes else where, factor.matrix)
        if side is None:
            return self.refused(MIXED, factor.weight)
        name = "grouped_spmm" if side == "transpose" else "grouped_spmm_t"
        weight = _as_stack(factor.call, len(where))
        with graph.inserting_before(node):
            x = factor.turn_other(graph)
            new = emit(graph, getattr(topkast, name).default, x, product.ends, *weight.args, like=node)
            new = factor.turn_back(graph, new)
        self.replace(node, new, name)

    def _gradient(self, graph: fx.Graph, gradient: WeightGradient) -> None:
        node, product = gradient.node, _gradient_product(gradient.maker)
        if product is None:
            return
        if node.meta["val"].device.type != "cpu":
            return self.refused(GPU, node)
        if gradient.refusal is not None:
            return self.refused(gradient.refusal, node)
        left, right, ends, transposes = product
        weight = _as_stack(gradient.call, len(gradient.where))
        with graph.inserting_before(node):
            rows = left if transposes else transposed(graph, left)
            dy, x = (rows, right) if gradient.side == "matrix" else (right, rows)  # dW = dYᵀ X, or its transpose Xᵀ dY
            new = emit(graph, topkast.grouped_sddmm.default, dy, x, ends, *weight.args, like=node)
        self.replace(node, new, "grouped_sddmm")
