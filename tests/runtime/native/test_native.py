"""Every native kernel × layout × instruction set × odd shape against float64, with the error budget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import topkast
from topkast.runtime import native
from topkast.runtime.kernels.candidates import candidates
from topkast.runtime.layout import Geometry, Index, build_index
from topkast.runtime.native import densified, products
from topkast.runtime.native import sets as native_sets
from topkast.runtime.native import theta as native_theta
from topkast.runtime.reference import selection as choose
from topkast.runtime.reference import theta
from topkast.runtime.reference.products import REFERENCE
from topkast.tests.support.at_once import wrong_at_once
from topkast.tests.support.truth.builders import CASES
from topkast.tests.support.truth.lockstep import adamw
from topkast.tests.support.truth.product_layouts import BLOCKS, DRAWN, check, check_drawn, check_layouts, sets, within

LIBRARY = native.library()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the native kernels are not built")
AVAILABLE = native.ISAS[: LIBRARY.tk_isa_best() + 1] if LIBRARY else ()


@pytest.fixture(params=AVAILABLE)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    assert LIBRARY is not None
    best = LIBRARY.tk_isa_best()
    assert LIBRARY.tk_set_isa(native.ISAS.index(request.param)) == 0 and native.isa() == request.param
    yield request.param
    LIBRARY.tk_set_isa(best)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_layout(isa: str, block: tuple[int, int]) -> None:
    check_layouts(block, torch.float32, "native")


@pytest.mark.parametrize("m, rows, cols", [(300, 270, 210), (257, 40, 100), (320, 600, 97)])
def test_sorted_single_weights(isa: str, m: int, rows: int, cols: int) -> None:
    """So many rows of activations, and so dense a set, that A is sorted by cells: several ranges of outputs, several
    cells, the last of each not full, outputs without weights; for dX the same of A's transpose."""
    geometry = Geometry((rows, cols), (0, 1), 1, (1, 1))
    for wide, how in [(False, "plain"), (True, "transposed")]:
        check(m, geometry, sets(geometry, 0.3, 0.5, 2, wide), torch.float32, how, True, "native")


def test_sorted_single_weights_meet_what_is_not_finite() -> None:
    """NaN in the activations appears where a chosen weight meets that column, and nowhere else."""
    geometry = Geometry((270, 210), (0, 1), 1, (1, 1))
    index = sets(geometry, 0.3, 0.5)
    values, x = torch.randn(index.cols.numel()), torch.randn(260, 210)
    x[3, 5], x[259, 209] = torch.nan, torch.inf
    y = products.spmm(x, values, index, geometry, None)
    taken = REFERENCE.matrix(values, index, geometry).ne(0)
    assert y[3].isnan().equal(taken[:, 5]) and y[259].isinf().equal(taken[:, 209])
    assert int(y.isfinite().logical_not().sum()) == int(taken[:, 5].sum() + taken[:, 209].sum())


@pytest.mark.parametrize("block", [(1, 1), (4, 1), (16, 1), (16, 16), (32, 32)])
def test_long_rows(isa: str, block: tuple[int, int]) -> None:
    """More columns than a cell holds, more slots in a row than are summed in one piece."""
    for m, k in [(1, 5000), (4, 2000), (8, 5000), (70, 5000), (600, 1500)]:
        geometry = Geometry((33, k), (0, 1), 1, block)
        check(m, geometry, sets(geometry, 0.2, 0.4), torch.float32, "plain", True, "native")


def test_input_gradient_of_many_rows(isa: str) -> None:
    """So many rows that their numbers take four bytes in A's transpose; and a set too dense for a transpose."""
    for rows, cols, fwd in [(2**16 + 5, 3, 0.3), (40, 30, 0.9)]:
        geometry = Geometry((rows, cols), (0, 1), 1, (1, 1))
        index = sets(geometry, fwd, 0.95)
        values, dy = torch.randn(index.cols.numel()), torch.randn(128, rows)
        values[0] = float("nan")  # the first weight of A
        ours = products.spmm_t(dy, values, index, geometry)
        w = REFERENCE.matrix(values, index, geometry)
        nan = w.isnan().any(0)
        assert ours[:, nan].isnan().all() and int(nan.sum()) == 1
        plains = [dy[:, n] @ w[n] for n in (torch.randperm(rows) for _ in range(2))]
        truth = dy.double() @ w.double()
        within(ours[:, ~nan], [p[:, ~nan] for p in plains], truth[:, ~nan], f"spmm_t {geometry} {isa}")


@settings(deadline=None, max_examples=120, derandomize=True)
@given(DRAWN, st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), st.sampled_from(AVAILABLE))
def test_fuzz(drawn, dtype, isa):
    LIBRARY.tk_set_isa(native.ISAS.index(isa))
    try:
        check_drawn(drawn, dtype, ("native", "dense") if dtype == torch.float32 else ("native",))
    finally:
        LIBRARY.tk_set_isa(LIBRARY.tk_isa_best())


