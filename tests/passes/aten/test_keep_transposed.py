"""Activations between native products lie as tiles: the same numbers, fewer conversions; what must stay rows does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import topkast
from topkast.passes.aten.finish.keep_transposed import KeepTransposed
from topkast.runtime.layout import Geometry
from topkast.runtime.native import products
from topkast.runtime.planner import plan as planner
from topkast.runtime.planner import tiles
from topkast.runtime.reference import products as ref
from topkast.tests.runtime.native.test_native import AVAILABLE, LIBRARY, isa  # noqa: F401
from topkast.tests.support.pass_counts import pass_counts
from topkast.tests.support.truth.budget import assert_budget
from topkast.tests.support.truth.product_layouts import BLOCKS, sets

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


@pytest.mark.parametrize("block", BLOCKS)
def test_products_on_tiles_equal_those_on_rows_bit_for_bit(isa: str, block: tuple[int, int]) -> None:  # noqa: F811
    geometry = Geometry((block[0] * 5, block[1] * 67), (0, 1), 1, block)
    index = sets(geometry, 0.2, 0.5)
    width = products.width(geometry)
    for m in (width, 9 * width):
        values, bias = torch.randn(index.cols.numel() * geometry.unit), torch.randn(geometry.rows)
        x, dy = torch.randn(m, geometry.cols), torch.randn(m, geometry.rows)
        px, pdy = products.pack(x, width), products.pack(dy, width)
        assert torch.equal(px, ref.pack(x, width)) and torch.equal(products.unpack(px), x)
        assert torch.equal(products.pack(x.mT.contiguous().mT, width), px)
        y = products.spmm(x, values, index, geometry, bias)
        dx = products.spmm_t(dy, values, index, geometry)
        dw = products.sddmm(dy, x, index, geometry)
        for taken, given_ in ((0, width), (width, 0), (width, width)):
            found = products.spmm(px if taken else x, values, index, geometry, bias, (taken, given_))
            assert torch.equal(ref.unpack(found) if given_ else found, y)
            found = products.spmm_t(pdy if taken else dy, values, index, geometry, (taken, given_))
            assert torch.equal(ref.unpack(found) if given_ else found, dx)
            found = products.sddmm(pdy if taken else dy, px if given_ else x, index, geometry, (taken, given_))
            assert torch.equal(found, dw)


@pytest.mark.parametrize(
    "dtype, width", [(torch.float32, 5), (torch.float64, 16), (torch.bool, 16), (torch.float32, 48)]
)
def test_any_tensor_can_be_packed(dtype: torch.dtype, width: int) -> None:
    x = torch.randn(3 * width, 7).to(dtype)
    found = torch.ops.topkast.pack(x, width)
    assert torch.equal(found, ref.pack(x, width)) and torch.equal(torch.ops.topkast.unpack(found), x)


def test_tiles_of_another_instruction_set_are_refused() -> None:
    geometry = Geometry((96, 64), (0, 1), 1, (16, 1))
    index, width = sets(geometry, 0.2, 0.5), products.width(geometry)
    values, tiles_ = torch.randn(index.cols.numel() * 16), torch.randn(2, 64, 2 * width)
    with pytest.raises(topkast.ConfigError, match=f"tiles of {2 * width} rows: the kernels in use take {width}"):
        products.spmm(tiles_, values, index, geometry, None, (2 * width, 0))


def stay_rows(patch: pytest.MonkeyPatch, layout: str) -> None:
    """For "rows" the pass does nothing."""
    if layout == "rows":
        patch.setattr(KeepTransposed, "rewrite", lambda self, graph: None)


class Chain(nn.Module):
    """Two layers without a bias, whose gradients do not depend on an order of sums, and what is done between them."""

    def __init__(self, between: Callable[..., Tensor], bias: bool = False) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(48, 64, bias), nn.Linear(64, 32, bias)
        self.scale = nn.Parameter(torch.rand(64), requires_grad=False)
        self.between = between

    def forward(self, x: Tensor, *more: Tensor) -> Any:
        return self.out(self.between(self.into(x), self.scale, *more))


def kept(model: nn.Module) -> tuple[int, dict[str, int]]:
    """Conversions saved, and refusals, in what was compiled of a model."""
    matches, refusals = pass_counts(model, "KeepTransposed")
    return matches.get("conversions saved", 0), refusals


def outcome(
    layout: str, build: Callable[[], nn.Module], inputs: tuple[Tensor, ...], backend: str = "aot_eager", **options: Any
) -> tuple[list[Tensor], int, dict[str, int]]:
    """Output and all gradients of a converted model; conversions saved; refusals."""
    with pytest.MonkeyPatch.context() as patch:
        stay_rows(patch, layout)
        torch._dynamo.reset()
        torch.manual_seed(0)
        options = {"block": (16, 1), "min_size": 20, "seed": 0, "exploration_decay": 0.0} | options
        model = topkast.compile(build(), 0.6, 0.3, backend=backend, **options)
        leaf = inputs[0].clone().requires_grad_()
        out = model(leaf, *inputs[1:])
        out.square().sum().backward()
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        return [out.detach(), leaf.grad, *grads], *kept(model)


def same(build: Callable[[], nn.Module], inputs: tuple[Tensor, ...], saved: int, backend: str = "aot_eager") -> None:
    rows, none, _ = outcome("rows", build, inputs, backend)
    tiled, count, _ = outcome("tiles", build, inputs, backend)
    assert none == 0 and count == saved
    for a, b in zip(rows, tiled, strict=True):
        assert torch.equal(a, b)


BETWEEN: dict[str, Callable[..., Tensor]] = {
    "relu": lambda h, s: F.relu(h),
    "gelu": lambda h, s: F.gelu(h),
    "gelu tanh": lambda h, s: F.gelu(h, approximate="tanh"),
    "scaled by column": lambda h, s: torch.tanh(h * s + 1) / 3,
    "view": lambda h, s: F.silu(h.view(2, -1, 64)).view(h.shape),
    "nothing": lambda h, s: h,
}


@pytest.mark.long
# Between two layers: result and operand of the forward, the same of the gradient, and either dW's operand.
@pytest.mark.parametrize("between", BETWEEN)
def test_elementwise_ops_need_no_conversion(between: str) -> None:
    same(lambda: Chain(BETWEEN[between]), (torch.randn(2, 64, 48),), 6)


@pytest.mark.long
@pytest.mark.parametrize("between", ["gelu", "relu"])
def test_under_inductor(between: str) -> None:
    same(lambda: Chain(BETWEEN[between]), (torch.randn(2, 64, 48),), 6, "inductor")


def test_a_residual_that_comes_as_rows_is_packed_once() -> None:
    same(lambda: Chain(lambda h, s, r: F.gelu(h) + r), (torch.randn(128, 48), torch.randn(128, 64)), 5)


def test_a_value_that_is_read_as_rows_too_is_unpacked_once() -> None:
    def between(h: Tensor, s: Tensor) -> Tensor:
        return F.gelu(h) * (1 + 0 * h.std())

    same(lambda: Chain(between), (torch.randn(128, 48),), 4)


def test_gradients_of_biases_keep_the_budget() -> None:
    x = torch.randn(128, 48)
    build = lambda: Chain(BETWEEN["gelu"], bias=True)  # noqa: E731
    rows, _, _ = outcome("rows", build, (x,))
    tiled, count, _ = outcome("tiles", build, (x,))
    truth, _, _ = outcome("rows", lambda: build().double(), (x.double(),), "eager")
    assert count == 6
    for ours, plain, exact in zip(tiled, rows, truth, strict=True):
        assert_budget(ours, plain, exact, "bias")


@pytest.mark.long
@pytest.mark.parametrize(
    "between, m, options, why",
    [
        (lambda h, s: F.layer_norm(h, (64,)), 128, {}, None),
        (lambda h, s: torch.softmax(h, -1), 128, {}, None),
        (lambda h, s: F.relu(h).flip(0), 128, {}, None),
        (lambda h, s: F.relu(h) * h[:, :1], 128, {}, None),
        (lambda h, s: F.relu(h), 127, {}, "no multiple of"),
        (lambda h, s: F.relu(h), 128, {"dynamic": True}, "symbolic size"),
        (lambda h, s: F.relu(h), 128, {"block": (48, 1)}, "hang over"),
    ],
)
def test_near_misses_stay_rows(between: Any, m: int, options: dict[str, Any], why: str | None) -> None:
    x = torch.randn(m, 48)
    rows, _, _ = outcome("rows", lambda: Chain(between), (x,), **options)
    tiled, count, refusals = outcome("tiles", lambda: Chain(between), (x,), **options)
    assert count == 0
    assert len(refusals) == (why is not None) and all(why in reason for reason in refusals), refusals
    for a, b in zip(rows, tiled, strict=True):
        assert torch.equal(a, b)


def test_other_dtypes_are_refused() -> None:
    model = topkast.compile(Chain(BETWEEN["relu"]), 0.6, 0.3, backend="aot_eager", min_size=20)
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(128, 48)).float().sum().backward()
    assert kept(model) == (0, {"its activations are torch.bfloat16": 5})


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_dropout_has_one_mask_in_forward_and_backward(backend: str) -> None:
    model = topkast.compile(
        Chain(lambda h, s: F.dropout(h, 0.4)), 0.6, 0.3, backend=backend, min_size=20, block=(16, 1)
    )
    x, g = torch.randn(128, 48, requires_grad=True), torch.randn(128, 32)
    out = model(x)
    out.backward(g)
    assert kept(model) == (6, {})
    first = out.detach()
    # Given the mask the model is linear, so <y, g> = <x, dx>; with another mask in the backward it is far from that.
    plain = (first * g).sum().double(), (x * x.grad).sum().double()
    torch.testing.assert_close(*plain, rtol=0, atol=1e-5 * float((first * g).abs().sum()))
    assert not torch.equal(model(x), first)


def test_what_is_saved_for_backward_does_not_grow() -> None:
    sizes = {}
    for layout in ("rows", "tiles"):
        seen: dict[int, int] = {}

        def note(tensor: Tensor, seen: dict[int, int] = seen) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            outcome(layout, lambda: Chain(BETWEEN["gelu"]), (torch.randn(128, 48),))
        sizes[layout] = sum(seen.values())
    assert sizes["tiles"] <= sizes["rows"]


class Deep(nn.Module):
    """A weight used twice, a checkpointed region."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(64, 64, bias=False) for _ in range(3))
        self.c.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.c(F.gelu(self.a(x))))
        return checkpoint(lambda h: self.b(F.relu(self.b(h))), h, use_reentrant=False)


