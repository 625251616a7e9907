"""The functions of :mod:`topkast.runtime.reference.theta` in native code if it fits, otherwise in plain PyTorch."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from topkast.runtime import operands
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.operands import address, place
from topkast.runtime.reference import theta as plain

from . import library, parallel
from .products import lib, matrix


def fits(geometry: Geometry, *tensors: Tensor) -> bool:
    """Whether native code can move these tensors."""
    return (
        library() is not None
        and geometry.units < 2**31
        and all(t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() for t in tensors)
    )


def assemble(values: Tensor, reservoir: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """The same as :func:`topkast.runtime.reference.theta.assemble`."""
    operands.plain(values=values, reservoir=reservoir)
    if not fits(geometry, values, reservoir):
        return plain.assemble(values, reservoir, index, geometry)
    w, keep = matrix(values, index, geometry)
    outside = place("reservoir", reservoir, _outside(index, geometry), more=True)
    found = torch.empty(geometry.rows, geometry.cols, device="cpu")
    lib().tk_assemble(byref(parallel()), byref(w), outside, address("theta", found))
    del keep
    return found.reshape(geometry.permuted).permute(geometry.inverse).contiguous()


def store(theta: Tensor, values: Tensor, reservoir: Tensor, index: Index, geometry: Geometry) -> None:
    """The same as :func:`topkast.runtime.reference.theta.store`."""
    operands.plain(theta=theta, values=values, reservoir=reservoir)
    if not fits(geometry, values, reservoir) or theta.dtype != torch.float32 or theta.device.type != "cpu":
        return plain.store(theta, values, reservoir, index, geometry)
    operands.sized("theta", theta, geometry.shape)
    address("theta", theta)
    w, keep = matrix(None, index, geometry)
    inside = place("values", values, index.cols.numel() * geometry.unit)
    outside = place("reservoir", reservoir, _outside(index, geometry), more=True)
    dense = theta.permute(geometry.perm).reshape(geometry.rows, geometry.cols).contiguous()
    lib().tk_store(byref(parallel()), byref(w), address("theta", dense), inside, outside)
    torch.autograd.graph.increment_version(values)
    del keep


def follow(tensor: Tensor, before: Index, after: Index, geometry: Geometry) -> Tensor:
    """The same as :func:`topkast.runtime.reference.theta.follow`."""
    operands.plain(tensor=tensor)
    if not fits(geometry, tensor):
        return plain.follow(tensor, before, after, geometry)
    (old, keep), (new, kept) = matrix(None, before, geometry), matrix(None, after, geometry)
    at = place("tensor", tensor, before.cols.numel() * geometry.unit)
    found = torch.empty(after.cols.numel() * geometry.unit, device="cpu")
    lib().tk_follow(byref(parallel()), byref(old), byref(new), at, address("followed", found))
    del keep, kept
    return found


def _outside(index: Index, geometry: Geometry) -> int:
    """The number of values in the reservoir. The reservoir may have room for more, because B can become smaller."""
    return (geometry.units - int(index.row_ptr[-1])) * geometry.unit
