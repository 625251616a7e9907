"""The products of :mod:`topkast.runtime.reference` on the native kernels; float32 inside, whatever comes in."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from ctypes import byref

import torch
from torch import Tensor

from ..errors import ConfigError
from ..layout import Geometry, Index
from . import Matrix, View, library, parallel

MAX_BLOCK = 64  # rows and columns of a block; the kernels' buffers are cut for it
ACTIVATIONS = ("", "relu", "gelu", "gelu_tanh", "silu")  # as the library numbers them
_scratch = threading.local()


def fits(product: str, operand: Tensor, geometry: Geometry) -> bool:
    """Whether the kernels of this file can run a product with these activations (real or fake)."""
    parts = geometry.permuted[0] if product.startswith("grouped") else operand.shape[0] if operand.dim() == 3 else 1
    return (
        product in ("spmm", "spmm_t", "sddmm", "grouped_spmm", "grouped_spmm_t", "grouped_sddmm")
        and operand.device.type == "cpu"
        and operand.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and max(geometry.block) <= MAX_BLOCK
        and geometry.units < 2**31
        and _separable(geometry, int(parts))
        and library() is not None
    )


def lib() -> ctypes.CDLL:
    """The library, which :func:`fits` has promised."""
    found = library()
    assert found is not None
    return found


def _work(w: Matrix, m: int) -> int:
    """Scratch for a product of m rows."""
    return scratch(lib().tk_workspace(byref(w), m))


def scratch(floats: int) -> int:
    """The address of scratch: kept for this thread, as fresh memory would be mapped page by page."""
    kept = getattr(_scratch, "work", None)
    if kept is None or kept.numel() < floats:
        kept = _scratch.work = torch.empty(floats, device="cpu")
    return kept.data_ptr()


def view(tensor: Tensor) -> View:
    """A 2-D tensor as it lies, or a contiguous one of tiles [m / width, n, width]."""
    if tensor.dim() == 2:
        return View(tensor.data_ptr(), *tensor.shape, *tensor.stride(), 0)
    tiles, n, width = tensor.shape
    return View(tensor.data_ptr(), tiles * width, n, 0, 0, width)


def matrix(
    values: Tensor | None, index: Index, geometry: Geometry, part: int = 0, parts: int = 1
) -> tuple[Matrix, list[Tensor]]:
    """The weight, or the ``part``-th of ``parts`` weights stacked in its rows; and what must outlive the call."""
    (r, c), rows = geometry.block, geometry.grid[0] // parts
    keep = [tensor.contiguous() for tensor in index]
    row_ptr, row_fwd, cols = keep
    if values is not None:
        values = values.float().contiguous()
        keep.append(values)
    found = Matrix(
        0 if values is None else values.data_ptr(),
        row_ptr.data_ptr() + row_ptr.element_size() * part * rows,
        row_fwd.data_ptr() + row_fwd.element_size() * part * rows,
        cols.data_ptr(),
        geometry.rows // parts,
        geometry.cols,
        # Only the last part may clear the unused slots at the end.
        cols.numel() if part == parts - 1 else 0,
        r,
        c,
        cols.element_size(),
    )
    return found, keep


def _separable(geometry: Geometry, parts: int) -> bool:
    """Whether stacked weights share no block row."""
    return parts == 1 or geometry.rows % (parts * geometry.block[0]) == 0


def width(geometry: Geometry) -> int:
    """Rows in a tile of the activations that products with this weight take and give as tiles."""
    return lib().tk_width(byref(Matrix(r=geometry.block[0], c=geometry.block[1], col_bytes=4)))


def whole(width: int) -> bool:
    """Whether tiles of this width are whole vectors on every instruction set."""
    return width % 16 == 0


def _check(geometry: Geometry, widths: Sequence[int]) -> None:
    """Raise ConfigError for tiles that the kernels in use would read or write out of bounds."""
    if any(widths) and {*widths} - {0, width(geometry)}:
        raise ConfigError(f"tiles of {max(widths)} rows: the kernels in use take {width(geometry)}; compile again")


def pack(x: Tensor, width: int) -> Tensor:
    """Rows to tiles: [M, N], any strides, M a multiple of ``width``, to [M / width, N, width]."""
    tiles = torch.empty(x.shape[0] // width, x.shape[1], width, device="cpu")
    lib().tk_pack(byref(parallel()), byref(view(x)), byref(view(tiles)))
    return tiles


def unpack(tiles: Tensor) -> Tensor:
    """The inverse of :func:`pack`."""
    tiles = tiles.contiguous()
    x = torch.empty(tiles.shape[0] * tiles.shape[2], tiles.shape[1], device="cpu")
    lib().tk_pack(byref(parallel()), byref(view(tiles)), byref(view(x)))
    return x


def spmm(
    x: Tensor,
    values: Tensor,
    index: Index,
    geometry: Geometry,
    bias: Tensor | None,
    widths: Sequence[int] = (),
    act: str = "",
) -> Tensor:
    """Y = act(X W_A^T + bias). x: [M, cols] or [E, M, cols], any strides; ``widths`` as in :func:`_operands`; ``act``
    one of :data:`ACTIVATIONS`, which needs x in float32 and a bias that is None or [rows]."""
    _check(geometry, widths)
    xs, y = _operands(x, widths, geometry.rows)
    per_row = None
    if bias is not None and bias.dim() == 1 and bias.numel() == geometry.rows and len(xs) == 1:
        per_row, bias = bias.float().contiguous(), None
    for part in range(len(xs)):
        w, keep = matrix(values, index, geometry, part, len(xs))
        here = view(xs[part])
        lib().tk_spmm(
            byref(parallel()),
            byref(w),
            byref(here),
            None if per_row is None else per_row.data_ptr(),
            ACTIVATIONS.index(act),
            byref(view(y[part])),
            _work(w, here.m),
        )
        del keep
    y = _result(y, x, widths)
    return (y if bias is None else y + bias).to(x.dtype)


def spmm_t(dy: Tensor, values: Tensor, index: Index, geometry: Geometry, widths: Sequence[int] = ()) -> Tensor:
    """dX = dY W_A. dy: [M, rows] or [E, M, rows / E], any strides; ``widths`` as in :func:`_operands`."""
    _check(geometry, widths)
    dys, dx = _operands(dy, widths, geometry.cols, stacked=False)
    for part in range(len(dys)):
        w, keep = matrix(values, index, geometry, part, len(dys))
        here = view(dys[part])
        lib().tk_spmm_t(byref(parallel()), byref(w), byref(here), byref(view(dx[part])), _work(w, here.m))
        del keep
    return _result(dx, dy, widths).to(dy.dtype)


def sddmm(dy: Tensor, x: Tensor, index: Index, geometry: Geometry, widths: Sequence[int] = ()) -> Tensor:
    """dY^T X at B, [slots * r * c]. dy: [M, rows] or [E, M, rows / E], x: [M, cols] or [E, M, cols], any strides; or
    tiles where ``widths``, of dy and of x, are not 0."""
    _check(geometry, widths)
    dys, xs = (_stack(t.float(), bool(w)) for t, w in zip((dy, x), widths or (0, 0), strict=True))
    if dy.numel() == 0:
        return dy.new_zeros(index.cols.numel() * geometry.unit)
    grad = torch.empty(index.cols.numel() * geometry.unit, device="cpu")
    for part in range(len(dys)):
        w, keep = matrix(None, index, geometry, part, len(dys))
        here = view(dys[part])
        args = byref(here), byref(view(xs[part])), grad.data_ptr()
        lib().tk_sddmm(byref(parallel()), byref(w), *args, _work(w, here.m))
        del keep
    return grad.to(dy.dtype)


def _stack(activations: Tensor, packed: bool = False) -> Tensor:
    """With a dim in front for the weights that are stacked: of one, unless rows come batched."""
    return activations.contiguous()[None] if packed else activations if activations.dim() == 3 else activations[None]


def _operands(x: Tensor, widths: Sequence[int], n: int, stacked: bool = True) -> tuple[Tensor, Tensor]:
    """The operand, and fresh memory for a result of ``n`` columns (of all weights together, if ``stacked``).

    ``widths``, empty for (0, 0), are those of operand and result: 0 for rows, else the two are tiles of that width.
    """
    taken, given = widths or (0, 0)
    xs = _stack(x.float(), bool(taken))
    m, n = xs.shape[1] * (xs.shape[3] if taken else 1), n // len(xs) if stacked else n
    return xs, torch.empty((len(xs), m // given, n, given) if given else (len(xs), m, n), device="cpu")


def _result(found: Tensor, like: Tensor, widths: Sequence[int]) -> Tensor:
    """Without the dim of the stack where the operand came without one."""
    return found[0] if any(widths) or like.dim() == 2 else found
