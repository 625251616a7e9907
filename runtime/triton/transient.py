"""Dense products on a W_A that exists only during the product: for single weights and small blocks on a GPU.

For a tenth of the work, CUDA cores need more than a tenth of the time that tensor cores need for all of it. So one
kernel writes W_A in the dtype of the product, and then a dense product runs. The gradient is computed a few rows at a
time, and B's part of these rows is stored immediately.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topkast.runtime import operands
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.reference.products import DenseProducts

from . import runs_on
from .launching import check_memory, launch

CHUNK = 1024  # rows of the dense gradient in memory at the same time
_SIZE = 1024  # values that a program moves
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def fits(operand: Tensor) -> bool:
    """Whether this file can run, for any product and block."""
    return operand.dtype in _DTYPES and runs_on(operand.device)


def _after(tensor: Tensor, first: int) -> Tensor:
    return tensor.narrow(0, first, tensor.shape[0] - first)


def _move(compact: Tensor, index: Index, ends: Tensor, geometry: Geometry, dense: Tensor, first: int = 0) -> None:
    """Move block rows between compact values and ``dense`` [outputs, inputs]. Block row ``first`` is row 0 of
    ``dense``.

    ``ends`` are the ends of A's part or of B: A is written into the matrix, B is read from the matrix.
    """
    from .move_kernels import move_kernel

    (r, c), gather = geometry.block, ends is not index.row_fwd
    rows, splits = -(-dense.shape[0] // r), -(-geometry.grid[1] * geometry.unit // _SIZE)
    launch(
        move_kernel, (rows * splits,), dense,
        compact, _after(index.row_ptr, first), _after(ends, first), index.cols,
        dense, *dense.shape, *dense.stride(), splits,
        R=r, C=c, GATHER=gather, SIZE=_SIZE, num_warps=4,
    )  # fmt: skip


def weight(values: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """W_A in the weight's own shape, contiguous."""
    check_memory(values, index, geometry)
    # A matrix may have either memory order. Only a permutation of more dims needs another move afterwards.
    plain = geometry.perm == tuple(range(len(geometry.shape)))
    direct = plain or len(geometry.shape) == 2
    dense = values.new_zeros(geometry.shape if direct else geometry.permuted)
    matrix = (dense.permute(geometry.perm) if direct else dense).view(geometry.rows, geometry.cols)
    _move(values.contiguous(), index, index.row_fwd, geometry, matrix)
    return dense if direct else dense.permute(geometry.inverse).contiguous()


def weight_grad(grad: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """A dense gradient sampled at B, [slots * r * c]. Unused slots get zero."""
    operands.sized("grad", grad, geometry.shape)
    check_memory(None, index, geometry, grad=grad)
    found = grad.new_zeros(index.cols.numel() * geometry.unit)
    matrix = grad.permute(geometry.perm).reshape(geometry.rows, geometry.cols)
    _move(found, index, _after(index.row_ptr, 1), geometry, matrix)
    return found


class TransientProducts(DenseProducts):
    """The dense products, except that the weight gradient of a matrix is computed :data:`CHUNK` rows at a time."""

    def sddmm(self, dy: Tensor, x: Tensor, index: Index, geometry: Geometry) -> Tensor:
        """dY^T X at B, [slots * r * c]. dy: [M, rows] or [E, M, rows / E], x: [M, cols] or [E, M, cols]."""
        check_memory(None, index, geometry, dy=dy, x=x)
        parts = dy.shape[0] if dy.dim() == 3 else 1
        r, rows = geometry.block[0], geometry.rows // parts
        if rows % r and parts > 1:  # a block row belongs to two weights
            return super().sddmm(dy, x, index, geometry)
        found = dy.new_zeros(index.cols.numel() * geometry.unit)
        step = max(1, CHUNK // r) * r
        for part, (one_dy, one_x) in enumerate(zip(dy, x, strict=True) if dy.dim() == 3 else [(dy, x)]):
            for first in range(0, rows, step):
                dense = one_dy.narrow(1, first, min(step, rows - first)).mT @ one_x
                _move(found, index, _after(index.row_ptr, 1), geometry, dense, (part * rows + first) // r)
        return found


TRANSIENT = TransientProducts(weight, weight_grad)
