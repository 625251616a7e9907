"""Which format "auto" takes for a weight: the fastest that was measured, and never one that loses to dense.

Measured by ``topkast.tools.bench onnx`` on layers of 4096 x 4096 and 1024 x 4096 at 1 to 256 rows of x, and on smaller
ones: a limit is the densest that was measured and beat dense in the worst case (a fifth and a tenth, with room for
rounding).
"""

from __future__ import annotations

import math

from topkast.passes.onnx.blocks import Blocks
from topkast.passes.onnx.constant_products import Convolution

from . import block

MANY_ROWS = 16  # rows of x from which the kernels' vectors are full
# Multiplications of the dense product, for x of many rows and of few: with less, what a node costs beside them decides.
LEAST_WORK = {True: 2**18, False: 2**20}
# Rows of a block -> the density up to which our kernels win, for x of many rows and of few.
CUSTOM = {True: {1: 0.22}, False: {1: 0.11, 4: 0.22}}
# Rows or columns of a block, the fewer -> the density up to which standard operators win, padding included.
STANDARD = {32: 0.22}

# Convolutions, by ``topkast.tools.bench convs``: ResNet-50's at batches of 1 and 8, single weights and blocks of 16 x
# 1. Multiplications of the smallest that was measured; and columns of the weight -> the density up to which ours win:
# with less than 16 rows a block, the same for one image, and with more. With few columns memory decides.
CONV_LEAST_WORK = 2**23
CONV = {128: 0.11, 256: 0.22}
CONV_ALONE = {64: 0.11}
CONV_BLOCKS = {64: 0.22}


def format_of(weight: Blocks, rows: int | None) -> tuple[str, str]:
    """(format, why): "block" where standard operators suffice, else "custom" or "dense".

    Args:
        weight: as it would be stored.
        rows: of x in the examples; None where the file does not say, which is taken for one.
    """
    (r, c), rows = weight.block, rows or 1
    unit, about = f"blocks of {r} x {c}", f"x of {rows} row{'s' * (rows > 1)}"
    many, work = rows >= MANY_ROWS, rows * weight.shape[0] * weight.shape[1]
    if work < LEAST_WORK[many]:
        return "dense", f"the product is too small for a sparse one to be faster, with {about}"
    standard, cells = _limit(STANDARD, min(r, c)), weight.grid[0] * weight.grid[1]
    fits = work >= LEAST_WORK[False] and block.refusal(weight) is None  # its nodes are many
    if fits and block.grouped(weight).stored <= standard * cells:
        return "block", f"{unit}: faster in any ONNX Runtime"
    limit = _limit(CUSTOM[many], r)
    if weight.density <= limit:
        return "custom", f"{unit}: faster with topkast's library, as fast as dense without"
    return "dense", f"{unit} are faster only up to a density of {limit:.0%}, with {about}"


def conv_format_of(weight: Blocks, conv: Convolution, y: list[list[int | None] | None]) -> tuple[str, str]:
    """(format, why) of a convolution: "custom" or "dense".

    Args:
        weight: as it would be stored.
        conv: the convolution.
        y: dimensions of its results in the examples, None where the file does not say.
    """
    (r, c), (rows, columns) = weight.block, weight.shape
    unit, about = f"blocks of {r} x {c}", f"{columns} inputs to each output"
    # Of the smallest result; what is not known is taken for one.
    positions = min(math.prod(size or 1 for size in (dims or [])) // rows for dims in y)
    if c > 1:
        return "dense", f"{unit}: convolutions were measured with blocks of one column"
    if positions * rows * columns < CONV_LEAST_WORK:
        return "dense", "the convolution is too small for a sparse one to be faster"
    batches = [dims[0] or 1 for dims in y if dims]
    limits = CONV if r < 16 else CONV_BLOCKS
    if r < 16 and max(batches, default=1) == 1:
        limits = limits | CONV_ALONE
    limit = _limit(limits, columns)
    if weight.density <= limit:
        return "custom", f"{unit}: faster with topkast's library, as fast as dense without"
    return "dense", f"{unit} are faster only up to a density of {limit:.0%}, with {about}"


def _limit(limits: dict[int, float], size: int) -> float:
    return max((density for least, density in limits.items() if least <= size), default=0.0)
