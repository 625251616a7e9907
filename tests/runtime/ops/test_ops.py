"""Every operator against opcheck, and every product against a masked dense one in float64."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from topkast.runtime.layout import Geometry, Index, build_index, check_index, index_masks
from topkast.runtime.ops import operators as ops
from topkast.runtime.reference import selection as choose
from topkast.runtime.registry import count_run


def index_of(geometry, fwd_share=0.3, bwd_share=0.6, spare=0, seed=0):
    score = torch.rand(geometry.units, generator=torch.Generator().manual_seed(seed))
    n_fwd, n_bwd = max(1, int(fwd_share * geometry.units)), max(1, int(bwd_share * geometry.units))
    fwd, bwd = choose.largest(score, n_fwd), choose.largest(score, n_bwd)
    return build_index(fwd.view(geometry.grid), bwd.view(geometry.grid), n_bwd + spare), fwd, bwd


def pack(geometry, index):
    return (*index, torch.tensor(0)), (geometry.shape, geometry.perm, geometry.lead, geometry.block, 0)


LINEAR = Geometry((7, 10), (0, 1), 1, (2, 3))
CONV = Geometry((6, 4, 3, 3), (0, 1, 2, 3), 1, (1, 1))
CONV_ARGS = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)


def samples():
    for geometry in (LINEAR, Geometry((10, 7), (1, 0), 1, (1, 1))):
        index, _, _ = index_of(geometry, spare=2)
        where, shape = pack(geometry, index)
        values = torch.randn(index.cols.numel() * geometry.unit)
        yield "weight", (values.clone().requires_grad_(), *where, *shape)
        yield "weight_grad", (torch.randn(geometry.shape), *where, *shape)
        yield "spmm", (torch.randn(5, 10), values, *where, *shape, torch.randn(7))
        yield "spmm_t", (torch.randn(5, 7), values, *where, *shape)
        yield "sddmm", (torch.randn(5, 7), torch.randn(5, 10), *where, *shape)
    yield "pack", (torch.randn(64, 5), 16)
    yield "unpack", (torch.randn(4, 5, 16),)
    index, _, _ = index_of(CONV)
    where, shape = pack(CONV, index)
    values, x, dy = torch.randn(index.cols.numel()), torch.randn(2, 4, 5, 6), torch.randn(2, 6, 5, 6)
    yield "conv", (x, values, *where, *shape, torch.randn(6), *CONV_ARGS)
    yield "conv", (x.to(memory_format=torch.channels_last), values, *where, *shape, None, *CONV_ARGS)
    yield "conv_input_grad", (dy, x, values, *where, *shape, *CONV_ARGS)
    yield "conv_weight_grad", (dy, x, *where, *shape, *CONV_ARGS)


@pytest.mark.parametrize("name, args", list(samples()))
def test_opcheck(name, args):
    torch.library.opcheck(getattr(torch.ops.topkast, name).default, args)


def test_every_operator_has_a_sample():
    assert {name for name, _ in samples()} == set(ops.SCHEMAS)


geometries = st.builds(
    lambda rows, cols, r, c, swap: (
        Geometry((cols, rows), (1, 0), 1, (r, c)) if swap else Geometry((rows, cols), (0, 1), 1, (r, c))
    ),
    *[st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.booleans()],
)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(geometries, st.floats(0, 1), st.floats(0, 1), st.integers(0, 3), st.integers(0, 99))
def test_products_equal_masked_dense(geometry, share_a, share_b, spare, seed):
    index, fwd, bwd = index_of(geometry, min(share_a, share_b), max(share_a, share_b), spare, seed)
    assert check_index(index, geometry) is None
    assert all(torch.equal(a, b) for a, b in zip(index_masks(index, geometry), (fwd, bwd), strict=True))
    theta = torch.randn(geometry.shape, dtype=torch.float64)
    spread = [geometry.from_blocks(mask[:, None].expand(-1, geometry.unit)) for mask in (fwd, bwd)]
    where, shape = pack(geometry, index)
    values = torch.ops.topkast.weight_grad(theta, *where, *shape)
    dense = torch.where(spread[0], theta, 0)
    assert torch.equal(torch.ops.topkast.weight(values, *where, *shape), dense)
    matrix = dense.permute(geometry.perm)
    x, dy = torch.randn(3, geometry.cols).double(), torch.randn(3, geometry.rows).double()
    torch.testing.assert_close(torch.ops.topkast.spmm(x, values, *where, *shape), x @ matrix.t())
    torch.testing.assert_close(torch.ops.topkast.spmm_t(dy, values, *where, *shape), dy @ matrix)
    full = torch.where(spread[1], (dy.t() @ x).permute(geometry.inverse), 0)
    sampled = torch.ops.topkast.sddmm(dy, x, *where, *shape)
    torch.testing.assert_close(sampled, torch.ops.topkast.weight_grad(full, *where, *shape))
    assert sampled[int(index.row_ptr[-1]) * geometry.unit :].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_non_contiguous_operands(dtype):
    index, _, _ = index_of(LINEAR)
    where, shape = pack(LINEAR, index)
    values = torch.randn(index.cols.numel() * LINEAR.unit).to(dtype)
    x = torch.randn(10, 5).to(dtype).t()
    torch.testing.assert_close(
        torch.ops.topkast.spmm(x, values, *where, *shape),
        torch.ops.topkast.spmm(x.contiguous(), values, *where, *shape),
    )


@settings(deadline=None, max_examples=80, derandomize=True)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.data())
def test_largest_cuts_ties_by_the_lower_index(numbers, data):
    count = data.draw(st.integers(0, len(numbers)))
    expected = sorted(range(len(numbers)), key=lambda i: (-numbers[i], i))[:count]
    mask = choose.largest(torch.tensor(numbers, dtype=torch.float32), count)
    assert mask.nonzero().view(-1).tolist() == sorted(expected)


def test_scores_of_what_is_not_a_number_are_largest():
    score = choose.scores(torch.tensor([[1.0], [torch.nan], [-torch.inf], [-2.0]]))
    assert choose.largest(score, 2).tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    "field, value, why", [("cols", 99, "column"), ("row_ptr", 99, "ascend"), ("row_fwd", 99, "row")]
)
def test_broken_index_is_found(field, value, why):
    index, _, _ = index_of(LINEAR)
    broken = Index(*(tensor.clone() for tensor in index))
    getattr(broken, field)[-1] = value
    assert why in (check_index(broken, LINEAR) or "")


def test_block_listed_twice_is_found():
    index = Index(torch.tensor([0, 2]), torch.tensor([1]), torch.tensor([1, 1], dtype=torch.int32))
    assert "twice" in (check_index(index, Geometry((1, 3), (0, 1), 1, (1, 1))) or "")


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.integers(1, 5), st.integers(1, 8), st.integers(0, 99), st.data())
def test_an_index_passes_only_if_it_is_what_its_sets_give(rows, columns, seed, data):
    """Whatever is changed in an index, the check finds it, or the index is the one of the sets that it describes."""
    geometry = Geometry((rows, columns), (0, 1), 1, (1, 1))
    score = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))
    index = build_index(score < 0.3, score < 0.7, int((score < 0.7).sum()) + data.draw(st.integers(0, 2)))
    for _ in range(data.draw(st.integers(1, 3))):
        tensor = index[data.draw(st.integers(0, 2))]
        if tensor.numel():
            tensor[data.draw(st.integers(0, tensor.numel() - 1))] = data.draw(st.integers(0, columns))
    if check_index(index, geometry) is None:
        fwd, bwd = (mask.view(rows, columns) for mask in index_masks(index, geometry))
        made, used = build_index(fwd, bwd, index.cols.numel()), int(index.row_ptr[-1])
        assert index.row_ptr.equal(made.row_ptr) and index.row_fwd.equal(made.row_fwd)
        assert index.cols[:used].equal(made.cols[:used])


@pytest.mark.parametrize("cols", [[2, 1, 0], [0, 2, 1]])
def test_columns_that_step_back_are_found(cols):
    index = Index(torch.tensor([0, 3]), torch.tensor([1]), torch.tensor(cols, dtype=torch.int32))
    assert "ascend" in (check_index(index, Geometry((1, 3), (0, 1), 1, (1, 1))) or "")


def test_a_key_of_a_site_that_is_gone_is_ignored():
    count_run(torch.tensor(-1), "forward", "reference")
