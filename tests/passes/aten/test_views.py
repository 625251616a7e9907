"""A weight that is a view of a parameter, and operands in strides of 0, in every product and by every kernel."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, reject, settings

import topkast
from topkast.runtime import native
from topkast.tests.support.models.views import Move, View, check
from topkast.tests.support.truth.builders import Case
from topkast.tests.support.truth.lockstep import Trio, adamw, plain

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native kernels are not built")
TAP: tuple[Move, ...] = (("unsqueeze", 2),)
ALL, NONE = {"forward", "input gradient", "weight gradient"}, set[str]()
MIXED = "mixed before the convolution"

# name: how the module is made, the shape of its input, which products are sparse
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...], set[str]]] = {
    "another matrix": (dict(shape=(24, 8, 2), moves=(("reshape", 16, 8, 3),), use="conv1"), (5, 8, 11), NONE),
    "a tap more": (dict(shape=(24, 20), moves=TAP, use="conv1", x_moves=TAP), (7, 20), ALL),
    "two taps more": (dict(shape=(24, 20), moves=TAP * 2, use="conv2"), (3, 20, 4, 5), ALL),
    "taps cut": (dict(shape=(16, 6, 9), moves=(("view", 16, 6, 3, 3),), use="conv2", padding=1), (3, 6, 5, 4), ALL),
    "columns cut": (dict(shape=(16, 64), moves=(("view", 16, 8, 2, 2, 2),), use="conv3"), (2, 8, 3, 4, 3), ALL),
    "rows merged": (dict(shape=(4, 6, 8, 3), moves=(("flatten", 0, 1),), use="conv1", stride=2), (3, 8, 9), ALL),
    "swapped": (dict(shape=(8, 20, 3), moves=(("transpose", 0, 1),), use="conv1"), (17, 8, 9), ALL),
    "channels last": (dict(shape=(16, 3, 3, 6), moves=(("permute", 0, 3, 1, 2),), use="conv2"), (2, 6, 5, 5), NONE),
    "groups": (dict(shape=(2, 8, 18), moves=(("reshape", 16, 6, 3),), use="conv1", groups=2), (3, 12, 9), ALL),
    "transposed": (dict(shape=(16, 8, 3), moves=(("transpose", 0, 1),), use="transposed1"), (3, 8, 9), ALL),
    "transposed, a tap more": (dict(shape=(24, 20), moves=TAP, use="transposed1", x_moves=TAP), (7, 24), ALL),
    "transposed, mixed": (dict(shape=(24, 16), moves=(("view", 8, 24, 2),), use="transposed1"), (3, 8, 5), NONE),
    "half": (dict(shape=(64, 20), moves=(("part",), *TAP), use="conv1", x_moves=TAP), (7, 20), ALL),
    "repeated": (dict(shape=(24, 18, 1), moves=(("expand", 24, 18, 3),), use="conv1"), (3, 18, 9), NONE),
    "mixed": (dict(shape=(16, 20, 6), moves=(("permute", 1, 2, 0), ("reshape", 20, 16, 6)), use="conv1"),
              (3, 16, 9), NONE),
}  # fmt: skip

BLOCKED = ("another matrix", "a tap more", "groups", "transposed", "half", "mixed")  # also tried in blocks


def build(name: str) -> tuple[View, torch.Tensor]:
    made, shape, _ = CASES[name]
    torch.manual_seed(0)
    return View(**made), torch.randn(shape)


@pytest.mark.long
@pytest.mark.parametrize(
    "name, block",
    [*((name, (1, 1)) for name in CASES), *((name, b) for name in BLOCKED for b in ((4, 1), (16, 1), (16, 16)))],
    ids=str,
)
def test_by_the_native_kernels(name: str, block: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPKAST_KERNEL", "native")
    row = check(*build(name), block, f"{name} {block}")
    expected = CASES[name][2]
    assert set(row["fused"]) == expected
    assert {kernel for ran in row["fused"].values() for kernel in ran} <= {"native", "dense"}
    if block == (1, 1):
        assert all(list(ran) == ["native"] for ran in row["fused"].values())
    if expected == NONE and name != "repeated":
        assert any(MIXED in entry["why"] for entry in row["unfused"])


@pytest.mark.parametrize("kernel", ["measure", "first", "dense", "reference"])
@pytest.mark.parametrize("name", ["another matrix", "a tap more", "swapped", "transposed"])
def test_by_the_other_kernels(name: str, kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPKAST_CACHE", str(tmp_path))
    monkeypatch.setenv("TOPKAST_KERNEL", kernel)
    assert set(check(*build(name), (1, 1), f"{name} {kernel}")["fused"]) == CASES[name][2]


@pytest.mark.parametrize("block", [(1, 1), (4, 1)], ids=str)
@pytest.mark.parametrize("name", ["another matrix", "a tap more", "taps cut"])
def test_trains_as_the_oracle(name: str, block: tuple[int, int]) -> None:
    """The whole algorithm over several steps, eager PyTorch's order of sums."""
    made, shape, _ = CASES[name]
    case = Case(name, lambda: View(**made), shape, ("w",))
    options = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2, "block": block, "include": "w", "backend": "aot_eager"}
    assert Trio(case, options, adamw).run(plain) == 5