def test_training_is_the_same() -> None:
    """Ties, checkpoints, two forwards before the backwards, evaluation in between, and refreshes."""
    found = {}
    for layout in ("rows", "tiles"):
        with pytest.MonkeyPatch.context() as patch:
            stay_rows(patch, layout)
            torch._dynamo.reset()
            torch.manual_seed(0)
            model = topkast.compile(Deep(), 0.6, 0.3, block=(4, 1), backend="aot_eager", min_size=20, refresh_every=2)
            optimizer = torch.optim.SGD(model.parameters(), 0.05)
            outs = []
            for _ in range(5):
                optimizer.zero_grad()
                first, second = model(torch.randn(64, 64)), model(torch.randn(64, 64))
                (first.square().mean() + second.square().mean()).backward()
                optimizer.step()
                with torch.no_grad():
                    outs.append(model(torch.randn(64, 64)))
            found[layout] = [*outs, *topkast.dense_state_dict(model, "all").values()]
            assert (kept(model)[0] > 0) == (layout == "tiles")
    for a, b in zip(found["rows"], found["tiles"], strict=True):
        assert torch.equal(a, b)


UNARY: list[Callable[[Tensor], Tensor]] = [
    F.relu,
    F.gelu,
    torch.tanh,
    lambda h: 2 * h - 1,
    lambda h: h.view(2, -1, h.shape[-1]).view(h.shape),
]


