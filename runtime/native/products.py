"""The products of :mod:`topkast.runtime.reference` on the native kernels; float32 inside, whatever comes in."""

from __future__ import annotations

import ctypes
import threading
from ctypes import byref

import torch
from torch import Tensor

from ..layout import Geometry, Index
from . import Matrix, View, library, parallel

MAX_BLOCK = 64  # rows and columns of a block; the kernels' buffers are cut for it
_scratch = threading.local()


def fits(product: str, operand: Tensor, geometry: Geometry) -> bool:
    """Whether the kernels of this file can run a product with these activations (real or fake)."""
    return (
        product in ("spmm", "spmm_t", "sddmm")
        and operand.device.type == "cpu"
        and operand.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and max(geometry.block) <= MAX_BLOCK
        and geometry.units < 2**31
        and (operand.dim() == 2 or _separable(geometry, int(operand.shape[0])))
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
        kept = _scratch.work = torch.empty(floats)
    return kept.data_ptr()


def view(tensor: Tensor) -> View:
    """A 2-D tensor as it lies."""
    return View(tensor.data_ptr(), *tensor.shape, *tensor.stride())


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
    return geometry.rows % parts == 0 and (geometry.rows // parts) % geometry.block[0] == 0


def spmm(x: Tensor, values: Tensor, index: Index, geometry: Geometry, bias: Tensor | None) -> Tensor:
    """Y = X W_A^T (+ bias). x: [M, cols] or [E, M, cols], any strides."""
    xs = _stack(x.float())
    y = torch.empty(*xs.shape[:2], geometry.rows // xs.shape[0])
    per_row = None
    if bias is not None and x.dim() == 2 and bias.dim() == 1 and bias.numel() == geometry.rows:
        per_row, bias = bias.float().contiguous(), None
    for part in range(xs.shape[0]):
        w, keep = matrix(values, index, geometry, part, xs.shape[0])
        lib().tk_spmm(
            byref(parallel()),
            byref(w),
            byref(view(xs[part])),
            None if per_row is None else per_row.data_ptr(),
            byref(view(y[part])),
            _work(w, xs.shape[1]),
        )
        del keep
    y = y.view(*x.shape[:-1], -1)
    return (y if bias is None else y + bias).to(x.dtype)


def spmm_t(dy: Tensor, values: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """dX = dY W_A. dy: [M, rows] or [E, M, rows / E], any strides."""
    dys = _stack(dy.float())
    dx = torch.empty(*dys.shape[:2], geometry.cols)
    for part in range(dys.shape[0]):
        w, keep = matrix(values, index, geometry, part, dys.shape[0])
        args = byref(view(dys[part])), byref(view(dx[part]))
        lib().tk_spmm_t(byref(parallel()), byref(w), *args, _work(w, dys.shape[1]))
        del keep
    return dx.view(*dy.shape[:-1], -1).to(dy.dtype)


def sddmm(dy: Tensor, x: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """dY^T X at B, [slots * r * c]. dy: [M, rows] or [E, M, rows / E], x: [M, cols] or [E, M, cols], any strides."""
    dys, xs = _stack(dy.float()), _stack(x.float())
    if dys.shape[1] == 0:
        return dy.new_zeros(index.cols.numel() * geometry.unit)
    grad = torch.empty(index.cols.numel() * geometry.unit)
    for part in range(dys.shape[0]):
        w, keep = matrix(None, index, geometry, part, dys.shape[0])
        args = byref(view(dys[part])), byref(view(xs[part])), grad.data_ptr()
        lib().tk_sddmm(byref(parallel()), byref(w), *args, _work(w, dys.shape[1]))
        del keep
    return grad.to(dy.dtype)


def _stack(activations: Tensor) -> Tensor:
    return activations if activations.dim() == 3 else activations[None]
