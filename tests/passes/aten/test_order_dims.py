"""Products that a graph writes in another order, or as one opaque operator, become the sparse ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import topkast
from topkast.tests.support.truth.builders import Case
from topkast.tests.support.truth.lockstep import Trio, plain, sgd

OPTIONS = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2, "backend": "aot_eager"}


class Heads(nn.Module):
    """As XLNet's: what merges the heads sums over two dimensions, in the order that einsum likes."""

    def __init__(self) -> None:
        super().__init__()
        self.split = nn.Parameter(torch.randn(12, 3, 5) / 4)
        self.merge = nn.Parameter(torch.randn(12, 3, 5) / 4)

    def forward(self, x: Tensor) -> Tensor:
        heads = torch.tanh(torch.einsum("ibh,hnd->ibnd", x, self.split))
        return torch.einsum("ibnd,hnd->ibh", heads, self.merge)


class Turned(nn.Module):
    """Rows and columns in order, and once more in another one, with a bias, the weight on either side."""

    def __init__(self, at_left: bool) -> None:
        super().__init__()
        self.at_left = at_left
        self.weight = nn.Parameter(torch.randn(3, 4, 2, 5) / 4)
        self.bias = nn.Parameter(torch.zeros(12, 1) if at_left else torch.zeros(12))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("bkl,ijkl->bij", x.view(-1, 2, 5), self.weight).flatten(1)
        turned = self.weight.permute(1, 0, 3, 2).reshape(12, 10)
        return y + (torch.addmm(self.bias, turned, x.T).T if self.at_left else torch.addmm(self.bias, x, turned.T))


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.both = nn.Linear(7, 6), nn.Bilinear(6, 7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.both(torch.tanh(self.first(x)), x)


class Strided(Bilinear):
    """Its first input lies in memory column by column."""

    def forward(self, x: Tensor) -> Tensor:
        return self.both(torch.tanh(self.first(x)).T.contiguous().T, x)


def trained(name: str, build: Any, shape: tuple[int, ...], **options: Any) -> list[dict[str, Any]]:
    trio = Trio(Case(name, build, shape, ()), {**OPTIONS, "example_inputs": (torch.ones(shape),), **options}, sgd)
    trio.run(plain)
    return topkast.report(trio.ours.model).sites


@pytest.mark.long
@pytest.mark.parametrize(
    "name, build, shape",
    [
        ("heads", Heads, (4, 2, 12)),
        ("turned", lambda: Turned(False), (6, 10)),
        ("turned, at the left", lambda: Turned(True), (6, 10)),
        ("bilinear", Bilinear, (9, 7)),
        ("bilinear, strided", Strided, (9, 7)),
    ],
)
@pytest.mark.parametrize("block", [(1, 1), (2, 2)])
def test_all_products_are_sparse(name: str, build: Any, shape: tuple[int, ...], block: tuple[int, int]) -> None:
    for row in trained(name, build, shape, block=block):
        assert row["unfused"] == [] and {"forward", "weight gradient"} <= row["fused"].keys(), row


def test_a_batch_of_any_size() -> None:
    torch.manual_seed(0)
    model = topkast.compile(Bilinear(), 0.5, 0.2, min_size=1, backend="aot_eager", dynamic=True)
    twin = topkast.densify(model)
    for n in (5, 8):
        x = torch.randn(n, 7, requires_grad=True)
        (slope,) = torch.autograd.grad(model(x).square().sum(), x)
        (expected,) = torch.autograd.grad(twin(x).square().sum(), x)
        torch.testing.assert_close(slope, expected)


def test_elements_that_no_order_of_dimensions_gives_stay_dense() -> None:
    class Flipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 2, 5) / 4)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.reshape(10, 6)

    (row,) = trained("flipped", Flipped, (4, 10))
    assert row["fused"] == {} and all("mixed" in entry["why"] for entry in row["unfused"])
