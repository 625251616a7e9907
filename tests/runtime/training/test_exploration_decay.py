"""The decay of explored weights takes a quarter of a weight in one step at most."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import topkast


@pytest.mark.parametrize("lr", [1.0, torch.tensor(1.0)])
@pytest.mark.parametrize("decay, factor", [(0.125, 0.875), (0.25, 0.75), (1.5, 0.75)])
def test_one_step_takes_a_quarter_at_most(lr: float | Tensor, decay: float, factor: float) -> None:
    torch.manual_seed(0)
    model = topkast.sparsify(nn.Linear(16, 16), 0.8, 0.5, min_size=1, exploration_decay=decay)
    before = topkast.dense_state_dict(model, "all")["weight"]
    fwd, bwd = topkast.masks(model)["weight"]
    model(torch.zeros(2, 16)).sum().backward()  # the weight's gradient is zero
    torch.optim.SGD(model.parameters(), lr=lr).step()
    after = topkast.dense_state_dict(model, "all")["weight"]
    assert torch.equal(after, torch.where(bwd & ~fwd, factor * before, before))
