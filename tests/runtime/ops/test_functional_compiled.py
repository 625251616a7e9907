"""``torch.func`` over a compiled sparse model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import topkast

Values = dict[str, Tensor]


def model() -> nn.Module:
    dense = nn.Sequential(nn.Linear(7, 16), nn.Tanh(), nn.Linear(16, 3))
    return topkast.compile(dense, fwd=0.8, bwd=0.6, min_size=1, refresh_every=1, backend="aot_eager")


def values(sparse: nn.Module) -> Values:
    return {name: p.detach().clone() for name, p in sparse.named_parameters()}


def test_per_sample_gradients() -> None:
    sparse, x = model(), torch.randn(5, 7)
    held = values(sparse)

    def loss(given: Values, one: Tensor) -> Tensor:
        return functional_call(sparse, given, (one,)).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(held, x)
    for i, one in enumerate(x):
        sparse.zero_grad()
        sparse(one[None]).square().sum().backward()
        for name, p in sparse.named_parameters():
            assert p.grad is not None
            torch.testing.assert_close(each[name][i], p.grad)
    explored = sparse[0].sparse_state.weight
    outside_a = explored.explored()
    assert bool((each["0.weight"].flatten(1)[:, outside_a] != 0).any()), "B's gradient, not A's"


def test_functional_call_never_refreshes() -> None:
    """A refresh that is due waits for the model's own values: those of a call are not θ."""
    sparse, x = model(), torch.randn(5, 7)
    optimizer = torch.optim.SGD(sparse.parameters(), lr=0.5)
    sparse(x).square().sum().backward()
    optimizer.step()
    held, before = values(sparse), topkast.dense_state_dict(sparse, values="all")
    given = {name: torch.zeros_like(value) for name, value in held.items()}
    assert not functional_call(sparse, given, (x,)).any()
    after = topkast.dense_state_dict(sparse, values="all")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sparse[0].sparse_state.weight.due
    sparse(x)
    assert not sparse[0].sparse_state.weight.due
