"""The products of :mod:`topkast.runtime.reference.products` on blocks whose sides are multiples of 16, in Triton.

The input gradient needs A by columns. One small kernel makes this index inside the product. The index depends only on
A, so it could be stored. But then it would have to be renewed when a refresh writes a new A into the same tensors, and
a CUDA graph that has captured the product would not notice this. An index that is made for each call is never outdated,
and it exists only during the product: two numbers for each block of the whole weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from topkast.runtime import operands
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.reference.products import activation

from . import interpreted, runs_on
from .configs import Config, find

SIDES = (16, 128)  # smallest and largest side of a block
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def fits(product: str, operand: Tensor, geometry: Geometry) -> bool:
    """Whether the kernels of this file can run a product with these activations (real or fake)."""
    return (
        product in ("spmm", "spmm_t", "sddmm")
        and operand.dtype in DTYPES
        and all(side % 16 == 0 and SIDES[0] <= side <= SIDES[1] for side in geometry.block)
        and (operand.dim() == 2 or _separable(geometry, int(operand.shape[0])))
        and runs_on(operand.device)
    )


def _separable(geometry: Geometry, parts: int) -> bool:
    """Whether no block row belongs to two stacked weights."""
    return geometry.rows % (parts * geometry.block[0]) == 0


def spmm(
    x: Tensor, values: Tensor, index: Index, geometry: Geometry, bias: Tensor | None, widths: object = (), act: str = ""
) -> Tensor:
    """Y = act(X W_A^T + bias). x: [M, cols] or [E, M, cols] with E weights stacked in the rows, any strides.

    Args:
        bias: broadcast over Y, or None.
        widths: must be empty: these kernels have no tiles.
        act: the activation, see :func:`topkast.runtime.reference.products.activation`.
    """
    operands.rows("x", x, geometry.cols, geometry, each=False)
    operands.on_device(values, index, geometry, x=x)
    lists = (index.row_ptr, index.row_fwd, index.cols, index.cols)
    return _spmm("spmm", x, values, lists, geometry, bias, act)


def spmm_t(dy: Tensor, values: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """dX = dY W_A. dy: [M, rows] or [E, M, rows / E], any strides."""
    operands.rows("dy", dy, geometry.rows, geometry, each=True)
    operands.on_device(values, index, geometry, dy=dy)
    parts = dy.shape[0] if dy.dim() == 3 else 1
    return _spmm("spmm_t", dy, values, transpose(index, geometry, parts), geometry, None, "")


def transpose(index: Index, geometry: Geometry, parts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A by block columns, for each of ``parts`` weights stacked in the rows.

    Returns:
        begin and end of every column's list, int64 [parts * block columns]; and the slot and the block row of every
        entry, int32 [parts * block columns * block rows of a part].
    """
    from .spmm_kernels import transpose_kernel

    rows, columns = geometry.grid[0] // parts, geometry.grid[1]
    begins, ends = index.row_ptr.new_empty(2, parts * columns)
    slot_of, row_of = index.row_ptr.new_empty(2, parts * columns * rows, dtype=torch.int32)
    with torch.cuda.device_of(begins):
        transpose_kernel[(columns, parts)](
            *index, begins, ends, slot_of, row_of, rows, columns, STEPS=columns.bit_length(), BLOCK=256, num_warps=4
        )
    return begins, ends, slot_of, row_of


def _spmm(
    product: str, x: Tensor, values: Tensor, lists: tuple[Tensor, ...], geometry: Geometry, bias: Tensor | None,
    act: str,
) -> Tensor:  # fmt: skip
    from .spmm_kernels import spmm_kernel

    xs = x if x.dim() == 3 else x[None]
    (parts, m, inputs), transposed = xs.shape, product == "spmm_t"
    count, outputs = geometry.grid[0] // parts, geometry.rows // parts
    outer, inner = geometry.block
    if transposed:
        count, outputs, inner, outer = geometry.grid[1], geometry.cols, outer, inner
    y = x.new_empty(parts, m, outputs)
    if m:
        chosen = find(product, outer, m, x)
        width = _power(outer)
        if bias is not None and by_row(bias, y):
            return activation(act, _spmm(product, x, values, lists, geometry, None, "") + bias)
        b = None if bias is None else bias.expand(y.shape)
        with torch.cuda.device_of(x):
            spmm_kernel[(-(-m // chosen.tile) * count, parts)](
                xs, values.contiguous(), *lists, y if b is None else b, y,
                m, inputs, outputs, count,
                *xs.stride(), *((0, 0) if b is None else b.stride()[::2]),
                INNER=inner, OUTER=outer, WIDTH=width, TRANSPOSED=transposed,
                EXACT=inner % chosen.depth == 0 and inputs % inner == 0 and width == outer,
                HAS_BIAS=b is not None, ACTIVATION=act,
                **arithmetic(x), **launched(chosen), GROUP=chosen.group,
            )  # fmt: skip
    return y.view(*x.shape[:-1], outputs)


def sddmm(dy: Tensor, x: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """dY^T X at B, [slots * r * c]. dy: [M, rows] or [E, M, rows / E], x: [M, cols] or [E, M, cols], any strides."""
    from .sddmm_kernels import sddmm_kernel

    operands.pair(dy, x, geometry)
    operands.on_device(None, index, geometry, dy=dy, x=x)
    (r, c), (rows, columns) = geometry.block, geometry.grid
    grad = dy.new_zeros(index.cols.numel() * geometry.unit)  # unused slots stay zero
    dys, xs = (dy, x) if dy.dim() == 3 else (dy[None], x[None])
    parts, m, outputs = dys.shape
    if m == 0:
        return grad
    chosen, height = find("sddmm", r, m, dy), _power(r)
    groups = -(-columns * c // chosen.tile)
    with torch.cuda.device_of(dy):
        sddmm_kernel[(rows * groups,)](
            dys, xs, index.row_ptr, index.cols, grad,
            m, outputs, geometry.cols, rows // parts, groups,
            *dys.stride(), *xs.stride(),
            R=r, C=c, HEIGHT=height,
            EXACT=outputs % r == 0 and geometry.cols % c == 0 and height == r, EVEN=m % chosen.depth == 0,
            **arithmetic(dy), **launched(chosen),
        )  # fmt: skip
    return grad


def by_row(bias: Tensor, y: Tensor) -> bool:
    """Whether a bias differs from row to row of y [E, M, N]: the kernels do not support such a bias."""
    return bias.expand(y.shape).stride(1) != 0


def _power(side: int) -> int:
    """The next power of two: Triton's tiles need sides that are powers of two."""
    return 1 << (side - 1).bit_length()


def arithmetic(operand: Tensor) -> dict[str, Any]:
    """How products are computed: float32 with or without tf32, as torch is set; other dtypes sum exact products in
    float32.

    bfloat16 is converted to float32 first if the hardware has no product for it: in the interpreter, and before Ampere.
    """
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    narrow = operand.dtype == torch.bfloat16
    widen = narrow and (interpreted() if operand.device.type == "cpu" else _capability(operand.device) < (8, 0))
    return {"PRECISION": "tf32" if tf32 and operand.dtype == torch.float32 else "ieee", "WIDEN": widen}


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def launched(chosen: Config) -> dict[str, int]:
    """A configuration as keyword arguments of a kernel."""
    return {"TILE": chosen.tile, "DEPTH": chosen.depth, "num_warps": chosen.warps, "num_stages": chosen.stages}
