"""Decide whether a product that includes its activation is faster than the two steps: measured once, remembered.

If ``TOPKAST_KERNEL`` turns measuring off, the product always includes the activation.
"""

from __future__ import annotations

import functools

from torch import Tensor

from topkast.runtime.kernels.candidates import launch
from topkast.runtime.reference.products import activation

from . import cache
from . import plan as planner
from .interleave import interleave


def pays(problem: planner.Problem, kernel: str) -> bool:
    """Whether an ``spmm`` with this kernel should apply ``problem.act`` itself."""
    if planner.setting() != "measure":
        return True
    seconds = cache.remembered(problem.key, functools.partial(measure, problem, kernel), planner.bound(problem))
    return seconds["fused"] < seconds["apart"]


def measure(problem: planner.Problem, kernel: str, seconds: float = 0.3) -> dict[str, float]:
    """Seconds of the product with its activation inside, and with PyTorch's activation after the product."""
    (x,), weight = planner.draw(problem)
    spmm = functools.partial(launch(kernel, "spmm"), x, *weight, None)

    def fused() -> Tensor:
        return spmm(act=problem.act)

    def apart() -> Tensor:
        return activation(problem.act, spmm())

    return interleave({"fused": fused, "apart": apart}, seconds, problem.device)
