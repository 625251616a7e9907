"""The decay of many weights in two calls: the numbers of single calls, once only, and nothing out of bounds."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import topkast
from topkast.runtime.kernels.explored import ScaleTogether, square_sum_of_a
from topkast.runtime.layout import Geometry, explored_values
from topkast.runtime.native import together
from topkast.tests.runtime.native.test_native import LIBRARY
from topkast.tests.support.truth.product_layouts import sets

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the native kernels are not built")


def parts() -> list[together.Part]:
    found: list[together.Part] = []
    for rows, cols, block, spare in [
        (40, 30, (1, 1), 0),
        (33, 50, (16, 1), 2),
        (130, 64, (8, 8), 0),
        (5, 7, (3, 5), 1),
    ]:
        geometry = Geometry((rows, cols), (0, 1), 1, block)
        index = sets(geometry, 0.2, 0.5, spare)
        found.append((torch.randn(index.cols.numel() * geometry.unit), index, geometry))
    return found


def test_sums_are_those_of_single_calls() -> None:
    many = parts()
    for _ in range(2):  # the second time from the table of addresses
        expected = torch.stack([square_sum_of_a(*one) for one in many])
        assert torch.allclose(together.squares(many), expected, rtol=1e-14)
        for values, *_ in many:
            values.mul_(2)


def test_explored_values_are_scaled_once() -> None:
    many, factors = parts(), torch.tensor([0.5, 0.75, 1.0, 0.25])
    before = [values.clone() for values, *_ in many]
    versions = [values._version for values, *_ in many]
    scale = ScaleTogether(many, factors.double())
    scale(), scale()
    for (values, index, geometry), old, factor in zip(many, before, factors, strict=True):
        assert torch.equal(values, torch.where(explored_values(index, geometry), old * factor, old))
    assert all(values._version > version for (values, *_), version in zip(many, versions, strict=True))


def test_an_interrupt_after_the_call_scales_nothing_twice() -> None:
    many, factors = parts(), torch.full((4,), 0.5)
    together.scale_explored_once(many, factors)
    once = [values.clone() for values, *_ in many]
    together.scale_explored_once(many, factors)
    assert all(torch.equal(values, old) for (values, *_), old in zip(many, once, strict=True))


def test_foreign_memory_is_refused() -> None:
    many = parts()
    with pytest.raises(topkast.OperandError, match="factors: a tensor of shape"):
        together.scale_explored_once(many, torch.ones(3))
    values, index, geometry = many[0]
    with pytest.raises(topkast.OperandError, match="values: a tensor of shape"):
        together.squares([(values[1:], index, geometry)])
    index.row_ptr[-1] += 1
    with pytest.raises(topkast.OperandError, match="cols: a tensor of shape"):
        together.squares(many)


def steps(lr: float | Tensor, decay: float | None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20))
    model = topkast.sparsify(net, 0.8, 0.5, min_size=1, seed=0, exploration_decay=decay)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    x = torch.randn(8, 40)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return topkast.dense_state_dict(model, "all")


@pytest.mark.parametrize("decay", [None, 2.0])
def test_a_step_decays_as_single_calls_do(decay: float | None) -> None:
    """With a learning rate in a tensor each weight decays in calls of its own."""
    ours, single = steps(0.05, decay), steps(torch.tensor(0.05, dtype=torch.float64), decay)
    assert all(torch.allclose(ours[name], single[name], rtol=1e-6, atol=1e-8) for name in single)


@pytest.mark.parametrize("held, isa", [("avx2", "avx2"), ("default", "portable"), ("", None)])
def test_torchs_own_variable_holds_the_instruction_set(held: str, isa: str | None) -> None:
    if LIBRARY.tk_isa_best() < 1:
        pytest.skip("this processor has no AVX2")
    code = "from topkast.runtime.native import ISAS, isa, library; print(isa(), ISAS[library().tk_isa_best()])"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": held}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    now, best = done.stdout.split()
    assert now == (isa or best)
