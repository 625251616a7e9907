"""timm's ModelEmaV3 of a sparse model is the average that a dense model would have; its Lookahead counts once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

import topkast
from topkast.tests.runtime.state.test_copies import follow
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import sgd, sites_of

pytest.importorskip("timm")
from timm.optim.lookahead import Lookahead
from timm.utils.model_ema import ModelEmaV3

OPTIONS: dict[str, dict[str, Any]] = {
    "foreach": {},
    "one by one": {"foreach": False},
    "another type": {"dtype": torch.float64},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_model_ema(name: str) -> None:
    held: list[Any] = []

    def made(model: torch.nn.Module) -> torch.nn.Module:
        held.append(ModelEmaV3(model, decay=0.8, **OPTIONS[name]))
        return held[-1].module

    def update(average: torch.nn.Module, model: torch.nn.Module, number: int) -> None:
        held[-1].update(model)

    follow(update, {}, made)


@pytest.mark.parametrize("base", [sgd, partial(torch.optim.Adam, lr=0.01)])
def test_lookahead(base: Callable[..., torch.optim.Optimizer]) -> None:
    model = topkast.compile(CASES["mlp"].model(), 0.8, 0.6, refresh_every=2, min_size=1, backend="eager")
    optimizer = Lookahead(base(list(model.parameters())), k=2)
    for args, target in CASES["mlp"].batches(3):
        optimizer.zero_grad()
        CASES["mlp"].loss(model(*args), target).backward()
        optimizer.step()
    assert {site.step for site in sites_of(model).values()} == {3}
