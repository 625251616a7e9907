"""Score, choose and store sets on the GPU, as ``reference.selection`` and ``layout`` do, without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor

from topkast.runtime import operands
from topkast.runtime.layout import Geometry, Index, column_type
from topkast.runtime.triton import runs_on
from topkast.runtime.triton.launching import launch

# dtype of the scores -> (shift, bits) of the parts of a key, highest first. A float32 that is not negative has 31 bits.
# A bfloat16 becomes a float32 whose lower 16 bits are zero, so two parts are enough.
_DIGITS = {
    torch.bfloat16: ((23, 8), (15, 8)),
    torch.float16: ((23, 8), (15, 8), (7, 8)),
    torch.float32: ((23, 8), (15, 8), (7, 8), (0, 7)),
    torch.float64: (*((shift, 8) for shift in range(55, 0, -8)), (0, 7)),
}
_SIZE = 4096
PARTS = 1024  # the largest number of programs for a row


def fits(tensor: Tensor) -> bool:
    """Whether this file can run for scores, weights or masks of this dtype, size and device."""
    known = tensor.dtype == torch.bool or tensor.dtype in _DIGITS
    return known and tensor.numel() < 2**31 and runs_on(tensor.device)


def block_scores(theta: Tensor, geometry: Geometry) -> Tensor:
    """The same as :func:`topkast.runtime.reference.selection.scores` for blocks of more than one weight, [units].

    Args:
        theta: the dense weight, in its own shape.
    """
    from .sets_kernels import block_scores_kernel

    operands.stored(theta=theta)
    operands.sized("theta", theta, geometry.shape)
    matrix = theta.permute(geometry.perm).reshape(geometry.rows, geometry.cols)
    scores = torch.empty(geometry.units, dtype=torch.float64, device=theta.device)
    (r, c), (rows, columns) = geometry.block, geometry.grid
    levels = (c - 1).bit_length()
    units = max(1, 1024 >> levels)
    launch(
        block_scores_kernel, (rows, -(-columns // units)), matrix,
        matrix, scores, *matrix.shape, columns, *matrix.stride(),
        R=r, C=c, WIDTH=1 << levels, LEVELS=levels, UNITS=units,
        enable_fp_fusion=False, num_warps=4,  # a product of two float64 is rounded before it is added
    )  # fmt: skip
    return scores


def largest(score: Tensor, count: int) -> Tensor:
    """The same as :func:`topkast.runtime.reference.selection.largest`, for scores that are not negative.

    This is a radix select: the keys are counted by their next digit, from the highest digit to the lowest.
    """
    from .sets_kernels import digit_kernel, histogram_kernel, mask_kernel

    operands.stored(score=score)
    operands.counted(score, count)
    mask = torch.zeros(score.shape, dtype=torch.bool, device=score.device)
    n = score.shape[-1]
    rows = score.numel() // n if n else 0
    if count == 0 or rows == 0:
        return mask
    score, wide = score.contiguous(), score.dtype == torch.float64
    span = -(-n // (_SIZE * PARTS)) * _SIZE
    parts = -(-n // span)
    state = torch.zeros(rows, 2, dtype=torch.int64 if wide else torch.int32, device=score.device)
    state[:, 1] = count
    counts = torch.empty(rows, parts, 256, dtype=torch.int32, device=score.device)
    for shift, bits in _DIGITS[score.dtype]:
        launch(
            histogram_kernel, (rows, parts), score,
            score, state, counts, n, span, WIDE=wide, SHIFT=shift, BITS=bits, SIZE=_SIZE,
        )  # fmt: skip
        launch(digit_kernel, (rows,), score, state, counts, parts, SHIFT=shift, BINS=1 << bits)
    launch(
        mask_kernel, (rows, parts), score,
        score, state, counts, mask.view(torch.uint8), n, span,
        WIDE=wide, SHIFT=shift, BINS=1 << bits, PARTS=1 << (parts - 1).bit_length(), SIZE=_SIZE,
    )  # fmt: skip
    return mask


def build_index(fwd: Tensor, bwd: Tensor, slots: int) -> Index:
    """The same as :func:`topkast.runtime.layout.build_index`."""
    from .sets_kernels import index_kernel

    operands.stored(bwd=bwd, fwd=fwd)
    operands.nested(fwd, bwd)
    rows, columns = bwd.shape
    row_ptr = torch.zeros(rows + 1, dtype=torch.int64, device=bwd.device)
    torch.cumsum(bwd.sum(1), 0, out=row_ptr[1:])
    row_fwd = row_ptr[:-1] + fwd.sum(1)
    kind = column_type(columns)
    # Made in the signed type of this width, because torch supports every operation for signed types.
    cols = torch.zeros(slots, dtype=torch.int16 if kind == torch.uint16 else kind, device=bwd.device).view(kind)
    masks = [mask.contiguous().view(torch.uint8) for mask in (fwd, bwd)]
    launch(index_kernel, (rows,), bwd, *masks, row_ptr, row_fwd, cols, columns, SIZE=1024, num_warps=4)
    return Index(row_ptr, row_fwd, cols)


def index_masks(index: Index, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """The same as :func:`topkast.runtime.layout.index_masks`."""
    from .sets_kernels import masks_kernel

    operands.on_device(None, index, geometry)
    rows, columns = geometry.grid
    fwd, bwd = torch.zeros(2, geometry.units, dtype=torch.uint8, device=index.cols.device)
    launch(
        masks_kernel, (rows, -(-columns // 1024)), fwd, *index, fwd, bwd, columns, SIZE=1024, num_warps=4
    )  # fmt: skip
    return fwd.view(torch.bool), bwd.view(torch.bool)
