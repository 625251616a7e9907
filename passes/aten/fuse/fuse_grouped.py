"""Grouped products of a mixture of experts: each run of rows with its own one of the weights stacked in W_A.

They come as ``aten._grouped_mm``, forward and backward alike, or as the operators that transformers has for the dtypes
which that one does not take in a compiled graph. Only on the CPU: on a GPU ``_grouped_mm`` on the dense W_A is left.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from topkast.passes.aten.base import Pass
from topkast.passes.aten.matrix_products import side_of
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
    transposed,
    weight_operand,
)
from topkast.runtime.layout import Geometry

# Known by name: transformers need not be there.
FORWARD, BACKWARD = "transformers::grouped_mm_fallback", "transformers::grouped_mm_fallback_backward"
GPU = "a grouped product on a GPU: no sparse kernel"

Operands = tuple[fx.Node, fx.Node, fx.Node, bool]  # two factors, the ends of runs, whether one is to be transposed


def _name(node: fx.Node) -> str:
    return node.target._schema.name if isinstance(node.target, torch._ops.OpOverload) else ""


def _grouped_mm(node: fx.Node) -> Operands | None:
    """Of ``aten._grouped_mm`` with runs and nothing else."""
    if node.target is not aten._grouped_mm.default or any(a is not None for a in node.args[3:]):
        return None
    ends = node.args[2] if len(node.args) > 2 else node.kwargs.get("offs")
    others = {key for key, value in node.kwargs.items() if value is not None} - {"offs"}
    return None if others or ends is None else (node.args[0], node.args[1], ends, False)  # type: ignore[return-value]


def _factors(node: fx.Node) -> Operands | None:
    """(a, b, ends, whether a is to be transposed) of a gradient dW = a b, [n, M] by [M, k], run by run."""
    found = _grouped_mm(node)
    if found is not None:
        return found if all(one.meta["val"].dim() == 2 for one in found[:2]) else None
    product: Any = node.args[0] if node.target is operator.getitem else None
    if product is None or _name(product) != BACKWARD or node.args[1] != 1:
        return None
    x, _, ends, dy = product.args
    return x, dy, ends, True


def _stack(g: Geometry, experts: int) -> tuple[list[int], list[int], int, list[int]]:
    """The sizes of a weight whose first dimension of rows is the experts', as kernels take it: a parameter of
    [experts * out, in], say, is seen as a stack."""
    if g.permuted[0] == experts:
        return list(g.shape), list(g.perm), g.lead, list(g.block)
    return [experts, g.rows // experts, g.cols], [0, 1, 2], 2, list(g.block)


class FuseGrouped(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.target is WEIGHT_GRAD:
                self._gradient(graph, node)
        for node in list(graph.nodes):
            found = _grouped_mm(node)
            if found is not None:
                self._product(graph, node, found)
            elif _name(node) == FORWARD:
                self._product(graph, node, (*node.args, False))
            elif _name(node) == BACKWARD and (dx := getitems(node).get(0)) is not None:
                _, weight, ends, dy = node.args
                self._product(graph, dx, (dy, weight, ends, True))

    def _product(self, graph: fx.Graph, node: fx.Node, operands: Operands) -> None:
        """Y = X W or, where the weight is on the left, Y = W X = (Xᵀ Wᵀ)ᵀ."""
        left, right, ends, turned = operands
        swapped, operand = False, weight_operand(right)
        if operand is None:
            swapped, operand = True, weight_operand(left)
        if operand is None:
            return
        weight, where = operand
        if where.dim() != 3:
            return self.refused("stacked weights are merged before the grouped product", weight)
        if weight.meta["val"].device.type != "cpu":
            return self.refused(GPU, weight)
        g = geometry(weight)
        found = side_of(where.mT if swapped != turned else where, as_matrix(positions(g.shape), g))
        if found is None:
            return self.refused("the weight's rows and columns are mixed before the product", weight)
        target = topkast.grouped_spmm.default if found == "transpose" else topkast.grouped_spmm_t.default
        with graph.inserting_before(node):
            x = transposed(graph, right) if swapped else left
            new = emit(graph, target, x, ends, *weight.args[:5], *_stack(g, len(where)), like=node)
            if swapped:
                new = transposed(graph, new)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        self.matched("grouped_spmm" if found == "transpose" else "grouped_spmm_t")

    def _gradient(self, graph: fx.Graph, node: fx.Node) -> None:
        found, chain = source(node.args[0])
        operands = None if found is None else _factors(found)
        if found is None or operands is None:
            return
        a, b, ends, turned = operands
        if node.meta["val"].device.type != "cpu":
            return self.refused(GPU, node)
        shape = found.meta["val"].shape
        if not all(isinstance(size, int) for size in shape):
            return self.refused("a gradient of symbolic shape", node)
        g, where = geometry(node), positions(tuple(shape))
        came = replay(chain, where)
        way = None if came is None else side_of(where, as_matrix(came, g))
        if way is None:
            return self.refused("the gradient's rows and columns are mixed after the product", node)
        with graph.inserting_before(node):
            rows = a if turned else transposed(graph, a)
            dy, x = (rows, b) if way == "matrix" else (b, rows)  # dW = dYᵀ X, or its transpose Xᵀ dY
            sizes = _stack(g, len(where))
            new = emit(graph, topkast.grouped_sddmm.default, dy, x, ends, *node.args[1:5], *sizes, like=node)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        self.matched("grouped_sddmm")
