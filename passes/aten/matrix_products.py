"""Matrix products in ATen graphs, and the shape of a pass that looks at all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from .base import Pass
from .find_weight import WeightGradient
from .nodes import aten

_WITHOUT_BIAS = {aten.mm.default, aten.bmm.default}
_WITH_BIAS = {aten.addmm.default, aten.baddbmm.default}


@dataclass(frozen=True, eq=False)
class MatrixProduct:
    """A product ``left @ right``, of matrices or of batches of them, and what is added to it.

    Args:
        node: the product.
        bias: what is added; None if nothing is.
        left, right: the factors.
    """

    node: fx.Node
    bias: fx.Node | None
    left: fx.Node
    right: fx.Node

    @classmethod
    def of(cls, node: fx.Node) -> MatrixProduct | None:
        """The product that a node is; None if the node is another op."""
        args: Any = node.args
        if node.target in _WITHOUT_BIAS:
            return cls(node, None, *args)
        return cls(node, *args) if node.target in _WITH_BIAS else None

    @property
    def is_scaled(self) -> bool:
        """Whether ``alpha`` or ``beta`` multiplies the product or its bias."""
        return any(self.node.kwargs.get(scale, 1) != 1 for scale in ("alpha", "beta"))


class ProductPass(Pass):
    """Looks at every product, then at every gradient of a weight."""

    def rewrite(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            product = MatrixProduct.of(node)
            if product is not None:
                self._product(graph, product)
        for node in list(graph.nodes):
            gradient = WeightGradient.of(node)
            if gradient is not None:
                self._gradient(graph, gradient)

    def _product(self, graph: fx.Graph, product: MatrixProduct) -> None:
        raise AssertionError(f"{self.name} must say what it does to a product")

    def _gradient(self, graph: fx.Graph, gradient: WeightGradient) -> None:
        raise AssertionError(f"{self.name} must say what it does to a gradient")


def is_product(node: fx.Node) -> bool:
    """Whether a node is a product and nothing else: ``mm`` or ``bmm``."""
    return node.target in _WITHOUT_BIAS


def has_one_symbol_at_most(node: Any) -> bool:
    """Whether all sizes of a node's value are numbers, except one at most, such as the number of rows of a batch."""
    return isinstance(node, fx.Node) and sum(not isinstance(size, int) for size in node.meta["val"].shape) <= 1
