"""Whether a product with its activation inside is faster than the two after one another: measured once, remembered.

``TOPKAST_EPILOGUE`` says otherwise: ``apart`` never fuses, ``fused`` always; so does ``measure``, the default, where
``TOPKAST_KERNEL`` forbids to measure.
"""

from __future__ import annotations

import functools

from torch import Tensor

from . import planner
from .native import products
from .reference import activation


def setting() -> str:
    """``TOPKAST_EPILOGUE``: "measure" unless set.

    Raises:
        ConfigError: it is not "measure", "apart" or "fused".
    """
    found = planner.read_setting("TOPKAST_EPILOGUE", "apart", "fused")
    return "fused" if found == "measure" and planner.setting() != "measure" else found


def pays(problem: planner.Problem) -> bool:
    """Whether an ``spmm`` is to apply ``problem.act`` itself."""
    if setting() != "measure":
        return setting() == "fused"
    seconds = planner.remembered(problem.key, functools.partial(measure, problem))
    return seconds["fused"] < seconds["apart"]


def measure(problem: planner.Problem, seconds: float = 0.3) -> dict[str, float]:
    """Median seconds of the product with its activation inside, and with PyTorch's after it."""
    (x,), (values, index, geometry) = planner.draw(problem)

    def fused() -> Tensor:
        return products.spmm(x, values, index, geometry, None, act=problem.act)

    def apart() -> Tensor:
        return activation(problem.act, products.spmm(x, values, index, geometry, None))

    return planner.interleave({"fused": fused, "apart": apart}, seconds)
