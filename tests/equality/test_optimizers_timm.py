"""timm's optimizers: the elementwise ones and those that use norms against the oracle, the others refused."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import topkast
from topkast.runtime.optimizers.probe import probe
from topkast.tests.support.truth import ways
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import Trio, adamw, plain, sgd, sites_of

timm_optim = pytest.importorskip("timm.optim")

SPARSE: dict[str, Any] = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 3, "min_size": 1, "backend": "eager"}

# name -> settings. A larger eps keeps rounding noise in gradients that are zero from becoming full steps.
TRAINS: dict[str, dict[str, Any]] = {
    "madgrad": {},
    "madgradw": {"weight_decay": 0.1},
    "rmsproptf": {"eps": 1e-4},
    "rmsproptfw": {"eps": 1e-4, "weight_decay": 0.1},
    "lamb": {"eps": 1e-4, "weight_decay": 0.1},
    "lars": {"weight_decay": 0.1},
    "larc": {"weight_decay": 0.1},
    "novograd": {"eps": 1e-4},
    "lion": {},
    "adabelief": {"eps": 1e-4},
    "adamw": {"eps": 1e-4},
    "nadamw": {"eps": 1e-4},
    "adan": {"eps": 1e-4},
    "laprop": {"eps": 1e-4},
    "sgdw": {"weight_decay": 0.1},
}
COUPLED = {"lamb", "lars", "larc", "novograd"}
REFUSED = ("muon", "adamuon", "adafactor", "adafactorbv", "kron", "adamp", "sgdp")


def make(name: str, parameters: list[nn.Parameter], **settings: Any) -> torch.optim.Optimizer:
    return timm_optim.create_optimizer_v2(parameters, opt=name, **{"lr": 0.01, "weight_decay": 0.0, **settings})


@pytest.mark.parametrize("name", TRAINS)
def test_ten_steps_after_entering(name: str) -> None:
    """A norm is that of B's values, which is what the oracle's optimizer sees."""
    further = ways.SUMS if name in COUPLED else {}  # a norm is a sum, whose order is nobody's promise
    trio = Trio(CASES["mlp"], SPARSE, partial(make, name, **TRAINS[name]), further=dict(further))
    trio.run(partial(plain, steps=14))
    sites = sites_of(trio.ours.model).values()
    entered = [step for site in sites for step, _, share in site.churn if share]
    assert entered and min(entered) <= 4
    assert {probe(trio.optimizers[0], site.original).coupled for site in sites} == {name in COUPLED}


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum' installed")  # kron's own advice
@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_moves(name: str) -> None:
    model = topkast.compile(CASES["mlp"].model(), **SPARSE)
    matrices = [p for p in model.parameters() if p.numel() > 100]
    optimizer = make(name, [nn.Parameter(torch.zeros(4, 4))])  # some take no vector: B's values may be one
    optimizer.param_groups[0]["params"] = matrices
    before = [p.detach().clone() for p in model.parameters()]
    (x,), target = CASES["mlp"].batches(1)[0]
    CASES["mlp"].loss(model(x), target).backward()
    with pytest.raises(topkast.OptimizerError, match=r"0\.weight.*SGD, Adam"):
        optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))


def lookahead(base: Any, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return timm_optim.Lookahead(base(parameters), alpha=0.5, k=3)


@pytest.mark.parametrize("base", [adamw, sgd])
def test_lookahead(base: Any) -> None:
    """A weight that enters B begins its slow copy where it stands. The decay is off: the wrapper copies after it."""
    trio = Trio(CASES["mlp"], {**SPARSE, "refresh_every": 4, "exploration_decay": 0.0}, partial(lookahead, base))
    trio.run(partial(plain, steps=16))
    churn = [share for site in sites_of(trio.ours.model).values() for *_, share in site.churn]
    assert any(churn)


def test_lookahead_resumes() -> None:
    """The slow copy of a loaded state is known as one, though nobody has seen it made."""
    options = {**SPARSE, "refresh_every": 4, "exploration_decay": 0.0}
    case, ends = CASES["mlp"], []

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, steps: int) -> None:
        for (x,), target in case.batches(steps, seed):
            optimizer.zero_grad()
            case.loss(model(x), target).backward()
            optimizer.step()

    whole = topkast.compile(case.model(), **options)
    optimizer = lookahead(adamw, list(whole.parameters()))
    train(whole, optimizer, 1, 7)
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    again = topkast.compile(case.model(seed=1), **options)
    other = lookahead(adamw, list(again.parameters()))
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    for model, one in ((whole, optimizer), (again, other)):
        train(model, one, 2, 12)
        ends.append(model.state_dict())
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