@pytest.mark.parametrize("block", [(1, 1), (4, 1), (8, 8)])
def test_stacked_weights(block: tuple[int, int]) -> None:
    """Batched experts: one weight for each, stacked in the rows."""
    geometry = Geometry((3, 16, 20), (0, 1, 2), 2, block)
    index = sets(geometry, 0.2, 0.5, 3)
    values, x, dy = torch.randn(index.cols.numel() * geometry.unit), torch.randn(3, 9, 20), torch.randn(3, 9, 16)
    assert candidates("spmm", x, geometry)[0] == "native"
    bias = torch.randn(3, 1, 16)
    for ours, plain_result in (
        (products.spmm(x, values, index, geometry, bias), REFERENCE.spmm(x, values, index, geometry, bias)),
        (products.spmm_t(dy, values, index, geometry), REFERENCE.spmm_t(dy, values, index, geometry)),
        (products.sddmm(dy, x, index, geometry), REFERENCE.sddmm(dy, x, index, geometry)),
    ):
        torch.testing.assert_close(ours, plain_result)


def test_what_does_not_fit_is_left_to_others() -> None:
    wide, odd = Geometry((256, 256), (0, 1), 1, (128, 1)), Geometry((3, 5, 8), (0, 1, 2), 2, (4, 1))
    assert "native" not in candidates("spmm", torch.ones(2, 256), wide)
    assert "native" not in candidates("spmm", torch.ones(3, 2, 8), odd)
    assert candidates("spmm", torch.ones(2, 256).double(), Geometry((256, 256), (0, 1), 1, (1, 1))) == ["reference"]


@pytest.mark.parametrize("perm", [(0, 1, 2, 3), (1, 0, 2, 3)])
@pytest.mark.parametrize("block", [(1, 1), (4, 3)])
def test_dense_and_gather_are_bitwise(perm: tuple[int, ...], block: tuple[int, int]) -> None:
    geometry = Geometry((6, 5, 3, 3), perm, 1, block)
    index = sets(geometry, 0.3, 0.6, 2)
    values, grad = torch.randn(index.cols.numel() * geometry.unit), torch.randn(3, 3, 5, 6).permute(3, 2, 0, 1)
    assert densified.weight(values, index, geometry).equal(REFERENCE.weight(values, index, geometry))
    assert densified.weight_grad(grad, index, geometry).equal(REFERENCE.weight_grad(grad, index, geometry))


@settings(deadline=None, max_examples=80, derandomize=True)
@given(st.integers(1, 400), st.integers(1, 6), st.data())
def test_selection_is_exact(n: int, distinct: int, data: st.DataObject) -> None:
    """Equal to the plain one, ties, zeros, infinities and NaN included; the index of the sets too."""
    pool = torch.tensor([0.0, 1.0, torch.nan, torch.inf, 1e-42, 1.0000001])[:distinct]
    score = torch.where(torch.rand(n) < 0.5, pool[torch.randint(distinct, (n,))], torch.randn(n).abs())
    a, b = sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))
    known = choose.scores(score[:, None])
    fwd, bwd = native_sets.largest(score, a), native_sets.largest(score, b)
    assert fwd.equal(choose.largest(known, a)) and bwd.equal(choose.largest(known, b))
    for columns in {1, n}:
        grids = fwd.view(-1, columns), bwd.view(-1, columns)
        for mine, plain in zip(native_sets.build_index(*grids, b + 2), build_index(*grids, b + 2), strict=True):
            assert mine.dtype == plain.dtype and mine.equal(plain)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from([(1, 1), (4, 1), (3, 5), (16, 16)]),
    st.floats(0, 1), st.floats(0, 1), st.integers(1, 3), st.booleans(), st.booleans(),
)  # fmt: skip
def test_theta_is_moved_bitwise(rows, cols, block, share, other, spare, wide, swap):
    """Put together, taken apart by another index, and optimizer state carried along: equal to plain PyTorch."""
    torch.manual_seed(rows * cols)
    geometry = Geometry((cols, rows) if swap else (rows, cols), (1, 0) if swap else (0, 1), 1, block)
    before, after = sets(geometry, share / 2, share, spare, wide), sets(geometry, other / 2, other, spare, wide)

    def room(index: Index) -> tuple[Tensor, Tensor]:
        outside = geometry.units - int(index.row_ptr[-1]) + 1  # one spare unit, which nothing touches
        return torch.full((index.cols.numel() * geometry.unit,), 7.0), torch.full((outside * geometry.unit,), 7.0)

    whole, found = torch.randn(geometry.shape), []
    for module in (native_theta, theta):
        (values, reservoir), (moved, left) = room(before), room(after)
        module.store(whole, values, reservoir, before, geometry)
        assert module.assemble(values, reservoir, before, geometry).equal(whole)
        module.store(whole, moved, left, after, geometry)
        assert module.assemble(moved, left, after, geometry).equal(whole)
        found.append((values, reservoir, moved, left, module.follow(values, before, after, geometry)))
    assert all(mine.equal(plain) for mine, plain in zip(*found, strict=True))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(1, 60), st.integers(1, 90), st.integers(1, 6), st.data())
