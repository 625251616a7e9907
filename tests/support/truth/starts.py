"""The state that optimizers give to a new parameter, as their own sources say it; written by hand, for the oracle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Entries that are a copy of the parameter: of schedule-free, MADGRAD, Prodigy and two Lookaheads.
VALUES = ("z", "x0", "p0", "lookahead_slow_buff", "slow_params")


def begin(optimizer: torch.optim.Optimizer, group: dict[str, Any], entry: str, theta: Tensor) -> Tensor:
    """An entry of the state for a parameter θ that the optimizer has not seen before."""
    if entry in VALUES:
        return theta.detach()
    number = {
        ("Rprop", "step_size"): group["lr"],
        ("Adagrad", "sum"): group.get("initial_accumulator_value"),
        ("RMSpropTF", "square_avg"): 1.0,
    }.get((type(optimizer).__name__, entry), 0.0)
    return torch.full_like(theta, float(number))


def with_inner(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """An optimizer, and the one inside of it if it is a wrapper."""
    inside = [
        one for one in vars(optimizer).values() if isinstance(one, torch.optim.Optimizer) and one is not optimizer
    ]
    return [optimizer, *inside]


def kept(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Any]:
    """All state of a parameter, that of an inner optimizer too."""
    found: dict[str, Any] = {}
    for one in with_inner(optimizer):
        found |= one.state.get(parameter, {})
    return found
