"""Activations and their gradients in bfloat16 against float64, at every number of the format; after a product and apart
from it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import topkast
from topkast.runtime import native
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.native import bfloat16
from topkast.runtime.native.bfloat16 import SMOOTH
from topkast.runtime.reference.products import activation, activation_grad
from topkast.tests.support.truth.product_layouts import sets

LIBRARY = native.library()
pytestmark = pytest.mark.skipif(
    LIBRARY is None or not LIBRARY.tk_bf16(), reason="the processor has no AVX512_BF16, or the kernels are not built"
)


def every_number() -> Tensor:
    """All numbers in bfloat16, NaN and infinities too: 65,536, and some more so that the last vector is not full."""
    numbers = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    return torch.cat([numbers, numbers[:13]])


def activated(act: str, before: Tensor) -> Tensor:
    """The activation after a product whose result is ``before``, one number in each row."""
    geometry = Geometry((1, 1), (0, 1), 1, (1, 1))
    index = Index(torch.tensor([0, 1]), torch.tensor([1]), torch.tensor([0], dtype=torch.uint16))
    plain, found = bfloat16.spmm_activate(before[:, None], torch.ones(1), index, geometry, None, act)
    whole = before.isfinite() & (before.abs() > 1e-30)  # the product reads denormals as zero
    assert plain[whole, 0].equal(before[whole])
    return found[:, 0]


def distance(found: Tensor, plain: Tensor, exact: Tensor) -> tuple[float, float]:
    """The share of PyTorch's error that ours is: the largest, and in root mean square."""
    mine, own = (found.double() - exact).abs(), (plain.double() - exact).abs()
    return (mine.max() / own.max()).item(), (mine.square().mean() / own.square().mean()).sqrt().item()


@pytest.mark.parametrize("act", SMOOTH)
@pytest.mark.parametrize("backward", [False, True])
def test_as_exact_as_pytorch(act: str, backward: bool) -> None:
    """Between -20 and 20, where most of the function is, the error is that of the rounding to bfloat16."""
    x = every_number()
    x = x[x.abs() < 20]
    ones = torch.ones_like(x)
    if backward:
        found, plain = bfloat16.activate_grad(ones, x, act), activation_grad(act, ones, x)
        exact = activation_grad(act, ones.double(), x.double())
    else:
        found, plain, exact = activated(act, x), activation(act, x), activation(act, x.double())
    largest, mean = distance(found, plain, exact)
    assert largest < 1.02 and mean < 1.02


@pytest.mark.parametrize("act", SMOOTH)
def test_what_is_not_finite_and_what_is_large(act: str) -> None:
    """NaN stays; far from zero the functions are zero or the identity, and their derivatives zero or one."""
    x = torch.tensor([torch.nan, -300.0, -1e30, 300.0, 1e30, torch.inf, 0.0], dtype=torch.bfloat16)
    y, slope = activated(act, x), bfloat16.activate_grad(torch.ones_like(x), x, act)
    assert y[0].isnan() and slope[0].isnan()
    assert y[1:3].abs().max() < 1e-30 and slope[1:3].abs().max() < 1e-6
    assert y[3:6].equal(x[3:6]) and slope[3:5].eq(1).all() and slope[5].isnan()
    assert y[6] == 0 and slope[6] == 0.5


@pytest.mark.parametrize("block", [(1, 1), (4, 1), (16, 1), (3, 5), (32, 32)])
@pytest.mark.parametrize("m", [1, 70, 300])
def test_after_a_product(block: tuple[int, int], m: int) -> None:
    """The product is the same to the bit; the activation, and its gradient, are those of the rounded product. More and
    fewer tiles of rows than four for each thread."""
    geometry = Geometry((48, 65), (0, 1), 1, block)
    index = sets(geometry, 0.3, 0.5)
    values, x, dy = (torch.randn(size).bfloat16() for size in ((index.cols.numel() * geometry.unit,), (m, 65), (m, 48)))
    bias, before = torch.randn(48), torch.randn(m, 65).bfloat16()
    for act in SMOOTH:
        y, after = bfloat16.spmm_activate(x, values, index, geometry, bias, act)
        assert y.equal(bfloat16.spmm(x, values, index, geometry, bias))
        torch.testing.assert_close(after, activation(act, y), rtol=2**-7, atol=1e-4)
        dx = bfloat16.spmm_t_activate_grad(dy, before, values, index, geometry, act)
        plain = bfloat16.spmm_t(dy, values, index, geometry)
        assert dx.equal(bfloat16.activate_grad(plain, before, act))
        turned = before.mT.contiguous().mT
        assert dx.equal(bfloat16.spmm_t_activate_grad(dy, turned, values, index, geometry, act))


def test_threads_change_nothing() -> None:
    x, dy = torch.randn(2, 100_003).bfloat16()
    alone = bfloat16.activate_grad(dy, x, "gelu")
    try:
        torch.set_num_threads(2)
        assert bfloat16.activate_grad(dy, x, "gelu").equal(alone)
    finally:
        torch.set_num_threads(1)


def test_wrong_operands_are_named() -> None:
    x = torch.zeros(4, 6, dtype=torch.bfloat16)
    with pytest.raises(topkast.TopkastError, match=r"act='relu': must be one of 'gelu', 'gelu_tanh', 'silu'"):
        bfloat16.activate_grad(x, x, "relu")
    with pytest.raises(topkast.TopkastError, match=r"dy: .*\(6, 4\).*expected \(4, 6\)"):
        bfloat16.activate_grad(x.T, x, "gelu")
    with pytest.raises(topkast.TopkastError, match=r"dy: .*float32.*expected bfloat16"):
        bfloat16.activate_grad(x.float(), x, "gelu")
