"""Assemble θ, take θ apart and move it between indices: in Triton on a GPU, in native code, or in plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from topkast.runtime.layout import Geometry, Index
from topkast.runtime.native import theta as native
from topkast.runtime.triton import runs_on
from topkast.runtime.triton.refresh import theta as triton

__all__ = ["assemble", "follow", "runs_on", "store"]


def assemble(values: Tensor, reservoir: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """The same as :func:`topkast.runtime.reference.theta.assemble`."""
    return (triton if triton.fits(geometry, values, reservoir) else native).assemble(
        values, reservoir, index, geometry
    )  # fmt: skip


def store(theta: Tensor, values: Tensor, reservoir: Tensor, index: Index, geometry: Geometry) -> None:
    """The same as :func:`topkast.runtime.reference.theta.store`."""
    fits = triton.fits(geometry, values, reservoir) and theta.dtype == values.dtype and theta.device == values.device
    (triton if fits else native).store(theta, values, reservoir, index, geometry)


def follow(tensor: Tensor, before: Index, after: Index, geometry: Geometry) -> Tensor:
    """The same as :func:`topkast.runtime.reference.theta.follow`."""
    return (triton if triton.fits(geometry, tensor) else native).follow(tensor, before, after, geometry)
