"""Take a weight's gradient in float32, as kernels sum it, if float32 is what it is cast to.

    before: grad = _to_copy(sddmm(dy, x, ..., impl="bf16"), float32)
    after:  grad = sddmm(dy, x, ..., impl="bf16", dtype=float32)

Autocast rounds the gradient of a weight to bfloat16 and widens it again: two passes over B's values, and a rounding
that no one asked for.
"""

from __future__ import annotations

import torch
from torch import fx

from topkast.passes.aten.base import Pass
from topkast.passes.aten.nodes import emit, is_cast, topkast
from topkast.runtime.kernels.candidates import SUMMING

SDDMM = topkast.sddmm.default


class KeepSums(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if not is_cast(node) or node.meta["val"].dtype != torch.float32:
                continue
            product = node.args[0]
            if product.target is SDDMM and len(product.users) == 1 and product.kwargs.get("impl") in SUMMING:
                with graph.inserting_before(node):
                    new = emit(graph, SDDMM, *product.args, like=product, **{**product.kwargs, "dtype": torch.float32})
                self.replace(node, new, "weight gradient")
                graph.erase_node(product)
