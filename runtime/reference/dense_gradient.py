"""The dense gradient of a weight, a few rows at a time, and the units with the largest gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from topkast.runtime.layout import Geometry

from . import selection as choose

PART = 2**20  # elements of the gradient in memory at the same time, unless one row of blocks has more

# (begin, end) -> the gradient of these rows of the weight's matrix, [end - begin, cols]
Rows = Callable[[int, int], Tensor]


def whole_rows(grad: Tensor, geometry: Geometry) -> Rows:
    """The rows of a gradient that exists already, in the weight's own shape."""
    matrix = grad.permute(geometry.perm).reshape(geometry.rows, geometry.cols)
    return lambda begin, end: matrix[begin:end]


def product_rows(dy: Tensor, x: Tensor) -> Rows:
    """The rows of dYᵀ X. dy: [M, rows] or [E, M, rows / E], x: [M, cols] or [E, M, cols]."""
    if x.dim() == 2:
        return lambda begin, end: dy[:, begin:end].mT @ x
    n = dy.shape[2]

    def rows(begin: int, end: int) -> Tensor:
        experts = range(begin // n, (end - 1) // n + 1)
        return torch.cat([dy[e, :, max(0, begin - e * n) : end - e * n].mT @ x[e] for e in experts])

    return rows


def conv_rows(dy: Tensor, x: Tensor, geometry: Geometry, args: Any) -> Rows:
    """The gradient rows of a convolution's weight: by output channels, or all at once if it is grouped or
    transposed."""

    def grad(dy: Tensor, shape: tuple[int, ...]) -> Tensor:
        like, mask = dy.new_empty(shape), [False, True, False]
        return torch.ops.aten.convolution_backward(dy, x, like, None, *args, mask)[1]

    if args.groups > 1 or geometry.perm != tuple(range(len(geometry.shape))):
        return whole_rows(grad(dy, geometry.shape), geometry)
    return lambda begin, end: grad(dy[:, begin:end], (end - begin, *geometry.shape[1:])).flatten(1)


def best_units(rows: Rows, geometry: Geometry, count: int, balanced: bool) -> tuple[Tensor, Tensor]:
    """The units with the largest gradients, ascending, and their scores. Among equal scores the lower index comes
    first.

    Args:
        rows: gives the gradient.
        geometry: the geometry of the weight.
        count: how many units: among all units, or in every block row if ``balanced``.
    """
    height, columns = geometry.block[0], geometry.grid[1]
    step = max(1, PART // (height * geometry.cols)) * height
    units: list[Tensor] = []
    scores: list[Tensor] = []
    for begin in range(0, geometry.rows, step):
        part = rows(begin, min(begin + step, geometry.rows))
        scores.append(choose.scores(part, geometry.block))
        here = scores[-1].numel()
        first, groups = begin // height * columns, here // columns if balanced else 1
        units.append(torch.arange(first, first + here, device=part.device))
        if balanced:
            kept = choose.largest(scores[-1].view(groups, -1), count).view(-1)
            units[-1], scores[-1] = units[-1][kept], scores[-1][kept]
        else:
            unit, score = torch.cat(units), torch.cat(scores)
            kept = choose.largest(score, min(count, score.numel()))
            units, scores = [unit[kept]], [score[kept]]
    return torch.cat(units), torch.cat(scores)
