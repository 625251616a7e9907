"""The decay of B \\ A of many weights: two calls of the library for all, as a call for each takes longer than its work.

For a weight of 128 x 512 with a tenth of its values in A, a call and its checks take ten times as long as its work.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from ctypes import Array, byref

import torch
from torch import Tensor

from topkast.runtime import operands
from topkast.runtime.layout import Geometry, Index

from . import Matrix, parallel
from .products import lib

Part = tuple[Tensor, Index, Geometry]  # B's values in float32, contiguous, and the index and geometry of a weight


@functools.lru_cache(16)
def _table(facts: tuple[tuple[int, ...], ...]) -> Array[Matrix]:
    """The library's structs, made once for the addresses of all weights: a step of training finds them again."""
    matrices = [
        Matrix(values, row_ptr, row_fwd, 0, rows, unit, slots, 1, unit)
        for values, row_ptr, row_fwd, rows, slots, unit in facts
    ]
    return (Matrix * len(matrices))(*matrices)


def _facts(values: Tensor, index: Index, geometry: Geometry) -> tuple[int, ...]:
    operands.weight(values, index, geometry)
    begins = operands.address("row_ptr", index.row_ptr)
    operands.within(begins, geometry.grid[0], index.cols)
    at = operands.place("values", values, index.cols.numel() * geometry.unit)
    ends = operands.address("row_fwd", index.row_fwd)
    return at, begins, ends, geometry.grid[0], index.cols.numel(), geometry.unit


def squares(parts: Sequence[Part]) -> Tensor:
    """The sum of the squares of A's values of each weight, float64 [weights].

    Raises:
        OperandError: an index or values belong to another weight, or are not in the CPU's memory.
    """
    table = _table(tuple(_facts(*part) for part in parts))
    rows = torch.empty(max(geometry.grid[0] for *_, geometry in parts), dtype=torch.float64, device="cpu")
    sums = torch.empty(len(parts), dtype=torch.float64, device="cpu")
    lib().tk_squares_of_all(byref(parallel()), table, len(parts), rows.data_ptr(), sums.data_ptr())
    return sums


def scale_explored_once(parts: Sequence[Part], factors: Tensor) -> None:
    """values *= factor on B \\ A of each weight, in place.

    Args:
        parts: the weights.
        factors: float32 [weights]. The same native call sets them to 1, so that a second call changes nothing.

    Raises:
        OperandError: as :func:`squares`; or there is another number of factors.
    """
    table, at = _table(tuple(_facts(*part) for part in parts)), operands.place("factors", factors, len(parts))
    lib().tk_scale_all_once(byref(parallel()), table, len(parts), at)
