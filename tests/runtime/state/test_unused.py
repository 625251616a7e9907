"""A weight that a step does not use: it stands still, its clock goes on, and its sets are chosen when they are due."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import topkast
from topkast.compiler.backend import topkast_aot_eager
from topkast.tests.support.truth.builders import CASES, Case
from topkast.tests.support.truth.lockstep import Trio, adamw, sgd, sites_of

SPARSE = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2, "exclude": "plain.*"}
Loop = Iterator[Tensor | None]


class Branches(nn.Module):
    """``use`` says which of two branches a forward takes: both, or none of them."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.into, self.plain = nn.Linear(14, 26), nn.Linear(14, 6)
        self.left = nn.Sequential(nn.Linear(26, 30), nn.GELU(), nn.Linear(30, 6))
        self.right = nn.Sequential(nn.Linear(26, 22), nn.ReLU(), nn.Linear(22, 6))
        self.use, self.broken = ("left", "right"), broken

    def forward(self, x: Tensor) -> Tensor:
        out = self.plain(x)
        if self.broken:
            torch._dynamo.graph_break()
        hidden = torch.tanh(self.into(x)) if self.use else x
        for name in self.use:
            if self.broken:
                torch._dynamo.graph_break()
            out = out + (self.left if name == "left" else self.right)(hidden)
        return out


def case(broken: bool = False) -> Case:
    return Case("branches", lambda: Branches(broken), (9, 14), ("into.weight", "left.0.weight", "right.2.weight"))


LEFT, RIGHT, BOTH = ("left",), ("right",), ("left", "right")
TURNS: list[tuple[str, ...]] = [BOTH, LEFT, RIGHT, LEFT, LEFT, (), (), RIGHT, BOTH]
WAYS = ["eager", "whole", "whole, broken", "backend", "backend, broken", "parts"]


def in_turns(system: Any, optimizer: Any, trio: Trio, set_to_none: bool = True, way: str = "") -> Loop:
    for number, (use, batch) in enumerate(zip(TURNS, trio.case.batches(len(TURNS)), strict=True)):
        system.model.use = use
        optimizer.zero_grad(set_to_none)
        loss = trio.loss(system, batch)
        if system is trio.ours and way and (use or "backend" not in way) and way != "backend, broken":
            assert {site.refreshed_at for site in sites_of(system.model).values()} == {number // 2 * 2}
        loss.backward()
        optimizer.step()
        if system is trio.ours and way:
            assert {(s.refreshed_at, s.late) for s in sites_of(system.model).values()} == {(number // 2 * 2, 0)}
        yield loss.detach()


@pytest.mark.long
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_branches(way: str, set_to_none: bool) -> None:
    """``parts``: modules that are compiled on their own, so that a forward has several graphs and eager frames."""
    whole = "aot_eager" if way.startswith("whole") else "eager"
    trio = Trio(case("broken" in way), {**SPARSE, "backend": whole}, adamw)
    model = trio.ours.model
    if way.startswith("backend"):
        trio.ours.model = torch.compile(model, backend=topkast_aot_eager)
    if way == "parts":
        for part in (model.into, model.left, model.right):
            part.compile(backend=topkast_aot_eager)
    trio.run(partial(in_turns, set_to_none=set_to_none, way=way))


RULES: list[dict[str, Any]] = [
    {"method": "set"}, {"method": "rigl"}, {"method": "gmp", "stop_exploring_after": 5}, {"explore": "random"},
    {"stop_exploring_after": 3}, {"refresh_in_background": True}, {"exploration_decay": 0, "exploration_l2": 0.3},
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_rules(rule: dict[str, Any]) -> None:
    given = {**SPARSE, **rule, "backend": "eager"}
    if "method" in rule:
        del given["bwd"]
    Trio(case(), given, adamw).run(in_turns)


@pytest.mark.parametrize("make", [sgd, adamw])
def test_a_weight_without_gradient_stands_still(make: Any) -> None:
    """Not one bit of it moves, decay of what is explored or not; neither does its optimizer state."""
    model = topkast.compile(Branches(), min_size=1, backend="eager", **{**SPARSE, "refresh_every": 100})
    optimizer = make(model.parameters())
    left = ["left.0.weight", "left.2.weight"]
    for use in (BOTH, RIGHT, RIGHT):
        model.use = use
        optimizer.zero_grad()
        before = topkast.dense_state_dict(model, values="all")
        before = {name: before[name].clone() for name in left}
        model(torch.randn(9, 14)).square().sum().backward()
        optimizer.step()
        after = topkast.dense_state_dict(model, values="all")
        assert all(torch.equal(before[name], after[name]) == (use == RIGHT) for name in left)


def test_two_models_of_one_optimizer() -> None:
    """One that no forward has called is refreshed before the step moves it, and not counted as late."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = CASES["mlp"].build(), CASES["mlp"].build()

    torch.manual_seed(0)
    pair = Both()
    options = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2, "min_size": 1, "balanced": False, "backend": "eager"}
    for part in (pair.first, pair.second):
        topkast.compile(part, **options)
    optimizer = sgd(list(pair.parameters()))
    sites = sites_of(pair.second).values()
    for number, (args, target) in enumerate(CASES["mlp"].batches(6)):
        optimizer.zero_grad(set_to_none=False)
        model = pair.first if number in (2, 4) else pair.second
        CASES["mlp"].loss(model(*args), target).backward()
        theta = {site.name: site.theta() for site in sites}
        optimizer.step()
        for site in sites:
            if number in (2, 4):
                assert site.refreshed_at == number and site.late == 0
                largest = theta[site.name].abs().flatten().topk(site.n_fwd).indices
                assert site.sets()[0].flatten()[largest].all()
