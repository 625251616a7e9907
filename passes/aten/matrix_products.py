"""Matrix products in ATen graphs, and what the passes that look for a weight among their operands share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from .base import Pass
from .nodes import WEIGHT_GRAD, aten

# target -> position of the left operand; the bias, where there is one, comes before it.
PRODUCTS = {aten.mm.default: 0, aten.bmm.default: 0, aten.addmm.default: 1, aten.baddbmm.default: 1}


class ProductPass(Pass):
    """Looks at every product, then at every gradient of a weight."""

    def rewrite(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.target in PRODUCTS:
                self._product(graph, node)
        for node in list(graph.nodes):
            if node.target is WEIGHT_GRAD:
                self._gradient(graph, node)

    def _product(self, graph: fx.Graph, node: fx.Node) -> None:
        raise AssertionError(f"{self.name} must say what it does to a product")

    def _gradient(self, graph: fx.Graph, node: fx.Node) -> None:
        raise AssertionError(f"{self.name} must say what it does to a gradient")


def is_scaled(product: fx.Node) -> bool:
    """Whether ``alpha`` or ``beta`` multiplies the product or its bias."""
    return any(product.kwargs.get(scale, 1) != 1 for scale in ("alpha", "beta"))


def known(node: Any) -> bool:
    """Whether a size at most, that of the rows of a batch, is not known."""
    return isinstance(node, fx.Node) and sum(not isinstance(s, int) for s in node.meta["val"].shape) <= 1


def side_of(where: Tensor, matrix: Tensor) -> str | None:
    """Whether ``where`` ([..., a, b], positions of W) is W's matrix, or its transpose; batches stack in the rows."""
    if where.dim() == 3:
        if matrix.shape[0] % where.shape[0]:
            return None
        matrix = matrix.unflatten(0, (where.shape[0], -1))
    if where.shape == matrix.mT.shape and torch.equal(where, matrix.mT):
        return "transpose"
    if where.shape == matrix.shape and torch.equal(where, matrix):
        return "matrix"
    return None
