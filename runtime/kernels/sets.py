"""Choose and store sets in the fastest available way: native code on the CPU, Triton on a GPU, or plain PyTorch."""

from __future__ import annotations

from torch import Tensor

from topkast.runtime.layout import Index
from topkast.runtime.native import sets as native
from topkast.runtime.triton import sets as triton


def largest(score: Tensor, count: int) -> Tensor:
    """The same as :func:`topkast.runtime.reference.selection.largest`, for scores that are not negative."""
    return (triton if triton.fits(score) else native).largest(score, count)


def build_index(fwd: Tensor, bwd: Tensor, slots: int) -> Index:
    """The same as :func:`topkast.runtime.layout.build_index`."""
    return (triton if triton.fits(bwd) else native).build_index(fwd, bwd, slots)
