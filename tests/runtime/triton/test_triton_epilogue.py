"""Bias and activation inside the CUDA kernels' product, in the interpreter: the rule and the tests of the native one,
in bfloat16 and float16 too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from topkast.runtime.layout import Geometry
from topkast.runtime.planner import epilogues
from topkast.runtime.planner import plan as planner
from topkast.tests.passes.aten.test_fuse_epilogue import NEAR, WAYS, Net, outcome
from topkast.tests.support.interpreted import DTYPES, INTERPRETED
from topkast.tests.support.truth.budget import assert_budget

pytestmark = INTERPRETED
BLOCKS = {"triton": (16, 16), "csr": (1, 1)}


@pytest.fixture(autouse=True)
def in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Passes run though the graph may lie in a compile cache: they are counted."""
    monkeypatch.setenv("TOPKAST_KERNEL", "triton")
    with (
        torch._inductor.config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        yield


def activations(count: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(2, count, 48).to(dtype)


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("way", ["relu", "gelu with erf", "gelu of transformers", "swish", "through a view"])
def test_ways_of_writing_an_activation(way: str, dtype: torch.dtype) -> None:
    act, name = WAYS[way]
    x = activations(9, dtype)
    apart, none, _ = outcome("apart", lambda: Net(act).to(dtype), x, block=(16, 16))
    fused, matches, refusals = outcome("fused", lambda: Net(act).to(dtype), x, block=(16, 16))
    truth, _, _ = outcome("apart", lambda: Net(act).to(dtype).double(), x.double(), backend="eager", block=(16, 16))
    assert none == {} and matches == {name: 1} and refusals == {}
    assert_budget(fused[0], apart[0], truth[0], f"{way} {dtype}")


@pytest.mark.long
@pytest.mark.parametrize("kernel, dtype", [("csr", torch.float32), ("triton", torch.bfloat16)], ids=str)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_bias_of_its_own_and_gelu(
    kernel: str, dtype: torch.dtype, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under Inductor GELU is eight ops in float32, between two casts."""
    monkeypatch.setenv("TOPKAST_KERNEL", kernel)
    block, x = BLOCKS[kernel], activations(9, dtype)

    def net() -> nn.Module:
        return Net(lambda h, s: torch.nn.functional.gelu(h + s), bias=False).to(dtype)

    apart, _, _ = outcome("apart", net, x, block=block)
    fused, matches, _ = outcome("fused", net, x, backend=backend, block=block)
    truth, _, _ = outcome("apart", lambda: net().double(), x.double(), backend="eager", block=block)
    assert matches == {"bias": 1, "gelu": 1}
    assert_budget(fused[0], apart[0], truth[0], f"{kernel} {dtype} {backend}")


@pytest.mark.long
@pytest.mark.parametrize("kernel, dtype", [*(("triton", dtype) for dtype in DTYPES), ("csr", torch.bfloat16)], ids=str)
def test_relu_in_training_is_the_same_bit_for_bit(
    kernel: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding before it or after it is the same, and its backward reads its result."""
    monkeypatch.setenv("TOPKAST_KERNEL", kernel)
    x = activations(5, dtype)
    apart, _, _ = outcome("apart", lambda: Net(WAYS["relu"][0]).to(dtype), x, True, block=BLOCKS[kernel])
    fused, matches, refusals = outcome("fused", lambda: Net(WAYS["relu"][0]).to(dtype), x, True, block=BLOCKS[kernel])
    assert matches == {"relu": 1} and refusals == {}
    assert all(torch.equal(a, b) for a, b in zip(apart, fused, strict=True))


@pytest.mark.long
@pytest.mark.parametrize("way", ["gelu", "silu"])
def test_is_left_alone_where_the_backward_needs_the_product(way: str) -> None:
    act, name = WAYS[way]
    _, matches, refusals = outcome("fused", lambda: Net(act).bfloat16(), activations(5, torch.bfloat16), True,
                                   block=(16, 16))  # fmt: skip
    assert matches == {} and refusals == {f"what comes before {name} is read by other ops": 1}


@pytest.mark.long
@pytest.mark.parametrize("near", ["almost silu", "by column", "a matrix", "read twice"])
def test_near_misses_are_left_alone(near: str) -> None:
    act, bias = NEAR[near]
    x = activations(5, torch.bfloat16)
    apart, _, _ = outcome("apart", lambda: Net(act, bias).bfloat16(), x, block=(16, 16))
    fused, matches, _ = outcome("fused", lambda: Net(act, bias).bfloat16(), x, block=(16, 16))
    assert matches == {} and torch.equal(apart[0], fused[0])


@pytest.mark.parametrize("kernel", BLOCKS)
def test_is_measured_with_its_own_kernel_on_its_own_device(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = Geometry((32, 64), (0, 1), 1, BLOCKS[kernel])
    layouts = (((16, 64), (64, 1)),)
    problem = planner.Problem(
        "spmm", layouts, torch.bfloat16, geometry, geometry.units // 8, geometry.units // 4, 1, act="gelu"
    )
    devices, interleave = [], epilogues.interleave

    def noted(calls, seconds, device):
        devices.append(device)
        return interleave(calls, seconds, device)

    monkeypatch.setattr(epilogues, "interleave", noted)
    found = epilogues.measure(problem, kernel, 0.01)
    assert set(found) == {"fused", "apart"} and devices == [torch.device("cpu")]
    assert all(0 < seconds < 60 for seconds in found.values())
