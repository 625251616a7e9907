"""pytorch_optimizer: optimizers whose state starts elsewhere than at zero, its Lookahead, and what is refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import topkast
from topkast.tests.support.truth import starts, ways
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import Trio, adamw, plain, sgd, sites_of

pytorch_optimizer = pytest.importorskip("pytorch_optimizer")

SPARSE: dict[str, Any] = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 3, "min_size": 1, "backend": "eager"}

# name -> settings, and the entries of its state that begin with a number
TRAINS: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "yogi": ({"lr": 0.01, "initial_accumulator": 1e-3}, {"exp_avg": 1e-3, "exp_avg_sq": 1e-3}),
    "madgrad": ({"lr": 0.01}, {}),
    "accsgd": ({"lr": 0.01}, {}),
    "adasmooth": ({"lr": 0.01, "eps": 1e-4}, {}),
    "prodigy": ({"d0": 1e-3, "eps": 1e-4}, {}),
    "lamb": ({"lr": 0.01, "eps": 1e-4}, {}),
}
VALUES = {"accsgd": ("momentum_buffer",), "adasmooth": ("prev_param",)}
REFUSED = ("shampoo", "scalableshampoo", "soap", "came", "sm3", "adafactor", "conda", "ranger", "aggmo", "lbfgs")


@pytest.mark.parametrize("name", TRAINS)
def test_ten_steps_after_entering(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, numbers = TRAINS[name]
    known = starts.begin

    def begin(optimizer: torch.optim.Optimizer, group: dict[str, Any], entry: str, theta: Tensor) -> Tensor:
        if entry in VALUES.get(name, ()):
            return theta.detach()
        return torch.full_like(theta, numbers[entry]) if entry in numbers else known(optimizer, group, entry, theta)

    monkeypatch.setattr("topkast.tests.support.truth.oracle.begin", begin)
    further = ways.SUMS if name in ("prodigy", "lamb") else {}  # a sum's order is nobody's promise
    make = partial(pytorch_optimizer.load_optimizer(name), **settings)
    trio = Trio(CASES["mlp"], SPARSE, make, further=dict(further))
    trio.run(partial(plain, steps=14))
    entered = [step for site in sites_of(trio.ours.model).values() for step, _, share in site.churn if share]
    assert entered and min(entered) <= 4


@pytest.mark.parametrize("base", [adamw, sgd])
def test_lookahead(base: Any) -> None:
    """Its constructor makes the slow copy. A weight that enters B begins its own where it stands."""

    def lookahead(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return pytorch_optimizer.Lookahead(base(parameters), k=3)

    trio = Trio(CASES["mlp"], {**SPARSE, "refresh_every": 4, "exploration_decay": 0.0}, lookahead)
    trio.run(partial(plain, steps=16))
    churn = [share for site in sites_of(trio.ours.model).values() for *_, share in site.churn]
    assert any(churn)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_moves(name: str) -> None:
    model = topkast.compile(CASES["mlp"].model(), **SPARSE)
    matrices = [p for p in model.parameters() if p.numel() > 100]
    optimizer = pytorch_optimizer.load_optimizer(name)([nn.Parameter(torch.zeros(4, 4))], lr=0.01)
    optimizer.param_groups[0]["params"][:] = matrices
    before = [p.detach().clone() for p in model.parameters()]
    (x,), target = CASES["mlp"].batches(1)[0]

    def closure() -> Tensor:
        loss = CASES["mlp"].loss(model(x), target)
        loss.backward()
        return loss

    with pytest.raises(topkast.OptimizerError, match=r"0\.weight.*SGD, Adam"):
        optimizer.step(closure)
    assert all(map(torch.equal, before, model.parameters()))
