"""Sums over many rows in two steps: which sums, and that they are as exact as in one step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from topkast.passes.aten.base import run
from topkast.passes.aten.finish.split_sums import SplitSums
from topkast.passes.aten.log import PassLog
from topkast.passes.aten.nodes import aten
from topkast.tests.support.truth.budget import assert_budget


def rewritten(dims: list[int], keep: bool, x: Tensor) -> tuple[fx.GraphModule, int]:
    """The graph of a sum after the pass, and how many sums it has."""
    module = make_fx(lambda x: aten.sum.dim_IntList(x, dims, keep))(x)
    run([SplitSums], module.graph, PassLog())
    module.recompile()
    return module, sum(node.target is aten.sum.dim_IntList for node in module.graph.nodes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape, dims", [((512, 300), [0]), ((4, 128, 256), [0, 1]), ((16, 300, 32), [0, 2])])
@pytest.mark.parametrize("keep", [True, False])
def test_a_sum_over_rows(shape: tuple[int, ...], dims: list[int], keep: bool, dtype: torch.dtype) -> None:
    x = torch.randn(shape).to(dtype)
    module, sums = rewritten(dims, keep, x)
    assert sums == (1 if keep and dims == [0, 2] else 2)  # tiles are summed for vectors alone
    assert_budget(module(x), x.sum(dims, keep), x.double().sum(dims, keep), str(shape))


@pytest.mark.parametrize(
    "shape, dims, dtype",
    [
        ((512, 300), [1], torch.float32),  # along rows
        ((64, 300), [0], torch.float32),  # small
        ((1023, 300), [0], torch.float32),  # rows that make no whole groups
        ((512, 300), [0], torch.int64),
    ],
)
def test_other_sums_stay(shape: tuple[int, ...], dims: list[int], dtype: torch.dtype) -> None:
    _, sums = rewritten(dims, False, torch.ones(shape, dtype=dtype))
    assert sums == 1