@pytest.mark.long
@settings(deadline=None, max_examples=8, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=6), st.integers(1, 3))
def test_fuzz_any_elementwise_graph(steps: list[tuple[int, int]], layers: int) -> None:
    """Each step applies an op and adds an earlier value, a column, the input, or nothing; then goes through a layer."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(layers))
            self.column = nn.Parameter(torch.randn(32), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            h, seen = self.layers[0](x), [x]
            for i, (op, more) in enumerate(steps):
                h = UNARY[op](h)
                h = h * self.column if more == 6 else h + seen[more] if more < len(seen) else h
                seen.append(h)
                h = self.layers[i % layers](h)
            return h

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOPKAST_KERNEL", "native")
        torch.manual_seed(1)
        x = torch.randn(64, 32)
        rows, _, _ = outcome("rows", Net, (x,))
        tiled, _, _ = outcome("tiles", Net, (x,))
    for a, b in zip(rows, tiled, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("faster", ["rows", "tiles"])
def test_is_measured_and_taken_only_where_faster(faster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPKAST_CACHE", str(tmp_path))
    monkeypatch.setenv("TOPKAST_KERNEL", "measure")
    monkeypatch.setattr(planner, "measure", lambda problem, names: {"native": 1.0, "dense": 2.0})
    monkeypatch.setattr(tiles, "measure", lambda problem: {"rows": 2.0, "tiles": 2.0, faster: 1.0})
    torch.manual_seed(0)
    model = topkast.compile(Chain(BETWEEN["gelu"]), 0.6, 0.3, block=(16, 1), backend="aot_eager", min_size=20)
    model(torch.randn(128, 48)).sum().backward()
    expected = (5, {}) if faster == "tiles" else (0, {"rows are faster there": 1})
    assert kept(model) == expected
    rows = [entry for row in topkast.report(model).sites for entry in row["measured"] if "tiles" in entry["product"]]
    assert rows and all(entry["chosen"] == faster for entry in rows)
    assert re.search(rf"spmm on tiles of 128×\d+: {faster} is faster here", str(topkast.report(model).details()))


def test_measures_both_and_what_a_conversion_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPKAST_CACHE", str(tmp_path))
    geometry = Geometry((96, 64), (0, 1), 1, (4, 1))
    width = products.width(geometry)
    x, dy = ((2 * width, 64), (64, 1)), ((2 * width, 96), (96, 1))
    for product, operands in (("spmm", (x,)), ("spmm_t", (dy,)), ("sddmm", (dy, x))):
        problem = planner.Problem(product, operands, torch.float32, geometry, 150, 300, 1, widths=(width, width))
        found = tiles.measure(problem, 0.01)
        assert set(found) == {"rows", "tiles"} and all(0 < seconds < 1 for seconds in found.values())
    assert 0 < tiles._conversion(2 * width, 64, width) < 1


@pytest.mark.parametrize("setting", ["native", "first", "dense"])
def test_is_taken_unmeasured_if_nothing_is_measured(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPKAST_KERNEL", setting)
    monkeypatch.setattr(tiles, "measure", lambda problem: pytest.fail("measured"))
    problem = planner.Problem(
        "spmm", (((32, 64), (64, 1)),), torch.float32, Geometry((96, 64), (0, 1), 1, (4, 1)), 1, 2, 1
    )
    assert tiles.pay([problem], [(32, 64, 16)])
