"""Every comparison's error budget: 2 × plain PyTorch's error in the same dtype against float64, plus one rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TALLY: dict[str, Any] = {"steps": 0, "worst": 0.0, "where": ""}


def tally(steps: int, worst: float, where: str) -> None:
    """Count compared steps and keep the largest error, as a share of its budget."""
    TALLY["steps"] += steps
    if worst > TALLY["worst"]:
        TALLY.update(worst=worst, where=where)


def assert_budget(ours: Tensor, oracle: Tensor, truth: Tensor, where: str) -> None:
    """Promise 1 for one tensor, in the max norm; integers and bools must be equal."""
    assert ours.shape == oracle.shape, f"{where}: shape {tuple(ours.shape)}, not {tuple(oracle.shape)}"
    assert ours.dtype == oracle.dtype, f"{where}: {ours.dtype}, not {oracle.dtype}"
    if not ours.is_floating_point() or ours.numel() == 0:
        assert torch.equal(ours, oracle), f"{where}: differs"
        return
    assert bool(ours.isfinite().all()), f"{where}: not finite"
    exact = truth.double()
    error = (ours.double() - exact).abs().max().item()
    reference = (oracle.double() - exact).abs().max().item()
    budget = 2 * reference + torch.finfo(oracle.dtype).eps * exact.abs().max().item()
    share = 0.0 if error == 0 else error / budget if budget else float("inf")
    tally(0, share, where)
    assert share <= 1, f"{where}: error {error:.3g} is {share:.2f} of its budget (the oracle's: {reference:.3g})"