def test_a_view_of_the_result_holds() -> None:
    """A dense weight that lies channels last makes the result do so, and a model may rely on that."""
    made: dict[str, Any] = dict(shape=(16, 3, 3, 1), moves=(("permute", 0, 3, 1, 2),), use="conv2")
    torch.manual_seed(0)
    model = View(**made, result=(("permute", 0, 2, 3, 1), ("view", -1, 16)))
    assert set(check(model, torch.randn(3, 1, 6, 5), (1, 1), "channels last")["fused"]) == ALL


# name: how the module is made, the shape of its input
FLAT: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "linear, sum of rows": (dict(shape=(24, 12), moves=(), use="linear", result=(("sum", -1),)), (7, 12)),
    "linear, sum": (dict(shape=(24, 12), moves=(), use="linear", result=(("sum",),)), (2, 7, 12)),
    "linear, expanded": (dict(shape=(24, 12), moves=(), use="linear", x_moves=(("expand", 9, 12),)), (1, 12)),
    "batched": (dict(shape=(3, 12, 8), moves=(), use="x @ w", result=(("sum", -1),)), (3, 5, 12)),
    "batched, expanded": (dict(shape=(3, 12, 8), moves=(), use="x @ w", x_moves=(("expand", 3, 5, 12),)), (1, 5, 12)),
    "conv, sum": (dict(shape=(24, 6, 3, 3), moves=(), use="conv2", result=(("sum",),)), (3, 6, 5, 5)),
    "conv, sum of rows": (dict(shape=(24, 6, 3), moves=(), use="conv1", result=(("sum", -1),)), (3, 6, 5)),
    "conv, expanded": (dict(shape=(24, 6, 3), moves=(), use="conv1", x_moves=(("expand", 4, 6, 5),)), (1, 6, 1)),
    "transposed, sum": (dict(shape=(6, 24, 3), moves=(), use="transposed1", result=(("sum",),)), (3, 6, 5)),
}


