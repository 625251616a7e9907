"""Choose the units that form A and B: exact counts; among equal scores the lower index comes first."""

from __future__ import annotations

import torch
from torch import Tensor


def scores(blocks: Tensor) -> Tensor:
    """Score of every unit in float64: |θ| of a single weight; the squared L2 norm of a block, which has the norm's
    order.

    Args:
        blocks: [units, r * c].

    Returns:
        [units]. The score of NaN is infinity, so that the counts stay exact and the report can show it.
    """
    found = blocks[:, 0].abs() if blocks.shape[1] == 1 else blocks.double().square().sum(1)
    return torch.nan_to_num(found, nan=torch.inf, posinf=torch.inf)


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
