"""Scores, θ and optimizer state on the GPU, in the interpreter: bit for bit what the specification says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from topkast.runtime import layout
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.reference import selection
from topkast.runtime.reference import theta as plain
from topkast.runtime.triton.refresh import sets, theta
from topkast.tests.support.interpreted import INTERPRETED

pytestmark = INTERPRETED

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
BLOCKS = [(1, 1), (16, 1), (1, 3), (5, 6), (32, 32)]
Largest = Callable[[Tensor, int], Tensor]
VIEWS = [((2,), (0, 1), 1), ((2,), (1, 0), 1), ((4,), (0, 1, 2, 3), 1), ((4,), (1, 0, 2, 3), 1)]


@dataclass
class Weight:
    """θ with many equal values, and the counts of its sets."""

    theta: Tensor
    geometry: Geometry
    balanced: bool
    counts: tuple[int, int]

    def index(self, largest: Largest, build_index: Callable[[Tensor, Tensor, int], Index]) -> Index:
        """The index of the sets of this weight, with three slots more."""
        groups = self.geometry.grid[0] if self.balanced else 1
        score = self.scores().view(groups, -1)
        fwd, bwd = (largest(score, count).view(self.geometry.grid) for count in self.counts)
        return build_index(fwd, bwd, groups * self.counts[1] + 3)

    def scores(self) -> Tensor:
        g = self.geometry
        return selection.scores(self.theta.permute(g.perm).reshape(g.rows, g.cols), g.block)


@st.composite
def weights(draw: st.DrawFn) -> Weight:
    (dims,), perm, lead = draw(st.sampled_from(VIEWS))
    limit = 70 if dims == 2 else 6
    shape = tuple(draw(st.integers(1, limit)) for _ in range(dims))
    geometry = Geometry(shape, perm, lead, draw(st.sampled_from(BLOCKS)))
    torch.manual_seed(draw(st.integers(0, 2**20)))
    drawn = torch.randn(shape).to(draw(st.sampled_from(DTYPES)))
    few = torch.tensor([0.0, 1.0, -1.0, torch.inf, torch.nan])[torch.randint(draw(st.integers(1, 5)), shape)]
    values = torch.where(torch.rand(shape) < draw(st.sampled_from([0.0, 0.5, 1.0])), few.to(drawn.dtype), drawn)
    balanced = draw(st.booleans())
    size = geometry.grid[1] if balanced else geometry.units
    bwd = draw(st.integers(0, size))
    return Weight(values, geometry, balanced, (draw(st.sampled_from([0, bwd, bwd // 2])), bwd))


def equal(one: Tensor, other: Tensor) -> bool:
    """The same bits, NaN included."""
    kind = {8: torch.int64, 4: torch.int32, 2: torch.int16}[one.element_size()]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one.view(kind), other.view(kind))


def stored(weight: Weight, index: Index, module: object) -> tuple[Tensor, Tensor]:
    """θ in parts, written over other numbers. The reservoir has room for more."""
    geometry, like = weight.geometry, weight.theta
    outside = (geometry.units - int(index.row_ptr[-1]) + 1) * geometry.unit
    values, reservoir = like.new_full((index.cols.numel() * geometry.unit,), 7), like.new_full((outside,), 5)
    module.store(like, values, reservoir, index, geometry)  # type: ignore[attr-defined]
    return values, reservoir


@settings(deadline=None, max_examples=5, derandomize=True)
@given(weights(), st.data())
def test_a_refresh_in_parts(weight: Weight, data: st.DataObject) -> None:
    in_parts(weight, data)


@pytest.mark.long
@settings(deadline=None, max_examples=25)
@given(weights(), st.data())
def test_more_refreshes_in_parts(weight: Weight, data: st.DataObject) -> None:
    """Other weights in every run."""
    in_parts(weight, data)


def in_parts(weight: Weight, data: st.DataObject) -> None:
    """Scores, sets, index, masks; θ in parts and assembled again; a momentum that follows from one index to another."""
    geometry = weight.geometry
    if geometry.unit > 1:
        assert equal(sets.block_scores(weight.theta, geometry), weight.scores())
    index = weight.index(sets.largest, sets.build_index)
    expected_index = weight.index(selection.largest, layout.build_index)
    assert all(mine.equal(theirs) for mine, theirs in zip(index, expected_index, strict=True))
    for mine, theirs in zip(sets.index_masks(index, geometry), layout.index_masks(index, geometry), strict=True):
        assert mine.dtype == torch.bool and mine.equal(theirs)
    parts, expected = stored(weight, index, theta), stored(weight, index, plain)
    assert all(map(equal, parts, expected))
    assert equal(theta.assemble(*parts, index, geometry), weight.theta)
    bwd = torch.rand(geometry.grid) < data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    other = layout.build_index(bwd & (torch.rand(geometry.grid) < 0.5), bwd, int(bwd.sum()) + 1)
    momentum = torch.randn(parts[0].shape).to(weight.theta.dtype)
    moved = theta.follow(momentum, index, other, geometry)
    assert equal(moved, plain.follow(momentum, index, other, geometry))


def test_the_sum_of_squares_has_one_order() -> None:
    """Blocks with the same values in other orders differ in the last bit; every device sees the same one larger."""
    torch.manual_seed(0)
    geometry = Geometry((32, 16 * 64), (0, 1), 1, (32, 16))
    block = torch.randn(32, 16)
    permuted = [block.view(-1)[torch.randperm(512)].view(32, 16) for _ in range(64)]
    dense = torch.cat(permuted, 1)
    score = sets.block_scores(dense, geometry)
    assert score.unique().numel() > 1 and equal(score, selection.scores(dense, geometry.block))
    assert sets.largest(score, 9).equal(selection.largest(score, 9))


def test_what_no_kernel_moves() -> None:
    """Other dtypes, and values and reservoir of two dtypes, are left to other code."""
    geometry = Geometry((4, 4), (0, 1), 1, (1, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theta, "runs_on", lambda device: True)
        assert theta.fits(geometry, torch.zeros(4), torch.zeros(12))
        assert not theta.fits(geometry, torch.zeros(4), torch.zeros(12).double())
        assert not theta.fits(geometry, torch.zeros(4, dtype=torch.uint8))
        assert not theta.fits(geometry, torch.zeros(4, 2).t())
        assert not theta.fits(Geometry((2**16, 2**15), (0, 1), 1, (1, 1)), torch.zeros(4))
