"""Give every sparse product the kernel that runs it: the fastest one, as the planner measured."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from topkast.runtime import planner
from topkast.runtime.kernels import DENSE, PRODUCTS, candidates

from .base import Pass
from .nodes import topkast

_TARGETS = {getattr(topkast, product).default: product for product in PRODUCTS}


def _hint(size: Any) -> int:
    """A size, or what a symbolic one is in the example that is being compiled."""
    return size if isinstance(size, int) else int(size.node.hint)


class ChooseKernel(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        for node in graph.nodes:
            product = _TARGETS.get(node.target)
            if product is None:
                continue
            kernel = self._kernel(product, node)
            node.kwargs = {**node.kwargs, "impl": kernel}
            self.matched(kernel)

    def _kernel(self, product: str, node: fx.Node) -> str:
        names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
        found = dict(zip(names, node.args, strict=False))
        shape, perm, lead, block = (found[name] for name in ("shape", "perm", "lead", "block"))
        geometry = planner.Geometry(tuple(shape), tuple(perm), lead, tuple(block))
        operands: list[Tensor] = [found[name].meta["val"] for name in ("dy", "x") if name in found]
        fitting = candidates(product, operands[0], geometry)
        if fitting[0] in DENSE:  # nothing to weigh: the dense product, in its fastest form
            return planner.setting() if planner.setting() in fitting else fitting[0]
        n_bwd = found["cols"].meta["val"].shape[0]
        layouts = tuple((tuple(map(_hint, t.shape)), tuple(map(_hint, t.stride()))) for t in operands)
        n_fwd = planner.forward_count(geometry, n_bwd)
        dtype, threads, device = operands[0].dtype, torch.get_num_threads(), operands[0].device
        return planner.choose(planner.Problem(product, layouts, dtype, geometry, n_fwd, n_bwd, threads, device))
