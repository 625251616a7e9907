"""The products of :mod:`topkast.runtime.reference.products` on the native kernels. They compute in float32 for every
input dtype."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from ctypes import byref

import torch
from torch import Tensor

from topkast.runtime import operands
from topkast.runtime.errors import ConfigError
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.operands import address

from . import Matrix, View, library, parallel

MAX_BLOCK = 64  # largest number of rows and of columns of a block; the kernels' buffers have this size
ACTIVATIONS = ("", "relu", "gelu", "gelu_tanh", "silu")  # in the order of the library's numbers
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
    """The library. It exists if :func:`fits` returned True."""
    found = library()
    assert found is not None
    return found


def _work(w: Matrix, m: int, product: str = "") -> int:
    """The address of scratch memory for a product of m rows; ``product`` is "tk_spmm_t" or another."""
    floats = lib().tk_spmm_t_workspace if product == "tk_spmm_t" else lib().tk_workspace
    return scratch(floats(byref(w), m))


def scratch(floats: int) -> int:
    """The address of scratch memory. It is kept for this thread, because the system maps new memory page by page."""
    kept = getattr(_scratch, "work", None)
    if kept is None or kept.numel() < floats:
        kept = _scratch.work = torch.empty(floats, device="cpu")
    return kept.data_ptr()


def view(name: str, tensor: Tensor) -> View:
    """The view of a 2-D tensor with its strides, or of contiguous tiles [m / width, n, width]. ``name`` is the name of
    the argument."""
    if tensor.dim() == 2:
        return View(address(name, tensor), *tensor.shape, *tensor.stride(), 0)
    tiles, n, width = tensor.shape
    return View(address(name, tensor), tiles * width, n, 0, 0, width)


def matrix(
    values: Tensor | None,
    index: Index,
    geometry: Geometry,
    part: int = 0,
    parts: int = 1,
    dtype: torch.dtype = torch.float32,
) -> tuple[Matrix, list[Tensor]]:
    """The weight with its values in ``dtype``, or part number ``part`` of ``parts`` weights stacked in its rows; and
    tensors that must exist until the call has ended.

    Raises:
        OperandError: the index or the values belong to another weight, or are not in the CPU's memory.
    """
    operands.weight(values, index, geometry)
    (r, c), rows = geometry.block, geometry.grid[0] // parts
    keep = [tensor.contiguous() for tensor in index]
    row_ptr, row_fwd, cols = keep
    if values is not None:
        values = values.to(dtype).contiguous()
        keep.append(values)
    begins = address("row_ptr", row_ptr)
    operands.within(begins, geometry.grid[0], cols)
    found = Matrix(
        0 if values is None else address("values", values),
        begins + 8 * part * rows,
        address("row_fwd", row_fwd) + 8 * part * rows,
        address("cols", cols),
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
    """Whether no block row belongs to two stacked weights."""
    return parts == 1 or geometry.rows % (parts * geometry.block[0]) == 0


def width(geometry: Geometry) -> int:
    """Rows in a tile, for products with this weight whose activations are tiles."""
    return lib().tk_width(byref(Matrix(r=geometry.block[0], c=geometry.block[1], col_bytes=4)))


def whole(width: int) -> bool:
    """Whether tiles of this width consist of whole vectors on every instruction set."""
    return width % 16 == 0


def _check(geometry: Geometry, widths: Sequence[int]) -> None:
    """Raise ConfigError if the kernels in use would read or write tiles of these widths out of bounds."""
    if widths and any(widths) and {*widths} - {0, width(geometry)}:
        raise ConfigError(f"tiles of {max(widths)} rows: the kernels in use take {width(geometry)}; compile again")


def pack(x: Tensor, width: int) -> Tensor:
    """Convert rows to tiles: [M, N], any strides, M a multiple of ``width``, to [M / width, N, width]."""
    if x.dim() != 2 or x.dtype != torch.float32 or not whole(width) or width < 1 or x.shape[0] % width:
        operands.wrong("x", x, f"float32 [M, N], M a multiple of the width, {width}, and that of 16")
    rows = view("x", x)
    tiles = torch.empty(x.shape[0] // width, x.shape[1], width, device="cpu")
    lib().tk_pack(byref(parallel()), byref(rows), byref(view("tiles", tiles)))
    return tiles


def unpack(tiles: Tensor) -> Tensor:
    """Convert tiles to rows: the inverse of :func:`pack`."""
    if tiles.dim() != 3 or tiles.dtype != torch.float32 or not whole(tiles.shape[2]):
        operands.wrong("tiles", tiles, "float32 [M / width, N, width], the width a multiple of 16")
    address("tiles", tiles)
    tiles = tiles.contiguous()
    x = torch.empty(tiles.shape[0] * tiles.shape[2], tiles.shape[1], device="cpu")
    lib().tk_pack(byref(parallel()), byref(view("tiles", tiles)), byref(view("x", x)))
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
    is one of :data:`ACTIVATIONS`. An activation needs x in float32 and a bias that is None or [rows]."""
    _check(geometry, widths)
    y, pairs = _operands("x", x, geometry, geometry.cols, widths, geometry.rows)
    at_bias: int | None = None
    if bias is not None and len(pairs) == 1 and bias.shape == (geometry.rows,):
        per_row, bias = bias.float().contiguous(), None  # kept until the call has ended
        at_bias = address("bias", per_row)
    if bias is not None:
        operands.broadcasts("bias", bias, y.shape)
    if act:
        operands.one_of("act", act, ACTIVATIONS)
        if bias is not None or x.dtype != torch.float32:
            operands.wrong("x", x, f"float32, and a bias [{geometry.rows}] or none, where act={act!r}")
    number, threads = ACTIVATIONS.index(act), byref(parallel())
    for part, (one, to) in enumerate(pairs):
        w, keep = matrix(values, index, geometry, part, len(pairs))
        here = view("x", one)
        lib().tk_spmm(threads, byref(w), byref(here), at_bias, number, byref(view("y", to)), _work(w, here.m))
        del keep
    return (y if bias is None else y + bias).to(x.dtype)


