"""Weights that a product repeats over its batch are multiplied once, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import topkast
from topkast.tests.support.truth.builders import Case
from topkast.tests.support.truth.lockstep import Trio, plain, sgd

OPTIONS = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2, "backend": "aot_eager"}

Product = Callable[[Tensor, Tensor], Tensor]


class Stack(nn.Module):
    def __init__(self, shape: tuple[int, ...], product: Product) -> None:
        super().__init__()
        self.weight, self.product = nn.Parameter(torch.randn(shape) / 4), product
        self.scale = nn.Parameter(torch.ones(1))  # so that the input has a gradient

    def forward(self, x: Tensor) -> Tensor:
        return self.product(torch.tanh(self.scale * x), self.weight)


# name: the weight's shape, the input's, the product
WAYS: dict[str, tuple[tuple[int, ...], tuple[int, ...], Product]] = {
    "a stack for each of a batch": ((3, 6, 10), (4, 3, 5, 6), lambda x, w: x @ w),
    "a transposed stack": ((3, 10, 6), (4, 3, 5, 6), lambda x, w: x @ w.mT),
    "at the left": ((3, 10, 6), (4, 3, 6, 5), lambda x, w: w @ x),
    "transposed, at the left": ((3, 6, 10), (4, 3, 6, 5), lambda x, w: w.mT @ x),
    "each matrix for a batch": ((3, 6, 10), (3, 4, 5, 6), lambda x, w: x @ w.unsqueeze(1)),
    "one matrix": ((10, 6), (4, 5, 6), lambda x, w: x.mT.contiguous().mT @ w.T),
    "one matrix, at the left": ((10, 6), (4, 6, 5), lambda x, w: w @ x),
}


@pytest.mark.long
@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("block", [(1, 1), (2, 2)])
def test_every_product_is_sparse(name: str, block: tuple[int, int]) -> None:
    weight, shape, product = WAYS[name]
    case = Case(name, lambda: Stack(weight, product), shape, ())
    trio = Trio(case, {**OPTIONS, "block": block, "example_inputs": (torch.ones(shape),)}, sgd)
    trio.run(plain)
    (row,) = topkast.report(trio.ours.model).sites
    assert row["unfused"] == [] and {"forward", "input gradient", "weight gradient"} <= row["fused"].keys(), row


def test_sums_that_are_no_batch_stay_dense() -> None:
    """The rows of a weight, not a batch, are summed in this gradient."""

    def product(x: Tensor, w: Tensor) -> Tensor:
        return torch.bmm(x, w.unsqueeze(1).expand(3, 6, 10))

    case = Case("rows", lambda: Stack((3, 10), product), (3, 5, 6), ())
    trio = Trio(case, {**OPTIONS, "example_inputs": (torch.ones(3, 5, 6),)}, sgd)
    trio.run(plain)
    (row,) = topkast.report(trio.ours.model).sites
    assert row["unfused"] and not row["fused"], row


def test_rows_of_any_number() -> None:
    torch.manual_seed(0)
    weight, _, product = WAYS["a stack for each of a batch"]
    model = topkast.compile(
        Stack(weight, product), 0.5, 0.2, min_size=1, backend="aot_eager", example_inputs=(torch.ones(4, 3, 5, 6),)
    )
    twin = topkast.densify(model)
    for rows in (5, 7, 8):
        x = torch.randn(4, 3, rows, 6, requires_grad=True)
        (slope,) = torch.autograd.grad(model(x).square().sum(), x)
        (expected,) = torch.autograd.grad(twin(x).square().sum(), x)
        torch.testing.assert_close(slope, expected)
    assert topkast.report(model).sites[0]["unfused"] == []
