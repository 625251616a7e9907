"""diffusers' EMAModel keeps a list of tensors, which cannot follow: a warning says so; topkast.averaged is right."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import topkast
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import sgd

training_utils = pytest.importorskip("diffusers.training_utils")


@pytest.mark.parametrize("list_of_tensors", [True, False])
def test_ema_model(list_of_tensors: bool) -> None:
    """With a dense model of the same steps the two agree; of a sparse one, the list is warned of."""
    case = CASES["mlp"]
    fwd, bwd = (0.8, 0.6) if list_of_tensors else (0.0, 0.0)
    model = topkast.sparsify(case.model(), fwd, bwd, refresh_every=3, min_size=1)
    dense = case.model()
    average = topkast.averaged(model, decay=0.8)
    kept: Any = training_utils.EMAModel((model if list_of_tensors else dense).parameters(), decay=0.8, min_decay=0.8)
    optimizer, other = sgd(list(model.parameters())), sgd(list(dense.parameters()))

    def train() -> None:
        for args, target in case.batches(8):
            for each, its in ((model, optimizer), (dense, other)):
                its.zero_grad()
                case.loss(each(*args), target).backward()
                its.step()
            average.update()
            kept.step((model if list_of_tensors else dense).parameters())

    if list_of_tensors:
        with pytest.warns(UserWarning, match=r"EMAModel keeps a list of tensors, .* use average = topkast\.averaged"):
            train()
        return
    train()
    found = topkast.dense_state_dict(average, values="all")
    for (key, _), shadow in zip(dense.named_parameters(), kept.shadow_params, strict=True):
        torch.testing.assert_close(found[key], shadow, rtol=1e-5, atol=1e-6)
