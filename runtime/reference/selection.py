"""Choose the units that form A and B: exact counts; among equal scores the lower index comes first."""

from __future__ import annotations

import torch
from torch import Tensor


def scores(matrix: Tensor, block: tuple[int, int] = (1, 1)) -> Tensor:
    """Score of every unit: |θ| of a single weight, in the dtype of θ; the squared L2 norm of a block in float64, which
    has the norm's order.

    The squares of a block are summed in one order on every device, so that every device chooses the same blocks: the
    rows of the block one after the other, then the two halves of its columns, until one column is left.

    Args:
        matrix: θ as a matrix [rows, columns]; at its edges blocks are filled with zeros.
        block: rows and columns of a unit.

    Returns:
        [units], block rows first. The score of NaN is infinity, so that the counts stay exact and the report can show
        it.
    """
    found = matrix.reshape(-1).abs() if block == (1, 1) else _squares(matrix, *block)
    return torch.nan_to_num(found, nan=torch.inf, posinf=torch.inf)


def _squares(matrix: Tensor, r: int, c: int) -> Tensor:
    rows, columns = matrix.shape
    sums = torch.zeros(-(-rows // r), -(-columns // c) * c, dtype=torch.float64, device=matrix.device)
    for i in range(min(r, rows)):
        row_of_each = matrix[i::r]
        sums[: row_of_each.shape[0], :columns] += row_of_each.double().square()
    blocks, width = sums.view(sums.shape[0], -1, c), c
    while width > 1:
        half = 1 << ((width - 1).bit_length() - 1)
        # A sum over few neighbours is slow: below 16 columns, each column is added by itself (blocks of 1x4: 3 times).
        if half < 16:
            for column in range(width - half):
                blocks[..., column] += blocks[..., column + half]
        else:
            blocks[..., : width - half] += blocks[..., half:width]
        width = half
    return blocks[..., 0].reshape(-1)


def largest(score: Tensor, count: int) -> Tensor:
    """Bool mask of the ``count`` largest along the last dim. Among equal scores the lower index comes first.

    Args:
        score: [n], or [rows, n] for the same count in every row (balanced).
        count: how many, 0 to n.
    """
    if count == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    threshold = torch.topk(score, count, dim=-1).values.amin(-1, keepdim=True)
    above, equal = score > threshold, score == threshold
    wanted = count - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= wanted))
