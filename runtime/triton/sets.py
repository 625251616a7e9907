"""Choose and store sets on the GPU, as ``reference.selection`` and ``layout`` do, without waiting for the GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from topkast.runtime import operands
from topkast.runtime.layout import Index, column_type

from . import runs_on

_DIGITS = ((23, 8), (15, 8), (7, 8), (0, 7))  # (shift, bits) of the 31 bits of a float >= 0, highest first
_SIZE = 4096
PARTS = 1024  # the largest number of programs for a row


def fits(tensor: Tensor) -> bool:
    """Whether this file can run for scores or masks of this dtype, size and device."""
    return tensor.dtype in (torch.float32, torch.bool) and tensor.numel() < 2**31 and runs_on(tensor.device)


def largest(score: Tensor, count: int) -> Tensor:
    """The same as :func:`topkast.runtime.reference.selection.largest`, for float32 scores that are not negative.

    This is a radix select: four times, the keys are counted by their next digit, from the highest digit to the lowest.
    """
    from .sets_kernels import digit_kernel, histogram_kernel, mask_kernel

    operands.stored(score=score)
    operands.counted(score, count)
    mask = torch.zeros(score.shape, dtype=torch.bool, device=score.device)
    n = score.shape[-1]
    rows = score.numel() // n if n else 0
    if count == 0 or rows == 0:
        return mask
    score = score.contiguous()
    span = -(-n // (_SIZE * PARTS)) * _SIZE
    parts = -(-n // span)
    state = torch.zeros(rows, 2, dtype=torch.int32, device=score.device)
    state[:, 1] = count
    counts = state.new_empty(rows, parts, 256)
    with torch.cuda.device_of(score):
        for shift, bits in _DIGITS:
            histogram_kernel[(rows, parts)](score, state, counts, n, span, SHIFT=shift, BITS=bits, SIZE=_SIZE)
            digit_kernel[(rows,)](state, counts, parts, SHIFT=shift, BINS=1 << bits)
        mask_kernel[(rows, parts)](
            score, state, counts, mask.view(torch.uint8), n, span,
            BINS=1 << bits, PARTS=1 << (parts - 1).bit_length(), SIZE=_SIZE,
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
    with torch.cuda.device_of(bwd):
        index_kernel[(rows,)](*masks, row_ptr, row_fwd, cols, columns, SIZE=1024, num_warps=4)
    return Index(row_ptr, row_fwd, cols)
