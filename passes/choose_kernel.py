"""Give every sparse product the kernel that runs it: the first candidate that fits."""

from __future__ import annotations

from torch import fx

from topkast.runtime.kernels import PRODUCTS, candidates

from .base import Pass
from .nodes import topkast

_TARGETS = {getattr(topkast, product).default: product for product in PRODUCTS}


class ChooseKernel(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        for node in graph.nodes:
            product = _TARGETS.get(node.target)
            if product is None:
                continue
            value = node.meta["val"]
            names = [argument.name for argument in node.target._schema.arguments]
            block = node.args[names.index("block")]
            kernel = candidates(product, value.device, value.dtype, tuple(block))[0]
            node.kwargs = {**node.kwargs, "impl": kernel}
            self.matched(kernel)
