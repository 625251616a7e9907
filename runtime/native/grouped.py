"""Products of stacked weights with a run of rows each, on the native kernels: one call for every run that has rows."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from ..layout import Geometry, Index
from ..reference import runs
from . import parallel
from .products import _work, lib, matrix, view


def grouped_spmm(x: Tensor, ends: Tensor, values: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """Y = X W_A^T, each row by its own weight. x: [M, cols], any strides -> [M, rows / E]."""
    return _each("tk_spmm", x, ends, values, index, geometry, geometry.rows // ends.numel())


def grouped_spmm_t(dy: Tensor, ends: Tensor, values: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """dX = dY W_A, each row by its own weight. dy: [M, rows / E], any strides -> [M, cols]."""
    return _each("tk_spmm_t", dy, ends, values, index, geometry, geometry.cols)


def _each(name: str, x: Tensor, ends: Tensor, values: Tensor, index: Index, geometry: Geometry, n: int) -> Tensor:
    xs, y = x.float(), torch.zeros(x.shape[0], n, device="cpu")
    values = values.float().contiguous()
    epilogue = (None, 0) if name == "tk_spmm" else ()  # no bias, no activation
    for part, begin, end in runs(ends):
        w, keep = matrix(values, index, geometry, part, ends.numel())
        here = view(xs[begin:end])
        work = _work(w, here.m)
        getattr(lib(), name)(byref(parallel()), byref(w), byref(here), *epilogue, byref(view(y[begin:end])), work)
        del keep
    return y.to(x.dtype)


def grouped_sddmm(dy: Tensor, x: Tensor, ends: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """dY^T X of every run of rows at its weight's part of B, [slots * r * c]. dy: [M, rows / E], x: [M, cols]."""
    dys, xs = dy.float(), x.float()
    grad = torch.zeros(index.cols.numel() * geometry.unit, device="cpu")
    for part, begin, end in runs(ends):
        w, keep = matrix(None, index, geometry, part, ends.numel())
        here = view(dys[begin:end])
        operands = byref(here), byref(view(xs[begin:end]))
        lib().tk_sddmm(byref(parallel()), byref(w), *operands, grad.data_ptr(), _work(w, here.m))
        del keep
    return grad.to(dy.dtype)
