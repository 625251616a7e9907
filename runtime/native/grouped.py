"""Products of stacked weights, each with its own run of rows, on the native kernels: one call for each run with
rows."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from topkast.runtime import operands
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.operands import address

from . import parallel
from .products import _work, lib, matrix, view


def grouped_spmm(x: Tensor, ends: Tensor, values: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """Y = X W_A^T, each row with its own weight. x: [M, cols], any strides -> [M, rows / E]."""
    operands.stacked("ends", ends.numel(), geometry)
    return _each("tk_spmm", "x", x, ends, values, index, geometry, geometry.cols, geometry.rows // ends.numel())


def grouped_spmm_t(dy: Tensor, ends: Tensor, values: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """dX = dY W_A, each row with its own weight. dy: [M, rows / E], any strides -> [M, cols]."""
    operands.stacked("ends", ends.numel(), geometry)
    return _each("tk_spmm_t", "dy", dy, ends, values, index, geometry, geometry.rows // ends.numel(), geometry.cols)


def _each(
    product: str, name: str, x: Tensor, ends: Tensor, values: Tensor, index: Index, geometry: Geometry, k: int, n: int
) -> Tensor:
    """A product from rows [M, k] to rows [M, n]. ``name`` is the name of the operand."""
    _check(name, x, k)
    address("ends", ends), address("values", values)
    operands.weight(values, index, geometry)
    xs, y = x.float(), torch.zeros(x.shape[0], n, device="cpu")
    values = values.float().contiguous()
    epilogue = (None, 0) if product == "tk_spmm" else ()  # no bias, no activation
    for part, begin, end in operands.runs(ends, x.shape[0], geometry):
        w, keep = matrix(values, index, geometry, part, ends.numel())
        here, there = view(name, xs[begin:end]), view("y", y[begin:end])
        given = byref(w), byref(here), *epilogue, byref(there)
        getattr(lib(), product)(byref(parallel()), *given, _work(w, here.m, product))
        del keep
    return y.to(x.dtype)


def grouped_sddmm(dy: Tensor, x: Tensor, ends: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """dY^T X of each run of rows at its weight's part of B, [slots * r * c]. dy: [M, rows / E], x: [M, cols]."""
    operands.stacked("ends", ends.numel(), geometry)
    _check("dy", dy, geometry.rows // ends.numel())
    _check("x", x, geometry.cols)
    operands.alike("x", x.shape[0], "dy", dy.shape[0])
    address("ends", ends)
    operands.weight(None, index, geometry)
    dys, xs = dy.float(), x.float()
    grad = torch.zeros(index.cols.numel() * geometry.unit, device="cpu")
    for part, begin, end in operands.runs(ends, dy.shape[0], geometry):
        w, keep = matrix(None, index, geometry, part, ends.numel())
        here, there = view("dy", dys[begin:end]), view("x", xs[begin:end])
        lib().tk_sddmm(byref(parallel()), byref(w), byref(here), byref(there), address("grad", grad), _work(w, here.m))
        del keep
    return grad.to(dy.dtype)


def _check(name: str, x: Tensor, k: int) -> None:
    """Raise OperandError if ``x`` is not rows [M, k] in the CPU's memory."""
    if x.dim() != 2 or x.shape[1] != k:
        operands.wrong(name, x, f"[M, {k}]")
    address(name, x)
