"""Weight decay reaches sparse weights: groups that are ready for an optimizer, and a warning where a script left them
out."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import topkast
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import Trio, plain, sites_of

SPARSE: dict[str, Any] = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2, "backend": "eager"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 24)
        self.up, self.norm, self.down = nn.Linear(24, 30), nn.LayerNorm((3, 30)), nn.Linear(30, 24)
        self.head = nn.Linear(24, 5)
        self.head_bias = nn.Parameter(torch.zeros(1, 5))
        self.frozen = nn.Parameter(torch.zeros(4, 4), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.down(self.norm(self.up(self.embed(x))))) + self.head_bias


def small() -> nn.Module:
    torch.manual_seed(0)
    return topkast.sparsify(Net(), 0.8, 0.6, include=["up.weight", "down.weight"], min_size=1)


def values(model: nn.Module) -> list[nn.Parameter]:
    return [site.original for site in sites_of(model).values()]


def ids(parameters: Any) -> set[int]:
    return {id(p) for p in parameters}


def test_sparse_values_are_with_the_matrices() -> None:
    model = small()
    decayed, plain = topkast.param_groups(model, 0.1, 0.5)
    assert ids(decayed["params"]) == ids([*values(model), model.embed.weight, model.head.weight])
    assert len(decayed["params"]) + len(plain["params"]) == sum(p.requires_grad for p in model.parameters())
    assert {(g["lr"], g["weight_decay"]) for g in (decayed, plain)} == {(0.1, 0.5), (0.1, 0.0)}
    assert ids(plain["params"]) >= ids([model.head_bias, model.norm.weight, model.up.bias])


def test_a_group_without_parameters_is_left_out() -> None:
    model = topkast.sparsify(nn.Sequential(nn.Linear(24, 24, bias=False)), min_size=1)
    (group,) = topkast.param_groups(model, torch.tensor(0.1), 0)
    assert ids(group["params"]) == ids(values(model))


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
def test_rates_by_inputs(lr: Any) -> None:
    """``up`` has 24 inputs and ``down`` 30, of which a fifth are in A; other parameters keep the rate."""
    model = small()
    own = {site.name: site.n_fwd / site.geometry.rows for site in sites_of(model).values()}
    assert own == pytest.approx({"up.weight": 24 / 5, "down.weight": 30 / 5}, rel=0.1)
    groups = topkast.param_groups(model, lr, 0.5, inputs=12)
    rates = {id(p): float(group["lr"]) for group in groups for p in group["params"]}
    assert len(groups) == 4 and sum(len(group["params"]) for group in groups) == len(rates)
    for site in sites_of(model).values():
        assert rates.pop(id(site.original)) == pytest.approx(0.1 * 12 / own[site.name])
    assert set(rates.values()) == {float(lr)} and [group["weight_decay"] for group in groups] == [0.5, 0.5, 0.5, 0.0]
    torch.optim.AdamW(groups)
    with pytest.raises(topkast.ConfigError, match="inputs=0: must be above 0"):
        topkast.param_groups(model, lr, 0.5, inputs=0)


@pytest.mark.parametrize("argument", ["lr", "weight_decay", "inputs"])
@pytest.mark.parametrize("wrong", [-1e-9, math.nan, math.inf, "0.1", None, True])
def test_what_is_no_rate(argument: str, wrong: Any) -> None:
    if argument == "inputs" and wrong is None:
        return  # the default
    with pytest.raises(topkast.ConfigError, match=f"{argument}=.*finite number that is not negative"):
        topkast.param_groups(small(), **{"lr": 0.1, "weight_decay": 0.1, argument: wrong})


def test_a_model_that_was_not_converted() -> None:
    with pytest.raises(topkast.ModelError, match="has not converted"):
        topkast.param_groups(nn.Linear(4, 4), 0.1, 0.1)


def test_decays_as_the_oracle_does() -> None:
    """The oracle's groups are by its full-sized weights."""

    def grouped(trio: Trio, system: Any) -> torch.optim.Optimizer:
        if system is trio.ours:
            return torch.optim.AdamW(topkast.param_groups(system.model, 1e-2, 0.3), eps=1e-4)
        groups = [
            {"params": [p for p in system.parameters() if p.ndim >= 2], "weight_decay": 0.3},
            {"params": [p for p in system.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=1e-2, eps=1e-4)

    def loop(system: Any, optimizer: Any, trio: Trio) -> Any:
        optimizer = grouped(trio, system)
        system.watch(optimizer)
        yield from plain(system, optimizer, trio)

    assert Trio(CASES["mlp"], SPARSE, None).run(loop) == 5


def warned(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            model(torch.arange(6).view(2, 3) % 7).square().mean().backward()
            optimizer.step()
    return [str(warning.message) for warning in seen if "dense matrices" in str(warning.message)]


def adamw(model: nn.Module, decayed: list[nn.Parameter], *more: nn.Parameter) -> torch.optim.Optimizer:
    rest = [p for p in [*model.parameters(), *more] if id(p) not in ids(decayed)]
    return torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}])


@pytest.mark.parametrize("build", [small, lambda: copy.deepcopy(small())])
def test_a_list_of_names_that_leaves_them_out(build: Callable[[], nn.Module]) -> None:
    model = build()
    (text,) = warned(adamw(model, [model.embed.weight, model.head.weight]), model)
    assert "AdamW decays 2 dense matrices and none of the model's 2 sparse weights" in text
    assert "topkast.param_groups(model, lr, weight_decay)" in text


QUIET: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "param_groups": lambda model: torch.optim.AdamW(topkast.param_groups(model, 0.01, 0.1)),
    "all of it": lambda model: torch.optim.AdamW(model.parameters(), weight_decay=0.1),
    "none": lambda model: torch.optim.Adam(model.parameters()),
    "no such setting": lambda model: torch.optim.Rprop(model.parameters()),
    "vectors only": lambda model: adamw(model, [model.up.bias]),
    "one sparse weight of two": lambda model: adamw(model, [model.embed.weight, values(model)[0]]),
    "another model's matrices": lambda model: adamw(model, [other := nn.Parameter(torch.ones(3, 3))], other),
    "sparse weights are another optimizer's": lambda model: torch.optim.AdamW([model.head.weight], weight_decay=0.1),
}


@pytest.mark.parametrize("name", QUIET)
def test_no_other_optimizer_is_told(name: str) -> None:
    model = small()
    assert warned(QUIET[name](model), model) == []
