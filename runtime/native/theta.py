"""The functions of :mod:`topkast.runtime.theta` in native code, where it fits; else as they stand there."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from .. import theta as plain
from ..layout import Geometry, Index
from . import library, parallel
from .products import lib, matrix


def fits(geometry: Geometry, *tensors: Tensor) -> bool:
    """Whether native code can move these."""
    return (
        library() is not None
        and geometry.units < 2**31
        and all(t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() for t in tensors)
    )


def assemble(values: Tensor, reservoir: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """:func:`topkast.runtime.theta.assemble`."""
    if not fits(geometry, values, reservoir):
        return plain.assemble(values, reservoir, index, geometry)
    found = torch.empty(geometry.rows, geometry.cols, device="cpu")
    w, keep = matrix(values, index, geometry)
    lib().tk_assemble(byref(parallel()), byref(w), reservoir.data_ptr(), found.data_ptr())
    del keep
    return found.reshape(geometry.permuted).permute(geometry.inverse).contiguous()


def store(theta: Tensor, values: Tensor, reservoir: Tensor, index: Index, geometry: Geometry) -> None:
    """:func:`topkast.runtime.theta.store`."""
    if not fits(geometry, values, reservoir) or theta.dtype != torch.float32 or theta.device.type != "cpu":
        return plain.store(theta, values, reservoir, index, geometry)
    dense = theta.permute(geometry.perm).reshape(geometry.rows, geometry.cols).contiguous()
    w, keep = matrix(None, index, geometry)
    lib().tk_store(byref(parallel()), byref(w), dense.data_ptr(), values.data_ptr(), reservoir.data_ptr())
    torch.autograd.graph.increment_version(values)
    del keep


def follow(tensor: Tensor, before: Index, after: Index, geometry: Geometry) -> Tensor:
    """:func:`topkast.runtime.theta.follow`."""
    if not fits(geometry, tensor):
        return plain.follow(tensor, before, after, geometry)
    found = torch.empty(after.cols.numel() * geometry.unit, device="cpu")
    (old, keep), (new, kept) = matrix(None, before, geometry), matrix(None, after, geometry)
    lib().tk_follow(byref(parallel()), byref(old), byref(new), tensor.data_ptr(), found.data_ptr())
    del keep, kept
    return found
