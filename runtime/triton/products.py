"""The products of :mod:`topkast.runtime.reference.products` on blocks whose sides are multiples of 16, in Triton.

The input gradient needs A by columns. A site in training keeps this second index (:func:`renew_turned`) in one tensor
that is renewed in place together with the sets, so a captured CUDA graph reads the new one at the same address. Every
other product (parts of a weight, stacked weights) makes the index inside the product, with one launch more.
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
from .launching import check_memory, launch

SIDES = (16, 128)  # smallest and largest side of a block
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WGMMA_ROWS = 64  # the least rows of a product in Hopper's tensor cores; of float32 both operands have to lie along k


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
    check_memory(values, index, geometry, x=x)
    lists = (index.row_ptr, index.row_fwd, index.cols, index.cols)
    return _spmm("spmm", x, values, lists, geometry, bias, act)


def spmm_t(
    dy: Tensor, values: Tensor, index: Index, geometry: Geometry, widths: object = (), turned: Tensor | None = None
) -> Tensor:
    """dX = dY W_A. dy: [M, rows] or [E, M, rows / E], any strides.

    Args:
        widths: must be empty: these kernels have no tiles.
        turned: the index by columns, see :func:`renew_turned`; None: it is made here.
    """
    operands.rows("dy", dy, geometry.rows, geometry, each=True)
    check_memory(values, index, geometry, dy=dy, **({} if turned is None else {"turned": turned}))
    parts = dy.shape[0] if dy.dim() == 3 else 1
    own = turned is None or parts > 1
    lists = transpose(index, geometry, parts) if own else _turned_lists(turned, geometry)  # type: ignore[arg-type]
    return _spmm("spmm_t", dy, values, lists, geometry, None, "")


def turned_size(geometry: Geometry, n_fwd: int) -> int:
    """The length of the tensor that :func:`renew_turned` fills, for A with ``n_fwd`` blocks."""
    return 2 * (_aligned(geometry.grid[1]) + _aligned(n_fwd))


def _aligned(count: int) -> int:
    """The next multiple of 4 numbers, 16 bytes: all parts of the tensor begin at such addresses."""
    return -(-count // 4) * 4


def _turned_lists(turned: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    columns, room = geometry.grid[1], _aligned(geometry.grid[1])
    entries = (turned.shape[0] - 2 * room) // 2
    begins, ends, slots, rows = turned.split([room, room, entries, entries])
    return begins.narrow(0, 0, columns), ends.narrow(0, 0, columns), slots, rows


@torch.no_grad()
def renew_turned(turned: Tensor, index: Index, geometry: Geometry) -> None:
    """Write A by block columns: where every column's list begins and ends, the slots, and the block rows.

    Args:
        turned: int32 [:func:`turned_size`], changed in place.
    """
    from .spmm_kernels import transpose_kernel

    lists, (rows, columns) = _turned_lists(turned, geometry), geometry.grid
    begins, ends = lists[:2]
    for fill in (False, True):
        launch(
            transpose_kernel, (columns, 1), turned, *index, *lists, rows, columns,
            STEPS=columns.bit_length(), BLOCK=256, PLACED=True, FILL=fill, num_warps=4,
        )  # fmt: skip
        if not fill:
            torch.cumsum(ends, 0, dtype=torch.int32, out=begins).sub_(ends)


def transpose(index: Index, geometry: Geometry, parts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A by block columns, for each of ``parts`` weights stacked in the rows.

    Returns:
        begin and end of every column's list, int64 [parts * block columns]; and the slot and the block row of every
        entry, int32 [parts * block columns * block rows of a part].
    """
    from .spmm_kernels import transpose_kernel

    rows, columns = geometry.grid[0] // parts, geometry.grid[1]
    begins, ends = (index.row_ptr.new_empty(parts * columns) for _ in range(2))
    slot_of, row_of = (index.row_ptr.new_empty(parts * columns * rows, dtype=torch.int32) for _ in range(2))
    launch(
        transpose_kernel, (columns, parts), begins,
        *index, begins, ends, slot_of, row_of, rows, columns,
        STEPS=columns.bit_length(), BLOCK=256, PLACED=False, FILL=True, num_warps=4,
    )  # fmt: skip
    return begins, ends, slot_of, row_of


def _spmm(
    product: str, x: Tensor, values: Tensor, lists: tuple[Tensor, ...], geometry: Geometry, bias: Tensor | None,
    act: str,
) -> Tensor:  # fmt: skip
    from .spmm_kernels import spmm_kernel

    xs = x if x.dim() == 3 else x.unsqueeze(0)
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
        launch(
            spmm_kernel, (-(-m // chosen.tile) * count, parts), x,
            xs, values.contiguous(), *lists, xs if b is None else b, y,
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
    from .sddmm_kernels import sddmm_kernel, sum_parts_kernel

    operands.pair(dy, x, geometry)
    check_memory(None, index, geometry, dy=dy, x=x)
    (r, c), (rows, columns) = geometry.block, geometry.grid
    slots = index.cols.numel()
    grad = dy.new_empty(slots * geometry.unit)
    dys, xs = (dy, x) if dy.dim() == 3 else (dy.unsqueeze(0), x.unsqueeze(0))
    parts, m, outputs = dys.shape
    if m == 0:
        return grad.zero_()
    chosen, height = find("sddmm", r, m, dy), _power(r)
    groups = -(-columns * c // chosen.tile)
    splits = programs_a_sum(rows * -(-slots * c // (rows * chosen.tile)), m)
    span = -(-m // (splits * chosen.depth)) * chosen.depth
    found = grad if splits == 1 else dy.new_empty(splits * grad.numel(), dtype=torch.float32)
    launch(
        sddmm_kernel, (rows * groups, splits), dy,
        dys, xs, index.row_ptr, index.cols, found,
        m, outputs, geometry.cols, rows // parts, groups, rows, slots, span,
        *dys.stride(), *xs.stride(),
        R=r, C=c, HEIGHT=height,
        EXACT=outputs % r == 0 and geometry.cols % c == 0 and height == r, EVEN=m % chosen.depth == 0,
        SWAP=height < WGMMA_ROWS <= chosen.tile and dy.dtype != torch.float32, PARTIAL=splits > 1,
        **arithmetic(dy), **launched(chosen),
    )  # fmt: skip
    if splits > 1:
        launch(
            sum_parts_kernel, (-(-grad.numel() // 1024),), dy,
            found, index.row_ptr, grad, rows, slots, geometry.unit, PARTS=splits, SIZE=1024, num_warps=4,
        )  # fmt: skip
    return grad


# dW has few programs where a weight has few blocks: 51 blocks of 128 in B of 2048 x 2048 at 0.8 are 32 programs for 132
# multiprocessors. Then 4 or 8 programs share a block's sum, each over at least this many rows of activations. Two would
# gain nothing: writing and adding the parts costs as much (estimated by tools/gpu/launches/shared_sums.py).
PROGRAMS, SPLIT_ROWS, SPLITS = 128, 1024, (4, 8)


def programs_a_sum(programs: int, m: int) -> int:
    """How many programs share one sum over the rows of activations. The number follows from sizes only, so the order of
    a sum is the same on every GPU."""
    possible = min(PROGRAMS // max(programs, 1), m // SPLIT_ROWS)
    return max((number for number in SPLITS if number <= possible), default=1)


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
