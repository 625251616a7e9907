"""Prodigy: a weight that enters B is measured from where it stands then."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

import topkast
from topkast.tests.support.truth import ways
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import Trio, plain, sites_of

prodigyopt = pytest.importorskip("prodigyopt")

SPARSE: dict[str, Any] = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 3, "min_size": 1, "backend": "eager"}


@pytest.mark.parametrize("options", [{}, {"use_bias_correction": True, "betas": (0.9, 0.99)}], ids=["", "bias"])
def test_ten_steps_after_entering(options: dict[str, Any]) -> None:
    make = partial(prodigyopt.Prodigy, d0=1e-3, eps=1e-4, **options)
    trio = Trio(CASES["mlp"], SPARSE, make, further=dict(ways.SUMS))  # a sum's order is nobody's promise
    trio.run(partial(plain, steps=14))
    entered = [step for site in sites_of(trio.ours.model).values() for step, _, share in site.churn if share]
    assert entered and min(entered) <= 4


def test_every_fifth_weight_is_refused() -> None:
    """``slice_p`` keeps numbers of some weights only, by their place."""
    model = topkast.compile(CASES["mlp"].model(), **SPARSE)
    optimizer = prodigyopt.Prodigy(model.parameters(), slice_p=5)
    before = [p.detach().clone() for p in model.parameters()]
    (x,), target = CASES["mlp"].batches(1)[0]
    CASES["mlp"].loss(model(x), target).backward()
    with pytest.raises(topkast.OptimizerError, match="Prodigy keeps 's'"):
        optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))