@pytest.mark.long
@pytest.mark.parametrize("kernel", ["measure", "first", "native", "dense"])
@pytest.mark.parametrize("name", FLAT)
def test_strides_of_zero(name: str, kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPKAST_CACHE", str(tmp_path))
    monkeypatch.setenv("TOPKAST_KERNEL", kernel)
    made, shape = FLAT[name]
    torch.manual_seed(0)
    assert set(check(View(**made), torch.randn(shape), (1, 1), f"{name} {kernel}")["fused"]) == ALL


@st.composite
def modules(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[int, ...]]:
    """How a module is made, and the shape of its input."""
    dims, size = draw(st.sampled_from([0, 1, 1, 2, 3])), st.sampled_from([1, 2, 3, 4, 6, 8])
    use = draw(st.sampled_from(["linear", "x @ w"] if dims == 0 else [f"conv{dims}", f"transposed{dims}"]))
    groups = draw(st.sampled_from([1, 1, 2])) if dims else 1
    view = [draw(size) * groups, draw(size), *(draw(st.sampled_from([1, 2, 3])) for _ in range(dims))]
    # conv: [out, in / groups, ...]; transposed: [in, out / groups, ...]; x @ w: [in, out]
    inputs = view[0] if use[0] in "tx" else view[1] * groups
    shape, moves = draw(parameters(view))
    x_shape, x_moves = [draw(st.sampled_from([1, 3, 17])), inputs, *[draw(st.sampled_from([4, 5]))] * dims], ()
    how = draw(st.sampled_from(["plain", "expanded", "swapped", "cut"]))
    if how == "expanded":
        x_moves, x_shape[0] = (("expand", *x_shape),), 1
    elif how == "swapped":
        x_moves, x_shape = (("movedim", -1, 1),), [x_shape[0], *x_shape[2:], x_shape[1]]
    elif how == "cut":
        x_moves, x_shape[-1] = (("part", -1),), 2 * x_shape[-1]
    result = draw(st.sampled_from([(), (("sum",),), (("sum", -1),), (("movedim", 1, -1), ("flatten", 1)), (("sin",),)]))
    options = {"groups": groups, "stride": draw(st.sampled_from([1, 2]))} if dims else {}
    return dict(shape=shape, moves=moves, use=use, x_moves=x_moves, result=result, **options), tuple(x_shape)


@st.composite
def parameters(draw: st.DrawFn, view: list[int]) -> tuple[tuple[int, ...], tuple[Move, ...]]:
    """The shape of a parameter, and the moves that make it ``view``."""
    dim, last = draw(st.integers(0, len(view) - 1)), len(view) - 1
    how = draw(st.sampled_from(["plain", "cut", "merged", "any", "unsqueezed", "permuted", "permuted twice", "part",
                                "expanded"]))  # fmt: skip
    if how == "cut":
        own = [*view[:dim], 2, view[dim] // 2, *view[dim + 1 :]] if view[dim] % 2 == 0 else view
        return tuple(own), (("reshape", *view),)
    if how == "merged" and last > 1:
        dim = min(dim, last - 1)
        return (*view[:dim], view[dim] * view[dim + 1], *view[dim + 2 :]), (("view", *view),)
    if how == "any":
        count = math.prod(view)
        rows = draw(st.sampled_from([n for n in range(1, count + 1) if count % n == 0]))
        return (rows, count // rows), (("reshape", *view),)
    if how == "unsqueezed" and view[dim] == 1 and last > 1:
        return (*view[:dim], *view[dim + 1 :]), (("unsqueeze", dim),)
    if how.startswith("permuted"):
        order = draw(st.permutations(range(len(view))))
        back = tuple(order.index(d) for d in range(len(view)))
        more: tuple[Move, ...] = (("flatten",), ("view", *view)) if how.endswith("twice") else ()
        return tuple(view[d] for d in order), (("permute", *back), *more)
    if how == "part":
        return (*view[:dim], 2 * view[dim], *view[dim + 1 :]), (("part", dim),)
    if how == "expanded":
        return (*view[:dim], 1, *view[dim + 1 :]), (("expand", *view),)
    return tuple(view), ()


@pytest.mark.long
@settings(
    deadline=None, max_examples=25, derandomize=True, database=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(modules(), st.sampled_from([(1, 1), (4, 1), (3, 2)]), st.sampled_from(["native", "first"]))
def test_fuzz(module: tuple[dict[str, Any], tuple[int, ...]], block: tuple[int, int], kernel: str) -> None:
    made, shape = module
    torch.manual_seed(0)
    torch._dynamo.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOPKAST_KERNEL", kernel)
        try:
            check(View(**made), torch.randn(shape), block, f"{made} {shape} {block} {kernel}")
        except (topkast.ConfigError, topkast.ModelError) as refused:  # a depthwise convolution, a block too large
            assert any(why in str(refused) for why in ("no weight can be sparse", "larger than every weight"))
            reject()
