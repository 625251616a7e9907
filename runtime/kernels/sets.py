"""Choose and store sets in the fastest available way: native code on the CPU, Triton on a GPU, or plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from topkast.runtime import layout
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.native import sets as native
from topkast.runtime.reference import selection
from topkast.runtime.triton import runs_on
from topkast.runtime.triton.refresh import sets as triton


def scores(theta: Tensor, geometry: Geometry) -> Tensor:
    """The score of every unit, as :func:`topkast.runtime.reference.selection.scores`, [units].

    Args:
        theta: the dense weight, in its own shape.
    """
    if geometry.unit > 1 and triton.fits(theta):
        return triton.block_scores(theta, geometry)
    return selection.scores(theta.permute(geometry.perm).reshape(geometry.rows, geometry.cols), geometry.block)


def largest(score: Tensor, count: int) -> Tensor:
    """The same as :func:`topkast.runtime.reference.selection.largest`, for scores that are not negative."""
    return (triton if triton.fits(score) else native).largest(score, count)


def build_index(fwd: Tensor, bwd: Tensor, slots: int) -> Index:
    """The same as :func:`topkast.runtime.layout.build_index`."""
    return (triton if triton.fits(bwd) else native).build_index(fwd, bwd, slots)


def index_masks(index: Index, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """The same as :func:`topkast.runtime.layout.index_masks`."""
    fits = geometry.units < 2**31 and runs_on(index.cols.device)
    return triton.index_masks(index, geometry) if fits else layout.index_masks(index, geometry)
