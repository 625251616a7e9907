"""Every comparison's error budget: 2 × plain PyTorch's error in the same dtype against float64, plus one rounding.

Where plain PyTorch is run in several ways that round differently, its error is the largest of theirs: one way alone may
be right to the last bit by luck, in a bias of few numbers above all, and no other program can then be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TALLY: dict[str, Any] = {"steps": 0, "worst": 0.0, "where": ""}


def tally(steps: int, worst: float, where: str) -> None:
    """Count compared steps and keep the largest error, as a share of its budget."""
    TALLY["steps"] += steps
    if worst > TALLY["worst"]:
        TALLY.update(worst=worst, where=where)


def assert_budget(
    ours: Tensor, oracle: Tensor, truth: Tensor, where: str, twins: Sequence[Tensor] = (), least: float = 0.0
) -> float:
    """Promise 1 for one tensor, in the max norm; integers and bools must be equal.

    Args:
        ours: what is tested.
        oracle: plain PyTorch's in the same dtype.
        truth: plain PyTorch's in float64.
        where: for the message.
        twins: further results of plain PyTorch in the same dtype, rounded in other places.
        least: plain PyTorch's largest error in this tensor before. What accumulates keeps an error once made, and two
            that cancel in one step are no measure of it.

    Returns:
        Plain PyTorch's largest error, ``least`` among them.
    """
    assert ours.shape == oracle.shape, f"{where}: shape {tuple(ours.shape)}, not {tuple(oracle.shape)}"
    assert ours.dtype == oracle.dtype, f"{where}: {ours.dtype}, not {oracle.dtype}"
    if not ours.is_floating_point() or ours.numel() == 0:
        assert torch.equal(ours, oracle), f"{where}: differs"
        return least
    if not bool(ours.isfinite().all()):
        # A buffer may hold an infinity (the least that was seen, before anything was); NaN is not equal to itself.
        assert torch.equal(ours, oracle), f"{where}: not finite"
        return least
    exact = truth.double()
    error = (ours.double() - exact).abs().max().item()
    plain = [(one.double() - exact).abs().max().item() for one in (oracle, *twins)]
    # An infinite error would allow anything, and max() may pass over NaN.
    assert all(map(math.isfinite, plain)), f"{where}: plain PyTorch's own is not finite: errors {plain}"
    reference = max(least, *plain)
    budget = 2 * reference + torch.finfo(oracle.dtype).eps * exact.abs().max().item()
    share = 0.0 if error == 0 else error / budget if budget else float("inf")
    assert share <= 1, f"{where}: error {error:.3g} is {share:.2f} of its budget (the oracle's: {reference:.3g})"
    tally(0, share, where)
    return reference
