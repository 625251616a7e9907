"""Up to which density our kernels are faster than a dense product or convolution in ONNX Runtime."""

from __future__ import annotations

import math

from topkast.passes.onnx.blocks import Blocks
from topkast.passes.onnx.graph import sizes_of

from .measured import LEAST_WORK, MANY_ROWS, limit
from .weight import Weight

# Rows of a block -> the density up to which our kernels win, for x of many rows and of few.
CUSTOM = {True: {1: 0.22}, False: {1: 0.11, 4: 0.22}}

# Convolutions, by ``topkast.tools.bench convs``: ResNet-50's at batches of 1 and 8, single weights and blocks of 16 x
# 1. Multiplications of the smallest that was measured; and columns of the weight -> the density up to which ours win:
# with less than 16 rows a block, the same for one image, and with more. With few columns memory decides.
CONV_LEAST_WORK = 2**23
CONV = {128: 0.11, 256: 0.22}
CONV_ALONE = {64: 0.11}
CONV_BLOCKS = {64: 0.22}


def slower_product(weight: Weight) -> str | None:
    """Why our kernels are not expected to be faster than the dense product, None if they were measured to be."""
    return _slower(weight.matrix, weight.rows)


def slower_recurrence(matrix: Blocks, rows: int) -> str | None:
    """The same for the recurrent matrix of an LSTM or a GRU and a batch of ``rows``, beside ONNX Runtime's own node."""
    return _slower(matrix, rows)


def _slower(matrix: Blocks, rows: int) -> str | None:
    many = rows >= MANY_ROWS
    about = f"x of {rows} row{'s' * (rows > 1)}"
    if rows * matrix.shape[0] * matrix.shape[1] < LEAST_WORK[many]:
        return f"the product is too small for a sparse one to be faster, with {about}"
    return _too_dense(matrix, limit(CUSTOM[many], matrix.block[0]), about)


def slower_convolution(weight: Weight) -> str | None:
    """Why our kernels are not expected to be faster than the dense convolution, None if they were measured to be."""
    (r, c), (rows, columns) = weight.matrix.block, weight.matrix.shape
    # Dimensions of the results in the examples. The smallest counts; a size that the file does not say counts as one.
    y = [sizes_of(product.y, weight.sizes) for product in weight.products]
    positions = min(math.prod(size or 1 for size in (dims or [])) // rows for dims in y)
    if c > 1:
        return f"blocks of {r} x {c}: convolutions were measured with blocks of one column"
    if positions * rows * columns < CONV_LEAST_WORK:
        return "the convolution is too small for a sparse one to be faster"
    batches = [dims[0] or 1 for dims in y if dims]
    limits = CONV if r < 16 else CONV_BLOCKS
    if r < 16 and max(batches, default=1) == 1:
        limits = limits | CONV_ALONE
    return _too_dense(weight.matrix, limit(limits, columns), f"{columns} inputs to each output")


def _too_dense(matrix: Blocks, most: float, about: str) -> str | None:
    if matrix.density <= most:
        return None
    r, c = matrix.block
    return f"blocks of {r} x {c} are faster only up to a density of {most:.0%}, with {about}"
