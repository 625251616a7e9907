"""Operations on some of B's values: in native code if it fits, otherwise in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from topkast.runtime.layout import Geometry, Index, explored_values, slot_units
from topkast.runtime.native import densified
from topkast.runtime.triton import scaling
from topkast.runtime.triton.scaling import scale_explored as scale_all
from topkast.runtime.triton.scaling import squares_of_a

__all__ = ["scale_all", "scale_explored", "square_sum_of_a", "squares_of_a", "together"]


def square_sum_of_a(values: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """The sum of the squares of A's values, a scalar in float64. values: B's values, [values]."""
    if _native(values):
        return densified.squares(values, index, geometry)
    in_a = slot_units(index, geometry)[1].repeat_interleave(geometry.unit)
    return torch.where(in_a, values.double(), 0.0).square().sum()


def scale_explored(values: Tensor, index: Index, geometry: Geometry, factor: float | Tensor) -> None:
    """θ ← factor · θ on B \\ A, in place. values: B's values, [values]."""
    if _native(values):
        densified.scale_explored(values, index, geometry, float(factor))
        torch.autograd.graph.increment_version(values)
    else:
        values.copy_(torch.where(explored_values(index, geometry), values * factor, values))


def _native(values: Tensor) -> bool:
    return densified.fits(values) and values.is_contiguous()


def together(values: Tensor) -> bool:
    """Whether many weights with values such as these decay in one launch, by :mod:`topkast.runtime.triton.scaling`."""
    return scaling.fits(values)
