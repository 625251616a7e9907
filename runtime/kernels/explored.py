"""Operations on some of B's values: in native code if it fits, otherwise in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from topkast.runtime.layout import Geometry, Index, explored_values, slot_units
from topkast.runtime.native import densified
from topkast.runtime.native import together as natively
from topkast.runtime.triton import scaling
from topkast.runtime.triton.scaling import scale_explored as scale_all
from topkast.runtime.triton.scaling import squares_of_a

__all__ = [
    "ScaleExplored", "ScaleTogether", "scale_all", "square_sum_of_a", "squares_of_a", "squares_together", "together",
    "together_on_cpu",
]  # fmt: skip
squares_together = natively.squares


def square_sum_of_a(values: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """The sum of the squares of A's values, a scalar in float64. values: B's values, [values]."""
    if _native(values):
        return densified.squares(values, index, geometry)
    in_a = slot_units(index, geometry)[1].repeat_interleave(geometry.unit)
    return torch.where(in_a, values.double(), 0.0).square().sum()


class ScaleExplored:
    """θ ← factor · θ on B \\ A, in place, at the first call. If an exception such as Ctrl-C came out of the call,
    nobody knows how far the call was. Another call ends the work, and it never scales a value twice.

    Args:
        values: B's values, [values].
        index, geometry: what the values belong to.
        factor: the factor of all values.
    """

    def __init__(self, values: Tensor, index: Index, geometry: Geometry, factor: float | Tensor) -> None:
        self._values, self._index, self._geometry, self._factor = values, index, geometry, factor
        self._native, self._done = _native(values), False
        if self._native:
            self._factor = torch.tensor([float(factor)], dtype=torch.float32, device="cpu")
        self._scaled: Tensor | None = None

    def __call__(self) -> None:
        if self._done:
            return
        if self._native:
            assert isinstance(self._factor, Tensor)
            densified.scale_explored_once(self._values, self._index, self._geometry, self._factor)
            torch.autograd.graph.increment_version(self._values)
        else:
            if self._scaled is None:
                where = explored_values(self._index, self._geometry)
                self._scaled = torch.where(where, self._values * self._factor, self._values)
            self._values.copy_(self._scaled)
        self._done = True
        self._scaled = None


class ScaleTogether:
    """The same as :class:`ScaleExplored` for many weights on the CPU, see :func:`together_on_cpu`.

    Args:
        parts: B's values, index and geometry of each weight.
        factors: one factor for each weight.
    """

    def __init__(self, parts: Sequence[natively.Part], factors: Tensor) -> None:
        self._parts, self._factors, self._done = parts, factors.to(torch.float32), False

    def __call__(self) -> None:
        if self._done:
            return
        natively.scale_explored_once(self._parts, self._factors)
        for values, *_ in self._parts:
            torch.autograd.graph.increment_version(values)
        self._done = True


def together_on_cpu(values: Tensor) -> bool:
    """Whether many weights with values such as these decay in one call of native code."""
    return _native(values)


def _native(values: Tensor) -> bool:
    return densified.fits(values) and values.is_contiguous()


def together(values: Tensor) -> bool:
    """Whether many weights with values such as these decay in one launch, by :mod:`topkast.runtime.triton.scaling`."""
    return scaling.fits(values)
