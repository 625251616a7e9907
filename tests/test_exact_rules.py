"""Every rule by which sets are chosen and explored weights are held back, against the oracle."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import topkast
from topkast.tests.support.truth.builders import CASES, WAYS_OF, Case
from topkast.tests.support.truth.lockstep import Trio, adamw, plain, sgd, sites_of

RULES: dict[str, dict[str, Any]] = {
    "bwd=0": {"bwd": 0.0},
    "bwd=fwd": {"bwd": 0.8},
    "bwd default": {"bwd": None},
    "block 4x1": {"block": (4, 1)},
    "block 2x2": {"block": (2, 2)},
    "block 3x5, padded": {"block": (3, 5)},
    "balanced": {"balanced": True},
    "balanced blocks": {"balanced": True, "block": (2, 3)},
    "random": {"explore": "random", "seed": 3},
    "random, balanced blocks": {"explore": "random", "seed": 3, "balanced": True, "block": (2, 3)},
    "stop at 3": {"stop_exploring_after": 3},
    "stop at 3, random": {"stop_exploring_after": 3, "explore": "random", "seed": 3},
    "stop at 1": {"stop_exploring_after": 1, "refresh_every": 3},
    "stop at 2, blocks": {"stop_exploring_after": 2, "refresh_every": 100, "block": (3, 5)},
    "l2": {"exploration_l2": 0.05},
    "l2, blocks, no decay": {"exploration_l2": 0.05, "exploration_decay": 0.0, "block": (3, 5)},
    "decay 0": {"exploration_decay": 0.0},
    "decay 10": {"exploration_decay": 10.0},
    "every step": {"refresh_every": 1},
    "never": {"refresh_every": 1000},
    "growing intervals": {"refresh_every": 1, "refresh_growth": 1.7},
    "falling density": {"fwd_start": 0.5, "fwd_reached_after": 5, "bwd": 0.3},
    "falling density, B = A at first": {"fwd_start": 0.5, "fwd_reached_after": 3, "bwd": 0.5, "balanced": True},
    "falling density, random, l2": {
        "fwd_start": 0.5,
        "fwd_reached_after": 5,
        "bwd": None,
        "explore": "random",
        "seed": 3,
        "exploration_l2": 0.05,
    },
    "falling density, blocks, stop": {
        "fwd_start": 0.4,
        "fwd_reached_after": 3,
        "bwd": 0.2,
        "block": (2, 3),
        "stop_exploring_after": 5,
    },
    "falling density, disk": {"fwd_start": 0.5, "fwd_reached_after": 4, "bwd": 0.1, "reservoir": "disk"},
    "very sparse": {"fwd": 0.999, "bwd": 0.99},
    "host": {"reservoir": "host"},
    "disk": {"reservoir": "disk"},
}


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule: str) -> None:
    options = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2, "backend": "eager", **RULES[rule]}
    # "decay 10" takes lr × 10 = 0.2 of an explored weight a step.
    trio = Trio(CASES["mlp"], options, sgd)
    trio.run(partial(plain, steps=7), bitwise="l2" not in rule)


@pytest.mark.parametrize(
    "name, rule",
    [
        ("cnn", "block 3x5, padded"),
        ("cnn", "balanced"),
        ("hf_conv1d", "random, balanced blocks"),
        ("hf_conv1d", "stop at 3"),
        ("experts", "bwd=0"),
        ("experts", "block 2x2"),
        ("mlp", "l2, blocks, no decay"),
        ("cnn", "falling density"),
        ("experts", "falling density, blocks, stop"),
    ],
)
def test_rule_compiled(name: str, rule: str) -> None:
    """Weights whose matrix is not their own shape."""
    options = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2, "backend": "aot_eager", **RULES[rule]}
    Trio(CASES[name], options, adamw, ways=WAYS_OF.get(name, {})).run(partial(plain, steps=5))


@pytest.mark.parametrize(
    "columns, block, fwd, balanced",
    [
        (40, (1, 1), 0.9, True),  # 4 weights a row
        (40, (1, 1), 0.99, False),  # 0.4
        (160, (16, 16), 0.92, True),  # 0.8 of a block
        (160, (16, 16), 0.93, False),  # 0.7
        (31, (3, 5), 0.5, True),  # 3.5 of 7, the last of them padded
    ],
)
def test_rows_are_balanced_where_that_changes_the_density_little(
    columns: int, block: tuple[int, int], fwd: float, balanced: bool
) -> None:
    model = topkast.compile(nn.Linear(columns, 64), fwd, block=block, min_size=1, backend="eager")
    (site,) = sites_of(model).values()
    rows, across = site.geometry.grid
    expected = rows * round((1 - fwd) * across) if balanced else round((1 - fwd) * rows * across)
    assert site.rule.balanced is balanced and site.n_fwd == expected
    said = [line for line in topkast.report(model).warnings if "some outputs have no input" in line]
    assert len(said) == (not balanced)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("block", [(1, 1), (2, 2), (3, 5)])
@pytest.mark.parametrize("fwd, bwd", [(0.9, 0.8), (0.75, 0.5), (0.5, 0.0), (0.999, 0.998)])
def test_counts_are_exact(fwd: float, bwd: float, block: tuple[int, int], balanced: bool) -> None:
    """max(1, round(D × units)) blocks, per block row when balanced."""
    model = topkast.compile(
        nn.Sequential(nn.Linear(31, 45), nn.ReLU(), nn.Linear(45, 4)),
        fwd=fwd, bwd=bwd, block=block, balanced=balanced, min_size=1, include="0.weight", backend="eager",
    )  # fmt: skip
    rows, cols = -(-45 // block[0]), -(-31 // block[1])
    padded = torch.zeros(2, rows * block[0], cols * block[1], dtype=torch.bool)
    padded[:, :45, :31] = torch.stack(topkast.masks(model)["0.weight"])
    blocks = padded.view(2, rows, block[0], cols, block[1]).transpose(2, 3).any(-1).any(-1)
    for held, density in zip(blocks, (1 - fwd, 1 - bwd), strict=True):
        if balanced:
            assert held.sum(1).tolist() == [max(1, round(density * cols))] * rows
        else:
            assert int(held.sum()) == max(1, round(density * rows * cols))


@pytest.mark.parametrize("block", [(1, 1), (2, 2), (3, 5)])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_ties_go_to_the_lower_index(block: tuple[int, int], backend: str) -> None:
    """Constant weights: every unit has the same score, signs differ."""

    def constant() -> nn.Module:
        model = CASES["mlp"].model()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.copy_(torch.where(torch.arange(parameter.shape[1]) % 3 == 0, -0.1, 0.1))
        return model

    options = {"fwd": 0.7, "bwd": 0.4, "refresh_every": 2, "block": block, "balanced": False, "backend": backend}
    trio = Trio(CASES["mlp"], options, sgd, build=constant)
    fwd, bwd = topkast.masks(trio.ours.model)["2.weight"]
    if block == (1, 1):
        for mask in (fwd, bwd):
            assert mask.flatten().int().diff().max() == 0, "not a prefix"
    trio.compare("before the first step")
    trio.run(plain, bitwise=backend == "eager")


def test_zero_weights_keep_exact_counts() -> None:
    case = CASES["mlp"]

    def zeros() -> nn.Module:
        model = case.model()
        nn.init.zeros_(model[2].weight)
        return model

    trio = Trio(case, {"fwd": 0.7, "bwd": 0.4, "refresh_every": 1, "backend": "eager"}, sgd, build=zeros)
    trio.run(plain, bitwise=True)


def _draws(seed: int | None, steps: int = 4) -> list[torch.Tensor]:
    case = CASES["mlp"]
    model = topkast.compile(
        case.model(), fwd=0.8, bwd=0.6, refresh_every=1, explore="random", seed=seed, min_size=1, backend="eager"
    )
    optimizer = sgd(list(model.parameters()))
    found = []
    for args, target in case.batches(steps):
        optimizer.zero_grad()
        case.loss(model(*args), target).backward()
        optimizer.step()
        found.append(topkast.masks(model)["2.weight"][1].clone())
    return found


def test_random_exploration_is_deterministic() -> None:
    """The same seed gives the same sets whatever the global generator does; another seed and another refresh do not."""
    first = _draws(5)
    torch.manual_seed(123)
    again, other = _draws(5), _draws(6)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[1], first[2])


def test_refresh_leaves_the_global_generator_alone() -> None:
    model = topkast.compile(CASES["mlp"].model(), fwd=0.8, bwd=0.6, explore="random", min_size=1, backend="eager")
    state = torch.get_rng_state()
    topkast.refresh(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_entering_weight_brings_its_old_value() -> None:
    """It is the value it had when it left, or at the start, to the last bit; then it trains from zero state."""
    trio = Trio(
        CASES["mlp"], {"fwd": 0.9, "bwd": 0.8, "refresh_every": 1, "exploration_decay": 20.0, "backend": "eager"}, adamw
    )
    trio.run(partial(plain, steps=8))
    entered = sum(share_b for site in sites_of(trio.ours.model).values() for _, _, share_b in site.churn)
    assert entered > 0, "no weight entered B: nothing was tested"


def test_two_models_do_not_share_clocks() -> None:
    case = Case("pair", lambda: nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 3)), (4, 8), ("0.weight",))
    first = Trio(case, {"fwd": 0.5, "bwd": 0.2, "refresh_every": 1, "backend": "eager"}, sgd)
    second = Trio(case, {"fwd": 0.5, "bwd": 0.2, "refresh_every": 1, "backend": "eager"}, sgd)
    first.run(plain, bitwise=True)
    assert all(site.step == 0 for site in sites_of(second.ours.model).values())
    second.run(plain, bitwise=True)
