"""Activations inside products in bfloat16, forward and backward: the same training, in every way of writing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import topkast
from topkast.passes.aten.fuse import fuse_activation
from topkast.runtime import native
from topkast.tests.passes.aten.test_fuse_epilogue import WAYS
from topkast.tests.support.pass_counts import pass_counts
from topkast.tests.support.truth.budget import assert_budget
from topkast.tests.support.truth.lockstep import sites_of

LIBRARY = native.library()
pytestmark = pytest.mark.skipif(
    LIBRARY is None or not LIBRARY.tk_bf16(), reason="the processor has no AVX512_BF16, or the kernels are not built"
)
SMOOTH = [way for way, (_, name) in WAYS.items() if name != "relu"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """These kernels for activations of any size, and passes that run though the graph may lie in a compile cache."""
    monkeypatch.setenv("TOPKAST_KERNEL", "bf16")
    monkeypatch.setattr(fuse_activation, "_LEAST", 1)
    with (
        torch._inductor.config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        yield


class Net(nn.Module):
    def __init__(self, act: Callable[[Tensor, Tensor], Tensor], dropout: float = 0.0) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(48, 64), nn.Linear(64, 32)
        self.act, self.dropout = act, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.dropout(self.act(self.into(x), x)))


def trained(net: Callable[[], nn.Module], kind: str, backend: str = "aot_eager") -> tuple[list[Tensor], nn.Module]:
    """Output and gradients of one step under autocast, and the model. ``kind`` is "fused", "apart" for graphs that the
    pass leaves as they are, or "exact" for float64."""
    with pytest.MonkeyPatch.context() as patch:
        if kind == "apart":
            patch.setattr(fuse_activation.FuseActivation, "rewrite", lambda self, graph: None)
        torch._dynamo.reset()
        torch.manual_seed(0)
        x = torch.randn(2, 35, 48, requires_grad=True)
        model = topkast.compile(net(), 0.6, 0.3, block=(4, 1), min_size=80, backend=backend, seed=0)
        if kind == "exact":
            model, x = model.double(), x.detach().double().requires_grad_()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=kind != "exact"):
            out = model(x)
        out.double().square().sum().backward()
        return [out.detach(), x.grad, *(p.grad for p in model.parameters() if p.grad is not None)], model


@pytest.mark.parametrize("way", SMOOTH)
def test_every_way_of_writing_an_activation(way: str) -> None:
    act, name = WAYS[way]
    (fused, model), (apart, _), (exact, _) = (trained(lambda: Net(act), kind) for kind in ("fused", "apart", "exact"))
    assert pass_counts(model, "FuseActivation")[0] == {name: 1, f"gradient of {name}": 1}
    for site in sites_of(model).values():
        assert {(what, kernel) for what, kernel, _ in site.ran} == {
            (what, "bf16") for what in ("forward", "input gradient", "weight gradient")
        }
    for number, (ours, plain, truth) in enumerate(zip(fused, apart, exact, strict=True)):
        assert_budget(ours, plain, truth, f"{way} {number}")


def test_under_inductor() -> None:
    act, name = WAYS["gelu"]
    (fused, model), (apart, _), (exact, _) = (
        trained(lambda: Net(act), kind, backend) for kind, backend in
        (("fused", "inductor"), ("apart", "aot_eager"), ("exact", "aot_eager"))
    )  # fmt: skip
    assert pass_counts(model, "FuseActivation")[0] == {name: 1, f"gradient of {name}": 1}
    for number, (ours, plain, truth) in enumerate(zip(fused, apart, exact, strict=True)):
        assert_budget(ours, plain, truth, str(number))


def test_ops_between_the_gradient_and_the_product() -> None:
    """With dropout in between, the gradient is an operator of its own; it is the same to the rounding."""
    net = lambda: Net(WAYS["gelu"][0], dropout=0.5)  # noqa: E731
    (fused, model), (apart, _) = (trained(net, kind) for kind in ("fused", "apart"))
    assert pass_counts(model, "FuseActivation")[0] == {"gelu": 1, "gradient of gelu": 1}
    for ours, plain in zip(fused, apart, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0.05, atol=0.05 * plain.abs().max().item())


def test_another_function_stays() -> None:
    _, model = trained(lambda: Net(lambda h, x: torch.sin(h)), "fused")
    assert pass_counts(model, "FuseActivation") == ({}, {})
