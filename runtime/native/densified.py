"""The dense product on a transient W_A, and the dense gradient sampled at B: the fastest way if few weights are zero.

These are the reference's products, but native code converts to and from the dense matrix.
"""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from topkast.runtime import operands
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.operands import address
from topkast.runtime.reference.products import DenseProducts

from . import library, parallel
from .products import lib, matrix, view


def fits(operand: Tensor) -> bool:
    """Whether the functions of this file can run, for any product and block."""
    return operand.device.type == "cpu" and operand.dtype == torch.float32 and library() is not None


def weight(values: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """W_A in the weight's own shape, contiguous."""
    found = torch.empty(geometry.rows, geometry.cols, device="cpu")
    w, keep = matrix(values, index, geometry)
    lib().tk_dense(byref(parallel()), byref(w), address("weight", found))
    del keep
    return found.reshape(geometry.permuted).permute(geometry.inverse).contiguous()


def weight_grad(grad: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """A dense gradient sampled at B, [slots * r * c]. Unused slots get zero."""
    operands.sized("grad", grad, geometry.shape)
    address("grad", grad)
    dense = grad.float().permute(geometry.perm).reshape(geometry.rows, geometry.cols)
    found = torch.empty(index.cols.numel() * geometry.unit, device="cpu")
    w, keep = matrix(None, index, geometry)
    lib().tk_gather(byref(parallel()), byref(w), byref(view("grad", dense)), address("values", found))
    del keep
    return found


def squares(values: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """The sum of the squares of A's values, a scalar in float64."""
    found = torch.empty(geometry.grid[0], dtype=torch.float64, device="cpu")
    w, keep = matrix(None, index, geometry)
    at = operands.place("values", values, index.cols.numel() * geometry.unit)
    lib().tk_squares(byref(parallel()), byref(w), at, address("squares", found))
    del keep
    return found.sum()


def scale_explored_once(values: Tensor, index: Index, geometry: Geometry, factor: Tensor) -> None:
    """values *= factor on B \\ A, in place. factor: [1] in float32; the same native call sets it to 1, so that a second
    call changes nothing."""
    w, keep = matrix(None, index, geometry)
    at = operands.place("values", values, index.cols.numel() * geometry.unit)
    by = operands.place("factor", factor, 1)
    lib().tk_scale_explored_once(byref(parallel()), byref(w), by, at)
    del keep


DENSE = DenseProducts(weight, weight_grad)