def test_selection_in_every_row_is_exact(rows: int, n: int, distinct: int, data: st.DataObject) -> None:
    pool = torch.tensor([0.0, 1.0, torch.nan, torch.inf, 1e-42, 1.0000001])[:distinct]
    score = torch.where(torch.rand(rows, n) < 0.5, pool[torch.randint(distinct, (rows, n))], torch.randn(rows, n).abs())
    count = data.draw(st.integers(0, n))
    known = choose.scores(score.reshape(-1, 1)).view(rows, n)
    transposed = score.T.contiguous().T  # other strides
    assert native_sets.largest(transposed, count).equal(choose.largest(known, count))


def test_selection_in_many_rows() -> None:
    score = torch.randint(0, 50, (4000, 200)).float()
    assert native_sets.largest(score, 37).equal(choose.largest(score, 37))


def test_selection_of_many_chunks() -> None:
    score = torch.randint(0, 50, (600_000,)).float()
    assert native_sets.largest(score, 123_456).equal(choose.largest(score, 123_456))


@pytest.mark.parametrize("rows", [1, 4, 16])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads: int, rows: int) -> None:
    """Every sum is made by one thread in a fixed order: any number of threads gives the same bits."""
    geometry = Geometry((300, 700), (0, 1), 1, (rows, 1))
    index = sets(geometry, 0.2, 0.4)
    values, x, dy = torch.randn(index.cols.numel() * rows), torch.randn(300, 700), torch.randn(300, 300)
    run = lambda: (  # noqa: E731
        products.spmm(x, values, index, geometry, None),
        products.spmm_t(dy, values, index, geometry),
        products.sddmm(dy, x, index, geometry),
        densified.squares(values, index, geometry),
    )
    alone = run()
    try:
        torch.set_num_threads(threads)
        assert native.threads() == threads, "torch's OpenMP runtime was not found"
        assert native.parallel().threads == threads
        together = run()
    finally:
        torch.set_num_threads(1)
    assert all(a.equal(b) for a, b in zip(alone, together, strict=True))


def test_concurrent_calls() -> None:
    """Several Python threads at once, each with its own scratch."""
    geometry = Geometry((90, 110), (0, 1), 1, (1, 1))
    index = sets(geometry, 0.2, 0.4)
    values = torch.randn(index.cols.numel())
    inputs = [torch.randn(20 + i, 110) for i in range(4)]
    expected = [products.spmm(x, values, index, geometry, None) for x in inputs]

    assert not wrong_at_once(
        4, 30, lambda i: products.spmm(inputs[i], values, index, geometry, None).equal(expected[i])
    )


def test_an_unknown_instruction_set_is_refused() -> None:
    assert LIBRARY is not None
    assert LIBRARY.tk_set_isa(9) == -1 and LIBRARY.tk_set_isa(-1) == -1


NATIVE_CASES = ["mlp", "encoder", "tied", "experts", "hf_conv1d", "cnn", "conv1d", "conv3d", "conv_transpose"]


def check_training(
    name: str, kernel: str, plain: str, fwd: float, bwd: float, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> None:
    """A model trains by one kernel as by another: the same sets, and the same weights up to float32's closeness."""
    found = {}
    for each in (plain, kernel):
        monkeypatch.setenv("TOPKAST_KERNEL", each)
        torch.manual_seed(0)
        torch._dynamo.reset()
        case = CASES[name]
        model = topkast.compile(case.model(), fwd, bwd, refresh_every=2, backend="aot_eager", min_size=20, **options)
        optimizer = adamw(list(model.parameters()))
        for args, target in case.batches(5):
            optimizer.zero_grad()
            case.loss(model(*args), target).backward()
            optimizer.step()
        ran = {kernel for row in topkast.report(model).sites for ran in row["fused"].values() for kernel in ran}
        assert ran == {each}
        found[each] = topkast.dense_state_dict(model, "all"), topkast.masks(model)
    torch.testing.assert_close(found[kernel][0], found[plain][0])
    for site, pair in found[kernel][1].items():
        assert all(torch.equal(a, b) for a, b in zip(pair, found[plain][1][site], strict=True)), site


@pytest.mark.long
@pytest.mark.parametrize("name", NATIVE_CASES)
def test_training_takes_the_native_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wiring: dense products equal the oracle, see test_exact_models; the products themselves are held to the
    budget above."""
    check_training(name, "native", "dense", 0.8, 0.6, monkeypatch)
