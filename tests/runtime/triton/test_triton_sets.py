"""Sets and their indices on the GPU, in the interpreter: chosen, stored, transposed, renewed in place."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from topkast.runtime import layout
from topkast.runtime.layout import Geometry, Index, index_masks
from topkast.runtime.reference import selection as choose
from topkast.runtime.reference.products import REFERENCE
from topkast.runtime.triton import products, single
from topkast.runtime.triton.refresh import sets as triton_sets
from topkast.tests.support.interpreted import INTERPRETED
from topkast.tests.support.truth.product_layouts import sets

pytestmark = INTERPRETED


@settings(deadline=None, max_examples=15, derandomize=True)
@given(st.integers(1, 6000), st.integers(1, 6), st.sampled_from([1, 3]), st.integers(1, 3), st.data())
def test_selection_is_exact(n: int, distinct: int, rows: int, parts: int, data: st.DataObject) -> None:
    """Equal to the plain one, ties, zeros, infinities, NaN and several programs included; the index of the sets too."""
    torch.manual_seed(n)
    pool = torch.tensor([0.0, 1.0, torch.nan, torch.inf, 1e-42, 1.0000001])[:distinct]
    score = torch.where(torch.rand(rows, n) < 0.5, pool[torch.randint(distinct, (rows, n))], torch.randn(rows, n).abs())
    a, b = sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))
    known = choose.scores(score.view(-1, 1)).view(rows, n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_sets, "PARTS", parts)
        fwd, bwd = triton_sets.largest(score, a), triton_sets.largest(score, b)
    assert fwd.equal(choose.largest(known, a)) and bwd.equal(choose.largest(known, b))
    for mine, plain in zip(
        triton_sets.build_index(fwd, bwd, rows * b + 2), layout.build_index(fwd, bwd, rows * b + 2), strict=True
    ):
        assert mine.dtype == plain.dtype and mine.equal(plain)


def test_index_of_many_columns() -> None:
    """More than 65,536 columns of blocks are stored as int32."""
    bwd = torch.rand(1, 2**16 + 5) < 0.5
    fwd, slots = bwd & (torch.rand(bwd.shape) < 0.5), int(bwd.sum())
    mine, plain = triton_sets.build_index(fwd, bwd, slots), layout.build_index(fwd, bwd, slots)
    assert mine.cols.dtype == torch.int32 and all(a.equal(b) for a, b in zip(mine, plain, strict=True))


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("made_by, side", [(products, 16), (single, 1)], ids=["blocks", "single"])
def test_the_transposed_index(made_by: Any, side: int, parts: int) -> None:
    """Lists A by block columns, rows ascending; of each part on its own."""
    geometry = Geometry((15 * side, 11 * side), (0, 1), 1, (side, side))
    index = sets(geometry, 0.3, 0.6, 2)
    begins, ends, slot_of, row_of = made_by.transpose(index, geometry, parts)
    fwd, columns, rows = index_masks(index, geometry)[0].view(parts, -1, 11), geometry.grid[1], 15 // parts
    for part, column in itertools.product(range(parts), range(columns)):
        begin, end = int(begins[part * columns + column]), int(ends[part * columns + column])
        found = row_of[begin:end].long()
        assert found.equal(fwd[part, :, column].nonzero()[:, 0])
        slots = slot_of[begin:end].long()
        assert (index.cols.int()[slots] == column).all()
        assert (index.row_ptr[part * rows + found] <= slots).all() and (
            slots < index.row_fwd[part * rows + found]
        ).all()


@pytest.mark.parametrize("run, side", [(products, 16), (single, 1)], ids=["blocks", "single"])
def test_an_in_place_refresh_reaches_the_input_gradient(run: Any, side: int) -> None:
    """The transposed index is made in the product: new sets in the same tensors need nothing renewed."""
    geometry = Geometry((5 * side, 6 * side), (0, 1), 1, (side, side))
    index, other = sets(geometry, 0.4, 0.4), sets(geometry, 0.4, 0.4)
    slots = max(index.cols.numel(), other.cols.numel())
    index, other = (
        Index(*i[:2], torch.nn.functional.pad(i.cols.int(), (0, slots - i.cols.numel()))) for i in (index, other)
    )
    values, dy = torch.randn(slots * geometry.unit), torch.randn(5, geometry.rows)
    run.spmm_t(dy, values, index, geometry)
    for mine, new in zip(index, other, strict=True):
        mine.copy_(new)
    torch.testing.assert_close(run.spmm_t(dy, values, index, geometry), REFERENCE.spmm_t(dy, values, other, geometry))
