"""Bias and activation inside the native product: the same function, where nothing else reads what lies between."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import topkast
from topkast.passes.aten.fuse.fuse_epilogue import FuseEpilogue
from topkast.runtime.layout import Geometry, build_index
from topkast.runtime.native import products
from topkast.runtime.planner import epilogues
from topkast.runtime.planner import plan as planner
from topkast.runtime.reference.products import activation
from topkast.tests.passes.aten.test_keep_transposed import stay_rows
from topkast.tests.runtime.native.test_native import LIBRARY, isa  # noqa: F401
from topkast.tests.support.pass_counts import pass_counts
from topkast.tests.support.truth.budget import assert_budget
from topkast.tests.support.truth.product_layouts import BLOCKS, sets, within

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the native kernels are not built")


@pytest.fixture(autouse=True)
def natively(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Native kernels, and passes that run though the graph may lie in a compile cache: they are counted."""
    monkeypatch.setenv("TOPKAST_KERNEL", "native")
    with (
        torch._inductor.config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        yield


@pytest.mark.parametrize("act", products.ACTIVATIONS[1:])
@pytest.mark.parametrize("block", BLOCKS)
def test_keeps_the_budget(isa: str, block: tuple[int, int], act: str) -> None:  # noqa: F811
    geometry = Geometry((131, 53), (0, 1), 1, block)
    index = sets(geometry, 0.2, 0.5)
    for m, size in ((1, 1.0), (77, 30.0), (130, 1e-3)):
        values, bias = torch.randn(index.cols.numel() * geometry.unit), torch.randn(geometry.rows)
        x = size * torch.randn(m, geometry.cols)
        before = products.spmm(x, values, index, geometry, bias)
        found = products.spmm(x, values, index, geometry, bias, act=act)
        # The products have their own test: here the function alone is compared, at the same points.
        within(found, [activation(act, before)], activation(act, before.double()), f"{act} {block} m={m}")


def test_one_bias_for_all_columns_comes_before_the_activation() -> None:
    """The kernels add a bias of one number after the product: an activation must not come in between."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(24, 12)), nn.Parameter(torch.tensor([-2.0]))

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(torch.addmm(self.b, x, self.w.t()))

    x, found = torch.randn(7, 12), []
    for backend in ("eager", "aot_eager"):
        torch.manual_seed(0)
        model = topkast.compile(One(), 0.5, 0.25, backend=backend, min_size=1, include="w")
        with torch.no_grad():
            found.append(model(x))
            theta, bias = topkast.dense_state_dict(model, "forward")["w"].double(), model.b.double()
    truth = torch.relu(bias + x.double() @ theta.t())
    assert_budget(found[1], found[0], truth, "a bias of one number")


@pytest.mark.parametrize("act", products.ACTIVATIONS[1:])
def test_where_functions_are_difficult(isa: str, act: str) -> None:  # noqa: F811
    """Far out, near zero, and not a number: a diagonal weight passes its input on."""
    points = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30, 88.0, -88.0, 104.0, -104.0, math.inf, math.nan])
    geometry = Geometry((12, 12), (0, 1), 1, (1, 1))
    diagonal = torch.eye(12, dtype=torch.bool)
    index = build_index(diagonal, diagonal, 12)
    x = torch.where(diagonal, points, 0.0)
    found = products.spmm(x, torch.ones(12), index, geometry, None, act=act).diagonal()
    expected = activation(act, points.double()).float()
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-6, atol=1e-30)


class Net(nn.Module):
    def __init__(self, act: Callable[..., Any], bias: bool = True) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(48, 64, bias), nn.Linear(64, 32, False)
        self.shift = nn.Parameter(torch.randn(64))
        self.act = act

    def forward(self, x: Tensor) -> Any:
        return self.out(self.act(self.into(x), self.shift))


def outcome(
    way: str,
    net: Callable[[], nn.Module],
    x: Tensor,
    grad: bool = False,
    backend: str = "aot_eager",
    block: tuple[int, int] = (16, 1),
) -> tuple[list[Tensor], dict[str, int], dict[str, int]]:
    """Output and gradients; what was fused, what was refused. For "apart" the pass does nothing."""
    with pytest.MonkeyPatch.context() as patch:
        if way == "apart":
            patch.setattr(FuseEpilogue, "rewrite", lambda self, graph: None)
        torch._dynamo.reset()
        torch.manual_seed(0)
        # Not by rows: it does not matter here, and Triton's interpreter would run each row's programs after the other.
        model = topkast.compile(net(), 0.6, 0.3, block=block, balanced=False, min_size=80, backend=backend, seed=0)
        with torch.set_grad_enabled(grad):
            out = model(x)
        if grad:
            out.square().sum().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        return [out.detach(), *grads], *pass_counts(model, "FuseEpilogue")


def gelu_by_hand(h: Tensor, s: Tensor) -> Tensor:
    return 0.5 * h * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (h + 0.044715 * torch.pow(h, 3.0))))


WAYS: dict[str, tuple[Callable[..., Tensor], str]] = {
    "relu": (lambda h, s: F.relu(h), "relu"),
    "clamp": (lambda h, s: h.clamp(min=0), "relu"),
    "gelu": (lambda h, s: F.gelu(h), "gelu"),
    "gelu with erf": (lambda h, s: h * (1 + torch.erf(h / math.sqrt(2))) / 2, "gelu"),
    "gelu tanh": (lambda h, s: F.gelu(h, approximate="tanh"), "gelu_tanh"),
    "gelu of transformers": (gelu_by_hand, "gelu_tanh"),
    "silu": (lambda h, s: F.silu(h), "silu"),
    "swish": (lambda h, s: torch.sigmoid(h) * h, "silu"),
    "through a view": (lambda h, s: F.relu(h.view(-1, 64)).view(h.shape), "relu"),
}


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_writing_an_activation(way: str) -> None:
    act, name = WAYS[way]
    x = torch.randn(2, 65, 48)
    apart, none, _ = outcome("apart", lambda: Net(act), x)
    fused, matches, refusals = outcome("fused", lambda: Net(act), x)
    truth, _, _ = outcome("apart", lambda: Net(act).double(), x.double(), backend="eager")
    assert none == {} and matches == {name: 1} and refusals == {}
    assert_budget(fused[0], apart[0], truth[0], way)


@pytest.mark.parametrize("way", ["relu", "gelu", "silu", "gelu tanh"])
def test_under_inductor(way: str) -> None:
    act, name = WAYS[way]
    fused, matches, _ = outcome("fused", lambda: Net(act), x := torch.randn(2, 65, 48), backend="inductor")
    apart, _, _ = outcome("apart", lambda: Net(act), x)
    truth, _, _ = outcome("apart", lambda: Net(act).double(), x.double(), backend="eager")
    assert matches == {name: 1}
    assert_budget(fused[0], apart[0], truth[0], way)


@pytest.mark.parametrize("layout", ["rows", "tiles"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_relu_is_fused_in_training(backend: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stay_rows(monkeypatch, layout)
    net = lambda: Net(WAYS["relu"][0], bias=False)  # noqa: E731
    apart, _, _ = outcome("apart", net, x := torch.randn(128, 48), True, backend)
    fused, matches, refusals = outcome("fused", net, x, True, backend)
    assert matches == {"relu": 1} and refusals == {}
    for a, b in zip(apart, fused, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("way", ["gelu", "silu", "gelu tanh", "gelu of transformers"])
def test_is_left_alone_where_the_backward_needs_the_product(way: str) -> None:
    act, name = WAYS[way]
    apart, _, _ = outcome("apart", lambda: Net(act), x := torch.randn(128, 48), True)
    fused, matches, refusals = outcome("fused", lambda: Net(act), x, True)
    assert matches == {} and refusals == {f"what comes before {name} is read by other ops": 1}
    for a, b in zip(apart, fused, strict=True):
        assert torch.equal(a, b)


def test_a_bias_of_its_own_is_taken() -> None:
    x = torch.randn(2, 65, 48)
    net = lambda: Net(lambda h, s: F.silu(h + s), bias=False)  # noqa: E731
    apart, _, _ = outcome("apart", net, x)
    fused, matches, _ = outcome("fused", net, x)
    truth, _, _ = outcome("apart", lambda: net().double(), x.double(), backend="eager")
    assert matches == {"bias": 1, "silu": 1}
    assert_budget(fused[0], apart[0], truth[0], "bias")
    _, matches, _ = outcome("fused", net, x, True)
    assert matches == {"bias": 1}


def test_a_product_of_three_dimensions_may_have_a_result_of_two() -> None:
    """One matrix for the whole batch: the product is [1, 5, outputs], the sum with the bias [5, outputs]."""

    class Expanded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(24, 16)), nn.Parameter(torch.randn(24))

        def forward(self, x: Tensor) -> Tensor:
            stack = self.w.t().unsqueeze(0).expand(x.shape[0], -1, -1)
            return torch.bmm(x[:, None], stack).reshape(x.shape[0], -1) + self.b

    x = torch.randn(5, 16)
    model = topkast.compile(Expanded(), backend="aot_eager", min_size=1, example_inputs=(x,))
    found, (counts, _) = model(x), pass_counts(model, "FuseEpilogue")
    assert counts == {"bias": 1}
    assert found.shape == (5, 24)
    torch.testing.assert_close(found, topkast.densify(model)(x))


NEAR: dict[str, tuple[Callable[..., Tensor], bool]] = {
    "relu6": (lambda h, s: F.relu6(h), True),
    "elu": (lambda h, s: F.elu(h), True),
    "leaky": (lambda h, s: F.leaky_relu(h, 1e-3), True),
    "a far limit": (lambda h, s: h.clamp(0, 1e5), True),
    "almost silu": (lambda h, s: h * torch.sigmoid(1.0001 * h), True),
    "by column": (lambda h, s: F.relu(h * s), True),
    "in double": (lambda h, s: F.silu(h.double()).float(), True),
    "bias times two": (lambda h, s: torch.add(h, s, alpha=2), False),
    "a matrix": (lambda h, s: h + s.expand(h.shape).contiguous(), False),
    "a second bias": (lambda h, s: h + s, True),
    "read twice": (lambda h, s: (h + s) * h, False),
}


@pytest.mark.parametrize("near", NEAR)
def test_near_misses_are_left_alone(near: str) -> None:
    act, bias = NEAR[near]
    apart, _, _ = outcome("apart", lambda: Net(act, bias), x := torch.randn(65, 48))
    fused, matches, _ = outcome("fused", lambda: Net(act, bias), x)
    assert matches == {}
    assert torch.equal(apart[0], fused[0])


def test_what_the_caller_sees_too_is_left_alone() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(48, 64)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return (h := self.layer(x)), F.relu(h)

    model = topkast.compile(Both(), 0.6, 0.3, min_size=80, backend="aot_eager")
    with torch.no_grad():
        h, y = model(torch.randn(65, 48))
    assert torch.equal(y, F.relu(h))
    assert pass_counts(model, "FuseEpilogue") == ({}, {"what comes before relu is read by other ops": 1})


@pytest.mark.parametrize("faster", ["fused", "apart"])
def test_is_measured(faster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPKAST_CACHE", str(tmp_path))
    monkeypatch.setenv("TOPKAST_KERNEL", "measure")
    stay_rows(monkeypatch, "rows")
    monkeypatch.setattr(planner, "measure", lambda problem, names: {"native": 1.0, "dense": 2.0})
    monkeypatch.setattr(epilogues, "measure", lambda problem, kernel: {"fused": 2.0, "apart": 2.0, faster: 1.0})
    _, matches, refusals = outcome("fused", lambda: Net(WAYS["relu"][0]), torch.randn(65, 48))
    expected = ({"relu": 1}, {}) if faster == "fused" else ({}, {"relu after the product is faster": 1})
    assert (matches, refusals) == expected


def test_measures_both() -> None:
    geometry = Geometry((96, 64), (0, 1), 1, (4, 1))
    problem = planner.Problem("spmm", (((16, 64), (64, 1)),), torch.float32, geometry, 150, 300, 1, act="gelu")
    found = epilogues.measure(problem, "native", 0.01)
    assert set(found) == {"fused", "apart"} and all(0 < seconds < 1 for seconds in found.values())


@pytest.mark.parametrize("setting", ["native", "first", "dense"])
def test_is_fused_unmeasured_if_nothing_is_measured(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPKAST_KERNEL", setting)
    monkeypatch.setattr(epilogues, "measure", lambda problem, kernel: pytest.fail("measured"))
    geometry = Geometry((96, 64), (0, 1), 1, (4, 1))
    problem = planner.Problem("spmm", (((16, 64), (64, 1)),), torch.float32, geometry, 150, 300, 1, act="gelu")
    assert epilogues.pays(problem, "native")
