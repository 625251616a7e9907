"""A small sparse model with an optimizer, and all that a run goes on from, for several kinds."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import topkast
from topkast.tests.support.truth.lockstep import sites_of


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 8))


def trained(steps: int = 3, seed: int = 0, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A sparse model after some steps, and its AdamW."""
    given = {"fwd": 0.7, "bwd": 0.4, "min_size": 1, "refresh_every": 3, "initial": None, "seed": 1, **options}
    model = topkast.sparsify(net(seed), **given)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1)
    train(model, optimizer, steps, seed)
    return model, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed + 1)
    for _ in range(steps):
        model(torch.randn(5, 12, generator=generator)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def everything(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Any:
    """All that a run goes on from: tensors, clocks, the optimizer's state."""
    clocks = [(site.step, site.refreshed_at, list(site.churn), site.rule.seed) for site in sites_of(model).values()]
    state = None if optimizer is None else optimizer.state_dict()
    return copy.deepcopy((dict(model.state_dict()), clocks, state))


def same(one: Any, other: Any) -> bool:
    """Equal bit for bit; NaN equals NaN."""
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        return torch.equal(one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8))
    return bool(one == other) or (one != one and other != other)


def assert_sound(model: nn.Module) -> None:
    """A inside B with exact counts, and W_A is θ on A and zero elsewhere."""
    dense, theta = topkast.dense_state_dict(model), topkast.dense_state_dict(model, "all")
    sites = topkast.masks(model)
    for name, (fwd, bwd) in sites.items():
        states: Any = model.get_submodule(name.rpartition(".")[0]).sparse_state
        site = states.weight
        assert not bool((fwd & ~bwd).any()), f"{name}: A is not inside B"
        unit = site.geometry.unit  # the sizes of `net` are whole blocks
        counts = int(fwd.sum()), int(bwd.sum())
        n_bwd = site.n_fwd if site.exploration_ended(site.refreshed_at) else site.n_bwd
        assert counts == (site.n_fwd * unit, n_bwd * unit), f"{name}: the counts are wrong"
        # NaN equals NaN: a file may hold NaN, as a run that diverged saves it.
        assert same(dense[name], torch.where(fwd, theta[name], 0)), f"{name}: W_A is not θ on A"
