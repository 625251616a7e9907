"""Which format "auto" takes for a weight: the fastest that was measured, and never one that loses to dense.

Measured by ``tools/bench.py onnx`` on layers of 4096 x 4096 and 1024 x 4096, at 1, 32 and 256 rows of x, on one thread
and two: a format counts as faster below the density at which the worst of these cases still beats dense.
"""

from __future__ import annotations

from . import block
from .blocks import Blocks

# Rows of a block (its area, for blocks of several columns) -> the density up to which our kernels win.
CUSTOM = {1: 0.2, 4: 0.2, 16: 0.2}
# Rows and columns of a block, the smaller of them -> the density up to which standard operators win.
STANDARD = {32: 0.2, 64: 0.2}


def format_of(weight: Blocks) -> tuple[str, str]:
    """(format, why): "block" where standard operators suffice, else "custom" or "dense"."""
    r, c = weight.block
    stored = f"{weight.density:.1%} of its blocks of {r} x {c} are stored"
    standard = _limit(STANDARD, min(r, c))
    if block.refusal(weight) is None:
        if block.grouped(weight).stored <= standard * weight.grid[0] * weight.grid[1]:
            return "block", f"{stored}: faster in any ONNX Runtime"
    limit = _limit(CUSTOM, r if c == 1 else r * c)
    if weight.density <= limit:
        return "custom", f"{stored}: faster with topkast's library, as fast as dense without"
    return "dense", f"{stored}: faster only up to {limit:.0%}"


def _limit(limits: dict[int, float], size: int) -> float:
    return max((density for least, density in limits.items() if least <= size), default=0.0)
