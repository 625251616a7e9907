"""The products on AVX512_BF16 against float64, with the error budget of plain PyTorch in bfloat16: every block, odd
sizes, strides, empty rows; and what is not a finite, normal number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import topkast
from topkast.runtime import native
from topkast.runtime.kernels.candidates import candidates
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.native import bfloat16
from topkast.runtime.planner.plan import Problem, choose
from topkast.runtime.reference.products import REFERENCE
from topkast.tests.support.pass_counts import pass_counts
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import Trio, sgd, sites_of
from topkast.tests.support.truth.product_layouts import BLOCKS, DRAWN, check, check_drawn, check_layouts, sets, within
from topkast.tests.test_exact_loops import autocast

LIBRARY = native.library()
pytestmark = pytest.mark.skipif(
    LIBRARY is None or not LIBRARY.tk_bf16(), reason="the processor has no AVX512_BF16, or the kernels are not built"
)


@pytest.mark.parametrize("block", [*BLOCKS, (24, 1), (7, 2), (64, 16), (6, 48)])
def test_every_layout(block: tuple[int, int]) -> None:
    check_layouts(block, torch.bfloat16, "bf16")


@pytest.mark.parametrize("block", [(1, 1), (4, 1), (16, 1), (32, 32)])
def test_long_rows(block: tuple[int, int]) -> None:
    """More columns than a cell holds, more pairs in a row than are side by side; more rows than columns; more weights
    in a cell than are listed at once; samples of which the last chunk is not full."""
    for m, n, k in [(70, 33, 3000), (100, 1500, 40), (40, 900, 230), (290, 70, 50)]:
        geometry = Geometry((n, k), (0, 1), 1, block)
        check(m, geometry, sets(geometry, 0.2, 0.4), torch.bfloat16, "plain", True, "bf16")


@settings(deadline=None, max_examples=60, derandomize=True)
@given(DRAWN)
def test_fuzz(drawn):
    check_drawn(drawn, torch.bfloat16, ("bf16",))


def case(block: tuple[int, int], rows: int = 48, cols: int = 64, m: int = 70) -> tuple[Index, Geometry, list[Tensor]]:
    """A weight, and values, x and dy for it."""
    torch.manual_seed(0)
    geometry = Geometry((rows, cols), (0, 1), 1, block)
    index = sets(geometry, 0.3, 0.5)
    shapes = [(index.cols.numel() * geometry.unit,), (m, cols), (m, rows)]
    return index, geometry, [torch.randn(shape).bfloat16() for shape in shapes]


def run(index: Index, geometry: Geometry, values: Tensor, x: Tensor, dy: Tensor) -> list[Tensor]:
    return [
        bfloat16.spmm(x, values, index, geometry, None),
        bfloat16.spmm_t(dy, values, index, geometry),
        bfloat16.sddmm(dy, x, index, geometry),
    ]


def test_values_in_float32_are_rounded() -> None:
    index, geometry, (values, x, dy) = case((4, 1))
    wide = torch.randn(values.shape)
    for ours, same in zip(run(index, geometry, wide, x, dy), run(index, geometry, wide.bfloat16(), x, dy), strict=True):
        assert ours.equal(same)


@pytest.mark.parametrize("block", [(1, 1), (4, 1), (16, 1), (32, 32), (3, 5)])
@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite(block: tuple[int, int], special: float) -> None:
    """NaN and infinities appear where they do in the product of the chosen weights alone, and nowhere else: a partner
    in a pair, the padding and a neighbour in a tile see nothing of them."""
    index, geometry, (values, x, dy) = case(block, cols=65)
    x[3, 10], x[69, 64], dy[5, 7], dy[68, 47] = (special,) * 4
    taken = REFERENCE.matrix(torch.ones_like(values), index, geometry).bool()
    w = REFERENCE.matrix(values, index, geometry)
    y, dx, dw = run(index, geometry, values, x, dy)

    def chosen(left: Tensor, right: Tensor, use: Tensor) -> Tensor:
        """left @ right.T of the chosen weights alone: torch multiplies the others by zero, which gives NaN."""
        terms = torch.where(use, left[:, None, :].double() * right[None].double(), 0)
        return terms.sum(-1)

    same_kind(y, chosen(x, w, taken))
    same_kind(dx, chosen(dy, w.T, taken.T))
    dense = dy.double().T @ x.double()
    inside = REFERENCE.weight_grad(torch.ones(48, 65), index, geometry).bool()  # not past the matrix' edge
    same_kind(torch.where(inside, dw, 0), REFERENCE.weight_grad(dense, index, geometry))


def same_kind(ours: Tensor, truth: Tensor) -> None:
    assert ours.isnan().equal(truth.isnan())
    assert torch.where(ours.isinf(), ours, 0).double().equal(torch.where(truth.isinf(), truth, 0))


def test_denormals_are_as_dense_products_have_them() -> None:
    """vdpbf16ps reads them as zero, and so do PyTorch's products on this processor."""
    index, geometry, (values, x, dy) = case((1, 1))
    small = torch.full_like(x, 1e-39)
    ones = torch.ones_like(values)
    dense = small @ torch.ones(64, 48, dtype=torch.bfloat16)
    y = bfloat16.spmm(small, ones, index, geometry, None)
    assert small.ne(0).all() and y.eq(0).all() and dense.eq(0).all()
    dw = bfloat16.sddmm(torch.full_like(dy, 1e-20), torch.full_like(x, 1e-20), index, geometry)
    assert dw.eq(0).all() and (torch.full_like(dy, 1e-20).T @ torch.full_like(x, 1e-20)).eq(0).all()


