"""Any elementwise optimizer trains a topkast model unchanged: its state follows its index, what left B stands still."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import topkast
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import Trio, plain, sgd, sites_of

optim = torch.optim
SPARSE = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2, "backend": "eager"}

OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "sgd": partial(optim.SGD, lr=0.05),
    "sgd weight decay": partial(optim.SGD, lr=0.05, weight_decay=0.1),
    "sgd momentum": partial(optim.SGD, lr=0.02, momentum=0.9, weight_decay=0.1),
    "sgd nesterov": partial(optim.SGD, lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.1),
    "sgd dampening": partial(optim.SGD, lr=0.02, momentum=0.9, dampening=0.5),
    "sgd maximize": partial(optim.SGD, lr=0.002, momentum=0.9, maximize=True),
    "sgd foreach": partial(optim.SGD, lr=0.02, momentum=0.9, weight_decay=0.1, foreach=True),
    "sgd fused": partial(optim.SGD, lr=0.02, momentum=0.9, weight_decay=0.1, fused=True),
    "adam": partial(optim.Adam, lr=0.01, weight_decay=0.1),
    "adam amsgrad": partial(optim.Adam, lr=0.01, amsgrad=True, weight_decay=0.1),
    "adamw": partial(optim.AdamW, lr=0.01, weight_decay=0.5),
    "adamw amsgrad": partial(optim.AdamW, lr=0.01, amsgrad=True),
    "adamw foreach": partial(optim.AdamW, lr=0.01, foreach=True),
    "adamw fused": partial(optim.AdamW, lr=0.01, fused=True),
    "adamw tensor lr": partial(optim.AdamW, lr=torch.tensor(0.01), foreach=False),
    "adagrad": partial(optim.Adagrad, lr=0.02, weight_decay=0.1),
    "adagrad lr decay": partial(optim.Adagrad, lr=0.02, lr_decay=0.1),
    "rmsprop": partial(optim.RMSprop, lr=0.003, weight_decay=0.1, eps=1e-4),
    "rmsprop momentum": partial(optim.RMSprop, lr=0.003, momentum=0.9, centered=True, eps=1e-3),
    "nadam": partial(optim.NAdam, lr=0.01),
    "radam": partial(optim.RAdam, lr=0.01),
    "adamax": partial(optim.Adamax, lr=0.01),
    "adadelta": partial(optim.Adadelta, lr=20.0, weight_decay=0.1),
    "asgd": partial(optim.ASGD, lr=0.02, t0=2.0, weight_decay=0.1),
    "rprop": partial(optim.Rprop, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_the_oracle(name: str) -> None:
    """θ, W_A, the sets and every state tensor, after each of seven steps with three refreshes between them."""
    trio = Trio(CASES["mlp"], SPARSE, OPTIMIZERS[name])
    trio.run(partial(plain, steps=7))
    churn = [share for site in sites_of(trio.ours.model).values() for *_, share in site.churn]
    assert any(churn), "B never changed: nothing followed anything"


@pytest.mark.long
@pytest.mark.parametrize("name", ["sgd momentum", "adamw", "adagrad", "rmsprop", "adam amsgrad"])
def test_compiled(name: str) -> None:
    Trio(CASES["mlp"], {**SPARSE, "backend": "aot_eager"}, OPTIMIZERS[name]).run(plain)


def test_parameter_groups() -> None:
    """The decay of explored weights uses the learning rate of their own group."""

    def grouped(parameters: list[nn.Parameter]) -> optim.Optimizer:
        # In every system the big tensors are the sites': compact values or full θ.
        large = [p for p in parameters if p.numel() > 100]
        small = [p for p in parameters if p.numel() <= 100]
        groups = [
            {"params": large[:1], "lr": 0.03},
            {"params": large[1:], "lr": 0.005, "momentum": 0.5},
            {"params": small},
        ]
        return optim.SGD(groups, lr=0.01, momentum=0.9)

    Trio(CASES["mlp"], SPARSE, grouped).run(plain, bitwise=True)


def test_frozen_site() -> None:
    """A site whose gradient is turned off neither moves nor fails, though an optimizer holds it."""
    case = CASES["mlp"]
    model = topkast.compile(case.model(), fwd=0.8, bwd=0.6, refresh_every=1, min_size=1, backend="eager")
    sites_of(model)["2.weight"].original.requires_grad_(False)
    optimizer = sgd([p for p in model.parameters() if p.requires_grad])
    optimizer.add_param_group({"params": [p for p in model.parameters() if not p.requires_grad], "lr": 0.1})
    before = topkast.dense_state_dict(model, values="all")["2.weight"].clone()
    for args, target in case.batches(3):
        optimizer.zero_grad()
        case.loss(model(*args), target).backward()
        optimizer.step()
    assert torch.equal(topkast.dense_state_dict(model, values="all")["2.weight"], before)


@pytest.mark.parametrize("options", [{}, {"block": (3, 5)}, {"bwd": 0.0}, {"fwd": 0.0, "bwd": 0.0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_default_decay_knows_the_size_of_weights(options: dict[str, Any], dtype: torch.dtype) -> None:
    """B \\ A loses lr · 4 / the root mean square of A a step, a quarter at most: the same in a model of any scale."""
    for scale, lr in ((1.0, 1e-3), (1e-3, 1e-6), (1.0, 1e-2), (1.0, 10.0)):
        dense = nn.Linear(31, 22).to(dtype)
        with torch.no_grad():
            dense.weight.mul_(scale)
        model = topkast.sparsify(dense, **{"fwd": 0.9, "min_size": 1, **options})
        ((fwd, bwd),) = topkast.masks(model).values()
        before = topkast.dense_state_dict(model, values="all")["weight"].double()
        topkast.step(model, lr=lr)
        after = topkast.dense_state_dict(model, values="all")["weight"].double()
        # Of a block at the edge, what hangs over counts as zeros.
        count = sites_of(model)["weight"].n_fwd * math.prod(options.get("block", (1, 1)))
        share = min(4 * lr / float((before[fwd].square().sum() / count).sqrt()), 0.25)
        expected = torch.where(bwd & ~fwd, before * (1 - share), before)
        torch.testing.assert_close(after, expected, rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=0)


def test_weights_that_are_all_zero_decay() -> None:
    """Nothing is divided by zero, and nothing becomes a NaN."""
    dense = nn.Linear(31, 22)
    nn.init.zeros_(dense.weight)
    model = topkast.sparsify(dense, min_size=1)
    for lr in (0.0, 0.1):
        topkast.step(model, lr=lr)
        assert not topkast.dense_state_dict(model, values="all")["weight"].any()


def test_state_dict_of_the_optimizer_goes_around() -> None:
    """Saved and loaded at once in the middle of an interval, nothing changes."""

    def reloaded(system: Any, optimizer: Any, trio: Trio) -> Any:
        for number, loss in enumerate(plain(system, optimizer, trio, steps=6)):
            if number == 2:
                optimizer.load_state_dict(optimizer.state_dict())
            yield loss

    Trio(CASES["mlp"], SPARSE, OPTIMIZERS["adamw"]).run(reloaded)


def test_lbfgs_is_refused() -> None:
    """Its history pairs slots over time: an error that says what to use instead, not a wrong model."""
    case = CASES["mlp"]
    model = topkast.compile(case.model(), fwd=0.8, bwd=0.6, min_size=1, backend="eager")
    optimizer = optim.LBFGS(model.parameters(), max_iter=2)
    args, target = case.batches(1)[0]

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = case.loss(model(*args), target)
        loss.backward()
        return loss

    from topkast.runtime.errors import OptimizerError

    with pytest.raises(OptimizerError, match="LBFGS"):
        for _ in range(3):
            optimizer.step(closure)


@pytest.mark.parametrize("name", ["sgd momentum", "adamw", "adamw fused", "rmsprop momentum", "rprop", "adagrad"])
def test_outside_stands_still(name: str) -> None:
    """Promise 2, without the oracle: not one bit outside B moves, whatever momentum and weight decay want."""
    case = CASES["cnn"]
    model = topkast.compile(case.model(), fwd=0.9, bwd=0.8, refresh_every=3, min_size=1, backend="eager")
    optimizer = OPTIMIZERS[name](model.parameters())
    moved = 0
    for args, target in case.batches(7):
        optimizer.zero_grad()
        case.loss(model(*args), target).backward()
        masks = {key: (fwd.clone(), bwd.clone()) for key, (fwd, bwd) in topkast.masks(model).items()}
        before = {key: value.clone() for key, value in topkast.dense_state_dict(model, values="all").items()}
        optimizer.step()
        after = topkast.dense_state_dict(model, values="all")
        forward = topkast.dense_state_dict(model, values="forward")
        for key, (fwd, bwd) in masks.items():
            assert torch.equal(before[key][~bwd], after[key][~bwd]), key
            assert torch.equal(forward[key], torch.where(fwd, after[key], 0)), key
            moved += int((before[key] != after[key]).sum())
        assert all(
            torch.equal(m, n) for key in masks for m, n in zip(masks[key], topkast.masks(model)[key], strict=True)
        )
    assert moved


def test_the_state_is_not_looked_at_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first step, and before each refresh; and at once if an entry appears."""
    from topkast.runtime.errors import OptimizerError
    from topkast.runtime.training import optimizer_hooks

    looked: list[int] = []
    steps = 0
    check = optimizer_hooks.check_elementwise
    monkeypatch.setattr(optimizer_hooks, "check_elementwise", lambda *args: (looked.append(steps), check(*args)))
    model = topkast.sparsify(nn.Linear(16, 16), 0.8, 0.5, min_size=1, refresh_every=4)
    optimizer = optim.AdamW(model.parameters(), lr=1e-3)
    while steps < 7:
        if steps == 6:
            optimizer.state[model.bias]["rows"] = torch.zeros(3, 3)
        model(torch.ones(2, 16)).sum().backward()
        optimizer.step()
        steps += 1
    assert looked[0] == 0 and looked[-1] == 6 and len(looked) < 5
    optimizer.state[next(iter(optimizer.state))]["odd"] = torch.zeros(5, 1000)
    with pytest.raises(OptimizerError, match="'odd'"):
        optimizer.step()
