"""Give every sparse product the kernel that runs it: the fastest one, as the planner measured."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from topkast.passes.aten.base import Pass
from topkast.passes.aten.nodes import geometry_of, named, topkast
from topkast.runtime.kernels.candidates import DENSE, PRODUCTS, candidates
from topkast.runtime.native import library
from topkast.runtime.native.convolution import refusal
from topkast.runtime.planner import plan as planner
from topkast.runtime.reference.products import ConvArgs

_TARGETS = {getattr(topkast, product).default: product for product in PRODUCTS}


def _hint(size: Any) -> int:
    """A size, or what a symbolic one is in the example that is being compiled."""
    return size if isinstance(size, int) else int(size.node.hint)


def conv_args(found: dict[str, Any]) -> ConvArgs | None:
    """The arguments of a convolution among those of a call; None where it is none."""
    return ConvArgs(*(found[name] for name in ConvArgs._fields)) if "stride" in found else None


def problem(node: fx.Node) -> planner.Problem:
    """What the planner is asked for a product."""
    found, geometry = named(node), geometry_of(node)
    operands: list[Tensor] = [found[name].meta["val"] for name in ("dy", "x") if name in found]
    n_bwd = found["cols"].meta["val"].shape[0]
    layouts = tuple((tuple(map(_hint, t.shape)), tuple(map(_hint, t.stride()))) for t in operands)
    n_fwd = planner.forward_count(geometry, n_bwd)
    return planner.Problem(
        _TARGETS[node.target],
        layouts,
        operands[0].dtype,
        geometry,
        n_fwd,
        n_bwd,
        torch.get_num_threads(),
        operands[0].device,
        conv_args(found),
    )


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
        operand, geometry, found = node.args[0].meta["val"], geometry_of(node), named(node)  # type: ignore[union-attr]
        conv = conv_args(found)
        fitting = candidates(product, operand, geometry, conv)
        if fitting[0] in DENSE:  # nothing to weigh: the dense product, in its fastest form
            why = None if conv is None or library() is None else refusal(operand, geometry, conv)
            if why is not None:
                self.refusals[f"native kernel: {why}"] += 1
            return planner.setting() if planner.setting() in fitting else fitting[0]
        return planner.choose(problem(node))