@pytest.mark.parametrize("block", [(1, 1), (4, 1), (16, 1), (16, 16)])
def test_threads_change_nothing(block: tuple[int, int]) -> None:
    """Every sum is made by one thread in a fixed order: any number of threads gives the same bits."""
    index, geometry, given = case(block, 300, 200, 150)
    alone = run(index, geometry, *given)
    try:
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert native.parallel().threads == threads
            assert all(a.equal(b) for a, b in zip(alone, run(index, geometry, *given), strict=True))
    finally:
        torch.set_num_threads(1)


def test_stacked_weights() -> None:
    geometry = Geometry((3, 16, 20), (0, 1, 2), 2, (4, 1))
    index = sets(geometry, 0.2, 0.5, 3)
    values, x, dy, bias = (
        torch.randn(shape).bfloat16() for shape in ((index.cols.numel() * 4,), (3, 9, 20), (3, 9, 16), (3, 1, 16))
    )
    exact = [tensor.double() for tensor in (x, values, bias, dy)]
    truth = (
        REFERENCE.spmm(exact[0], exact[1], index, geometry, exact[2]),
        REFERENCE.spmm_t(exact[3], exact[1], index, geometry),
        REFERENCE.sddmm(exact[3], exact[0], index, geometry),
    )
    plain = (
        REFERENCE.spmm(x, values, index, geometry, bias),
        REFERENCE.spmm_t(dy, values, index, geometry),
        REFERENCE.sddmm(dy, x, index, geometry),
    )
    ours = (
        bfloat16.spmm(x, values, index, geometry, bias),
        bfloat16.spmm_t(dy, values, index, geometry),
        bfloat16.sddmm(dy, x, index, geometry),
    )
    for mine, theirs, right in zip(ours, plain, truth, strict=True):
        within(mine, [theirs], right, "stacked")


def test_only_bfloat16_on_a_processor_that_has_it() -> None:
    assert LIBRARY is not None
    geometry = Geometry((32, 32), (0, 1), 1, (4, 1))
    low, full = torch.ones(2, 32, dtype=torch.bfloat16), torch.ones(2, 32)
    assert candidates("spmm", low, geometry)[0] == "bf16" and "bf16" not in candidates("spmm", full, geometry)
    assert "bf16" not in candidates("grouped_spmm", low, geometry)
    try:
        LIBRARY.tk_set_isa(native.ISAS.index("avx2"))
        assert candidates("spmm", low, geometry)[0] == "native"
    finally:
        LIBRARY.tk_set_isa(LIBRARY.tk_isa_best())
    index, geometry, (values, x, _) = case((4, 1))
    with pytest.raises(topkast.TopkastError, match=r"x: .*expected bfloat16"):
        bfloat16.spmm(x.float(), values, index, geometry, None)


@pytest.mark.parametrize("name, block", [("mlp", (1, 1)), ("hf_conv1d", (4, 1))])
def test_autocast_trains_as_the_oracle_does(name: str, block: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast a compiled model takes these kernels for all three products and equals the oracle, step by step;
    its gradients come in float32."""
    monkeypatch.setenv("TOPKAST_KERNEL", "bf16")
    options: dict[str, Any] = {"fwd": 0.8, "bwd": 0.6, "refresh_every": 2, "block": block, "backend": "aot_eager"}
    trio = Trio(CASES[name], options, sgd)
    trio.run(autocast)
    for site in sites_of(trio.ours.model).values():
        assert {kernel for _, kernel, _ in site.ran} == {"bf16"}
    rewrites, _ = pass_counts(trio.ours.model, "KeepSums")
    assert rewrites["weight gradient"] == len(sites_of(trio.ours.model))


def test_the_planner_measures_and_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPKAST_KERNEL", "measure")
    geometry = Geometry((1024, 512), (0, 1), 1, (16, 1))
    layouts: dict[str, Any] = {"spmm": (((512, 512), (512, 1)),), "spmm_t": (((512, 1024), (1024, 1)),)}
    layouts["sddmm"] = (*layouts["spmm_t"], *layouts["spmm"])
    for product, operands in layouts.items():
        problem = Problem(product, operands, torch.bfloat16, geometry, geometry.units // 10, geometry.units // 5, 1)
        assert choose(problem) == "bf16", product
