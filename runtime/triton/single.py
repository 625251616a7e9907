"""The products of :mod:`topkast.runtime.reference.products` on single weights, in Triton: for more than 99 % sparsity
on a GPU.

CUDA cores multiply each weight with a row of activations. They are faster than the dense product on tensor cores (see
:mod:`.transient`) only if few weights are left. The planner measures in which cases this is so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topkast.runtime import operands
from topkast.runtime.layout import Geometry, Index, slot_rows
from topkast.runtime.reference.products import activation

from . import runs_on
from .launching import check_memory, launch
from .products import DTYPES, by_row

DENSITY = 0.01  # density of the set that a product reads; above this density the kernel is not measured


def fits(product: str, operand: Tensor, geometry: Geometry) -> bool:
    """Whether the kernels of this file can run a product with these activations (real or fake)."""
    return (
        product in ("spmm", "spmm_t", "sddmm")
        and operand.dtype in DTYPES
        and geometry.block == (1, 1)
        and geometry.units < 2**31
        and runs_on(operand.device)
    )


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
    check_memory(values, index, geometry, x=x)
    lists = (index.row_ptr, index.row_fwd, index.cols, index.cols)
    parts = x.shape[0] if x.dim() == 3 else 1
    return _spmm(x, values, lists, geometry.rows // parts, False, bias, act)


def spmm_t(dy: Tensor, values: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """dX = dY W_A. dy: [M, rows] or [E, M, rows / E], any strides."""
    operands.rows("dy", dy, geometry.rows, geometry, each=True)
    check_memory(values, index, geometry, dy=dy)
    parts = dy.shape[0] if dy.dim() == 3 else 1
    return _spmm(dy, values, transpose(index, geometry, parts), geometry.cols, True, None, "")


def transpose(index: Index, geometry: Geometry, parts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A by columns, for each of ``parts`` weights stacked in the rows. The sort is stable, so the rows ascend.

    The index is made inside the product and is not stored, see :mod:`.products`. It needs a few numbers for each slot,
    and none for weights outside the sets.

    Returns:
        begin and end of every column's list, int64 [parts * cols]; slot and row of every entry [slots].
    """
    rows, slots = slot_rows(index), torch.arange(index.cols.numel(), device=index.cols.device)
    height = geometry.rows // parts
    in_fwd = slots < torch.nn.functional.pad(index.row_fwd, (0, 1))[rows]
    column = torch.where(in_fwd, rows // height * geometry.cols + index.cols.int(), parts * geometry.cols)
    ordered = torch.sort(column, stable=True)
    borders = torch.arange(parts * geometry.cols + 1, device=rows.device)
    border = torch.searchsorted(ordered.values, borders)
    return border[:-1], border[1:], ordered.indices, rows[ordered.indices] % height


def _spmm(
    x: Tensor, values: Tensor, lists: tuple[Tensor, ...], outputs: int, transposed: bool, bias: Tensor | None, act: str
) -> Tensor:
    from .single_kernels import single_spmm_kernel

    xs = x if x.dim() == 3 else x.unsqueeze(0)
    parts, m, inputs = xs.shape
    y = x.new_empty(parts, m, outputs)
    if bias is not None and by_row(bias, y):
        return activation(act, _spmm(x, values, lists, outputs, transposed, None, "") + bias)
    b = None if bias is None else bias.expand(y.shape)
    tile, rows = min(128, max(16, 1 << (m - 1).bit_length())), 16
    if m:
        launch(
            single_spmm_kernel, (-(-outputs // rows), -(-m // tile), parts), x,
            xs.mT.contiguous(), values.contiguous(), *lists, xs if b is None else b, y,
            m, inputs, outputs, *((0, 0) if b is None else b.stride()[::2]),
            TRANSPOSED=transposed, HAS_BIAS=b is not None, ACTIVATION=act, ROWS=rows, TILE=tile, num_warps=4,
        )  # fmt: skip
    return y.view(*x.shape[:-1], outputs)


def sddmm(dy: Tensor, x: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """dY^T X at B, [slots]. dy: [M, rows] or [E, M, rows / E], x: [M, cols] or [E, M, cols], any strides."""
    from .single_kernels import single_sddmm_kernel

    operands.pair(dy, x, geometry)
    check_memory(None, index, geometry, dy=dy, x=x)
    dys, xs = (dy, x) if dy.dim() == 3 else (dy.unsqueeze(0), x.unsqueeze(0))
    parts, m, height = dys.shape
    slots, size = index.cols.numel(), 16
    grad = dy.new_empty(slots)
    if slots:
        launch(
            single_sddmm_kernel, (-(-slots // size),), dy,
            dys.mT.contiguous(), xs.mT.contiguous(), slot_rows(index), index.cols, grad,
            m, geometry.cols, slots, height, parts * height, SLOTS=size, DEPTH=128, num_warps=4,
        )  # fmt: skip
    return grad
