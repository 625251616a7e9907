"""Decide whether products run faster on tiles than on rows: measured once, remembered with the planner's other figures.

If ``TOPKAST_KERNEL`` turns measuring off, tiles are used in every place in which they save a conversion.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence

import torch

from topkast.runtime.kernels.tiled_products import PRODUCTS, pack
from topkast.runtime.kernels.tiled_products import width as width_of
from topkast.runtime.layout import Geometry

from . import cache
from . import plan as planner
from .interleave import interleave
from .plan import Problem

Conversion = tuple[int, int, int]  # rows, columns, width

SECONDS = 0.3  # for one measurement: longer than for kernels, because the difference is only a few percent
PACK_BOUND = 2e-4  # seconds of a call; what a conversion moves at 1 GB a second is added


def pay(problems: Sequence[Problem], conversions: Sequence[Conversion]) -> bool:
    """Whether a region of a graph should run on tiles.

    Args:
        problems: the products of the region, with their widths.
        conversions: the packs and unpacks that are needed in addition.
    """
    if planner.setting() != "measure":
        return True
    found = [cache.remembered(one.key, functools.partial(measure, one), planner.bound(one)) for one in problems]
    extra = sum(_conversion(*one) for one in conversions)
    return sum(one["tiles"] for one in found) + extra < sum(one["rows"] for one in found)


def measure(problem: Problem, seconds: float = SECONDS) -> dict[str, float]:
    """Seconds of a native product on rows, and on the tiles that ``problem.widths`` describes."""
    operands, weight = planner.draw(problem)
    run, bias = PRODUCTS[problem.product], (None,) if problem.product == "spmm" else ()
    taken = problem.widths if problem.product == "sddmm" else problem.widths[:1]
    tiled = [pack(x, width) if width else x for x, width in zip(operands, taken, strict=True)]
    calls: dict[str, Callable[[], object]] = {
        "rows": functools.partial(run, *operands, *weight, *bias),
        "tiles": functools.partial(run, *tiled, *weight, *bias, problem.widths),
    }
    return interleave(calls, seconds)


def _conversion(m: int, n: int, width: int) -> float:
    """Seconds for packing; unpacking takes about the same time."""
    rows = ((m, n), (n, 1))
    key = json.dumps(["pack", [rows], str(torch.float32), None, torch.get_num_threads(), [width]])

    def measured() -> dict[str, float]:
        x = torch.randn(m, n, device="cpu")
        return interleave({"tiles": lambda: pack(x, width)}, SECONDS / 3)

    return cache.remembered(key, measured, PACK_BOUND + 8 * m * n / 1e9)["tiles"]


def refusal(geometry: Geometry, m: int) -> str | None:
    """Why the products of a weight with ``m`` rows of activations cannot run on tiles; None if they can."""
    width = width_of(geometry)
    if m == 0 or m % width:
        return f"the rows of its activations are no multiple of {width}"
    if geometry.rows % geometry.block[0] or geometry.cols % geometry.block[1]:
        return "its blocks hang over the matrix's edge"
    return None