def spmm_t(dy: Tensor, values: Tensor, index: Index, geometry: Geometry, widths: Sequence[int] = ()) -> Tensor:
    """dX = dY W_A. dy: [M, rows] or [E, M, rows / E], any strides; ``widths`` as in :func:`_operands`."""
    _check(geometry, widths)
    dx, pairs = _operands("dy", dy, geometry, geometry.rows, widths, geometry.cols, each=True)
    threads = byref(parallel())
    for part, (one, to) in enumerate(pairs):
        w, keep = matrix(values, index, geometry, part, len(pairs))
        here = view("dy", one)
        lib().tk_spmm_t(threads, byref(w), byref(here), byref(view("dx", to)), _work(w, here.m, "tk_spmm_t"))
        del keep
    return dx.to(dy.dtype)


def sddmm(
    dy: Tensor,
    x: Tensor,
    index: Index,
    geometry: Geometry,
    widths: Sequence[int] = (),
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """dY^T X at B, [slots * r * c]. dy: [M, rows] or [E, M, rows / E], x: [M, cols] or [E, M, cols], any strides. If
    the width of dy or x in ``widths`` is not 0, the tensor is tiles. ``dtype`` is the result's; None for that of dy."""
    _check(geometry, widths)
    operands.pair(dy, x, geometry, widths)
    address("dy", dy), address("x", x)
    of_dy, of_x = widths or (0, 0)
    threads = byref(parallel())

    def run(w: Matrix, left: View, right: View, to: int) -> None:
        lib().tk_sddmm(threads, byref(w), byref(left), byref(right), to, _work(w, left.m))

    return sampled(dy, _parts(dy.float(), of_dy), x, _parts(x.float(), of_x), index, geometry, dtype or dy.dtype, run)


def sampled(
    dy: Tensor,
    dys: Sequence[Tensor],
    x: Tensor,
    xs: Sequence[Tensor],
    index: Index,
    geometry: Geometry,
    dtype: torch.dtype,
    run: Callable[[Matrix, View, View, int], None],
) -> Tensor:
    """dY^T X at B in ``dtype``: ``run`` writes the gradient of each stacked weight, in float32.

    Args:
        dy, x: the activations as the operator got them.
        dys, xs: those of each stacked weight.
        index: the index of the weight.
        geometry: the geometry of the weight.
        dtype: of the result.
        run: (a weight, its dy, its x, the address of the whole gradient) -> nothing.

    Raises:
        OperandError: dy and x belong to different numbers of weights.
    """
    if len(dys) != len(xs):
        operands.wrong("x", x, f"as many weights as dy, of shape {tuple(dy.shape)}")
    if dy.numel() == 0:
        operands.weight(None, index, geometry)
        return dy.new_zeros(index.cols.numel() * geometry.unit, dtype=dtype)
    grad = torch.empty(index.cols.numel() * geometry.unit, device="cpu")
    for part in range(len(dys)):
        w, keep = matrix(None, index, geometry, part, len(dys))
        run(w, view("dy", dys[part]), view("x", xs[part]), address("grad", grad))
        del keep
    return grad.to(dtype)


def _parts(activations: Tensor, width: int = 0) -> Sequence[Tensor]:
    """The activations of each stacked weight: there is one weight, unless the rows are batched."""
    if width:
        return (activations.contiguous(),)
    return activations.unbind(0) if activations.dim() == 3 else (activations,)


def _operands(
    name: str, x: Tensor, geometry: Geometry, k: int, widths: Sequence[int], n: int, each: bool = False
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """New memory for a result of ``n`` columns; and for each stacked weight its operand in float32 and its result.

    Args:
        name: the name of the operand.
        k: the operand's columns; ``n`` are the result's columns. If a stack of weights divides the columns, the number
            counts all weights together. It divides the operand's columns if ``each``, otherwise the result's.
        widths: the widths of operand and result: 0 for rows, otherwise tiles of this width; empty for (0, 0).

    Raises:
        OperandError: the operand has another size, or is not in the CPU's memory.
    """
    taken, given = widths or (0, 0)
    m = operands.rows(name, x, k, geometry, each, taken)
    address(name, x)
    if given and m % given:
        operands.wrong(name, x, f"a multiple of {given} rows, as the result is tiles")
    xs = _parts(x.float(), taken)
    n = n if each else n // len(xs)
    shape = (m // given, n, given) if given else (m, n)
    if x.dim() == 3 and not taken:
        y = torch.empty((len(xs), *shape), device="cpu")
        return y, list(zip(xs, y.unbind(0), strict=True))
    y = torch.empty(shape, device="cpu")
    return y, [(xs[0], y)]
