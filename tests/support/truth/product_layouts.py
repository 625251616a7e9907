"""Products in every layout against float64, with the error budget: shapes, strides, blocks, sets."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import torch
from torch import Tensor

from topkast.runtime.kernels.candidates import KERNELS
from topkast.runtime.layout import Geometry, Index, build_index
from topkast.runtime.reference.products import REFERENCE
from topkast.runtime.triton import interpreted
from topkast.tests.support.truth.budget import tally

BLOCKS = [(1, 1), (4, 1), (8, 1), (16, 1), (16, 16), (32, 32), (64, 64), (2, 1), (3, 5), (1, 4), (5, 1), (48, 2)]

# Rows of activations, whether columns take four bytes, strides, bias: one row to several tiles and chunks.
LAYOUTS = [
    (1, False, "plain", True),
    (7, True, "cut", False),
    (33, False, "transposed", True),
    (300, False, "plain", False),
    (129, True, "plain", True),
]
# What a random product has: see `check_drawn`.
DRAWN = st.tuples(
    st.integers(1, 90), st.integers(1, 70), st.integers(1, 90), st.sampled_from(BLOCKS),
    st.floats(0, 1), st.floats(0, 1), st.integers(0, 3), st.booleans(), st.booleans(),
    st.sampled_from(["plain", "transposed", "cut"]), st.booleans(),
)  # fmt: skip


def sets(geometry: Geometry, fwd: float, bwd: float, spare: int = 0, wide: bool = False) -> Index:
    """Random nested sets; the first block row is empty and the last is full where there is more than one."""
    score = torch.rand(geometry.grid)
    if geometry.grid[0] > 1:
        score[0], score[-1] = 2, -1
    b = score < bwd
    index = build_index(score < fwd, b, int(b.sum()) + spare)
    return Index(index.row_ptr, index.row_fwd, index.cols.to(torch.int32)) if wide else index


def within(ours: Tensor, plains: list[Tensor], truth: Tensor, where: str) -> None:
    """Promise 1; plain PyTorch's own error is the largest over a few orders of its sum, as one order may be lucky."""
    assert ours.shape == truth.shape and ours.dtype == plains[0].dtype, where
    if ours.numel() == 0:
        return
    error, own = (ours - truth).abs().max().item(), max((p - truth).abs().max().item() for p in plains)
    budget = 2 * own + torch.finfo(ours.dtype).eps * truth.abs().max().item()
    share = 0.0 if error == 0 else error / budget if budget else float("inf")
    tally(1, share, where)
    assert share <= 1, f"{where}: error {error:.3g} is {share:.2f} of its budget (plain PyTorch's: {own:.3g})"


def within_each(found: Tensor, truth: Tensor, budget: Tensor, where: str) -> None:
    """Promise 1 for a sum of products, number by number: no result may be further off than its own terms allow."""
    assert found.shape == truth.shape, where
    if found.numel() == 0:
        return
    shares = (found - truth).abs() / budget.where(budget > 0, 1)
    share = shares.max().item()
    tally(1, share, where)
    assert share <= 1, f"{where}: number {int(shares.argmax())} is {share:.2f} of its budget off"


def strided(tensor: Tensor, how: str) -> Tensor:
    """The same numbers in other strides."""
    if how == "transposed":
        return tensor.mT.contiguous().mT
    if how == "cut":
        return torch.stack([tensor, tensor + 1], -1)[..., 0]
    return tensor


def check(m: int, geometry: Geometry, index: Index, dtype: torch.dtype, how: str, bias: bool, kernel: str) -> None:
    run = KERNELS[kernel].products
    slots = index.cols.numel()
    values, x, dy = torch.randn(slots * geometry.unit), torch.randn(m, geometry.cols), torch.randn(m, geometry.rows)
    b = torch.randn(geometry.rows).to(dtype) if bias else None
    values, x, dy = values.to(dtype), strided(x.to(dtype), how), strided(dy.to(dtype), how)
    exact = REFERENCE.matrix(values.double(), index, geometry)

    def at_b(dense: Tensor) -> Tensor:
        return REFERENCE.weight_grad(dense.reshape(geometry.permuted).permute(geometry.inverse), index, geometry)

    shift = 0 if b is None else b.double()
    left, right, low = x.double(), dy.double(), torch.finfo(dtype)
    # Triton's interpreter cuts off the bits that bfloat16 does not hold. A GPU and native code round.
    cut = dtype == torch.bfloat16 and kernel != "native" and interpreted()
    ours = (
        run.spmm(x, values, index, geometry, b),
        run.spmm_t(dy, values, index, geometry),
        run.sddmm(dy, x, index, geometry),
    )
    for k, (one, other, extra) in enumerate(((left, exact.t(), shift), (right, exact, 0), (right.t(), left, 0))):
        product, size = one @ other, one.abs() @ other.abs()
        terms = (one != 0).double() @ (other != 0).double()
        # Half a rounding of float32 for the product, for the bias, and for as many partial sums as a random walk adds
        # up to; half a rounding of the result, twice where a bias is added to a rounded product; what float32 and the
        # result's dtype cannot hold at all. Of 500 random products plain PyTorch's largest error is .72 of this in
        # float32, .998 in the others.
        truth, rounded = product + extra, (product + extra).abs() + (product.abs() if k == 0 and bias else 0)
        sums = 2**-24 * (2 + terms.sqrt()) * (size + abs(extra)) + torch.finfo(torch.float32).tiny
        budget = sums + low.eps / (1 if cut else 2) * (rounded + low.tiny)
        if k == 2:
            truth, budget = at_b(truth), at_b(budget)
        where = f"{kernel} {('spmm', 'spmm_t', 'sddmm')[k]} m={m} {geometry} {dtype} {how}"
        within_each(ours[k], truth, budget, where)
    assert ours[2][int(index.row_ptr[-1]) * geometry.unit :].eq(0).all(), "unused slots"


def check_layouts(block: tuple[int, int], dtype: torch.dtype, kernel: str) -> None:
    """Sizes that are a multiple of nothing, all strides, both widths of columns, empty and full rows."""
    for m, wide, how, bias in LAYOUTS:
        geometry = Geometry((131, 203), (0, 1), 1, block)
        check(m, geometry, sets(geometry, 0.1, 0.3, 2, wide), dtype, how, bias, kernel)


def check_drawn(drawn: tuple[Any, ...], dtype: torch.dtype, kernels: tuple[str, ...]) -> None:
    m, rows, cols, block, share_a, share_b, spare, wide, swap, how, bias = drawn
    torch.manual_seed(m * rows + cols)
    shape, perm = ((cols, rows), (1, 0)) if swap else ((rows, cols), (0, 1))
    geometry = Geometry(shape, perm, 1, block)
    index = sets(geometry, min(share_a, share_b), max(share_a, share_b), spare, wide)
    for kernel in kernels:
        check(m, geometry, index, dtype, how, bias, kernel)
