"""Inductor's code calls the native products itself where it can; elsewhere it calls the operators. The numbers, the
counts and what a method sees are the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

import topkast
from topkast.passes.aten import lower_products
from topkast.runtime.state.model import sites
from topkast.tests.runtime.native.test_native import LIBRARY
from topkast.tests.support.truth.lockstep import adamw

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the native kernels are not built")


@pytest.fixture(autouse=True)
def natively(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Native kernels, and code that is generated though it may lie in a cache: it is read."""
    monkeypatch.setenv("TOPKAST_KERNEL", "native")
    caches = torch._inductor.config.patch(fx_graph_cache=False)
    with caches, torch._functorch.config.patch(enable_autograd_cache=False):
        yield


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 64), nn.Tanh(), nn.Linear(64, 5))


def step(model: nn.Module, x: Tensor) -> Tensor:
    model.zero_grad()
    y = model(x)
    y.float().square().mean().backward()
    return y.detach()


def compiled(backend: str, **options: Any) -> nn.Module:
    given = {"fwd": 0.7, "bwd": None if "method" in options else 0.5, "min_size": 1, "exclude": "4.*", **options}
    return topkast.compile(net(), backend=backend, seed=0, **given)


def code_of(run: Callable[[], Any]) -> str:
    return "\n".join(run_and_get_code(run)[1])


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def test_no_operator_is_called() -> None:
    ours, plain, x = compiled("inductor"), compiled("aot_eager"), torch.randn(70, 48)
    code = code_of(lambda: step(ours, x))
    for product, count in {"spmm": 2, "spmm_t": 1, "sddmm": 2}.items():
        assert code.count(f"extern_kernels.topkast_{product}(") == count, product
        assert f"torch.ops.topkast.{product}." not in code
    assert step(ours, x).allclose(step(plain, x), atol=1e-6)
    pairs = list(zip(gradients(ours), gradients(plain), strict=True))
    assert len(pairs) == 6 and all(a.allclose(b, atol=1e-6) for a, b in pairs)


def test_the_report_counts_calls() -> None:
    x = torch.randn(70, 48)
    counts = []
    for backend in ("inductor", "aot_eager"):
        model = compiled(backend)
        for _ in range(3):
            step(model, x)
        counts.append([dict(site.ran) for site in sites(model).values()])
    assert counts[0] == counts[1] and counts[0][0]["forward", "native", ""] == 3


@pytest.mark.long
def test_inductors_own_kernels_are_those_beside_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """An activation that two products read lies in memory once."""
    kernels: list[list[str]] = []
    for called in (lower_products._called, lambda *_: None):
        monkeypatch.setattr(lower_products, "_called", called)
        model = compiled("inductor")
        code = code_of(lambda model=model: step(model, torch.randn(70, 48)))
        assert ("extern_kernels.topkast_" in code) is not bool(kernels)
        kernels.append(re.findall(r"cpp_pybinding\(.*?'''\)", code, re.DOTALL))
    assert kernels[0] == kernels[1] and kernels[0]


@pytest.mark.long
def test_a_method_that_grows_by_the_gradient_sees_it() -> None:
    x, seen = torch.randn(70, 48), []
    for backend in ("inductor", "aot_eager"):
        model = compiled(backend, method="rigl", refresh_every=2)
        optimizer = adamw(list(model.parameters()))
        for _ in range(3):
            step(model, x)
            optimizer.step()
        seen.append(topkast.masks(model))
    for name, (a, b) in seen[0].items():
        assert torch.equal(a, seen[1][name][0]) and torch.equal(b, seen[1][name][1])


@pytest.mark.long
def test_sizes_that_change_stay_operators() -> None:
    model = compiled("inductor", dynamic=True)
    code = code_of(lambda: step(model, torch.randn(70, 48)))
    assert "torch.ops.topkast.spmm.default(" in code and "extern_kernels.topkast_spmm(" not in code
    plain = compiled("aot_eager")
    for m in (70, 33):
        assert step(model, x := torch.randn(m, 48)).allclose(step(plain, x), atol=1e-6)


@pytest.mark.long
def test_half_precision_stays_with_operators() -> None:
    model = compiled("inductor").bfloat16()
    code = code_of(lambda: step(model, torch.randn(70, 48, dtype=torch.bfloat16)))
    assert "torch.ops.topkast.sddmm.default(" in code and "extern_kernels.topkast_" not in code


def test_an_index_is_checked_in_compiled_code() -> None:
    model, x = compiled("inductor"), torch.randn(70, 48)
    step(model, x)
    site = next(iter(sites(model).values()))
    site.row_ptr.data[-1] += 1  # a write that leaves no trace in the tensor's version
    with pytest.raises(topkast.OperandError, match="row_ptr: it ends after the slots"):
        step(model, x)
