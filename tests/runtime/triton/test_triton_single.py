"""The CUDA kernels for single weights, in the interpreter: those that walk them, and dense on a transient weight."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch.utils._python_dispatch import TorchDispatchMode

from topkast.runtime.layout import Geometry
from topkast.runtime.reference.products import REFERENCE
from topkast.runtime.triton import transient
from topkast.tests.support.interpreted import DTYPES, INTERPRETED
from topkast.tests.support.truth.product_layouts import check, sets

pytestmark = INTERPRETED


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(53, 41), (41, 53), (1, 300), (300, 1)], ids=str)
def test_single_weights(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Sizes of tiles, all strides, both widths of columns, empty and full rows, unused slots, hardly any weights."""
    geometry = Geometry(shape, (1, 0) if shape == (41, 53) else (0, 1), 1, (1, 1))
    for m, wide, how, bias, share in [
        (1, False, "plain", True, 0.3), (37, True, "cut", False, 0.02), (130, False, "transposed", True, 0.1)
    ]:  # fmt: skip
        check(m, geometry, sets(geometry, share, 2 * share, 2, wide), dtype, how, bias, "csr")


@pytest.mark.long
@settings(deadline=None, max_examples=8, derandomize=True)
@given(
    st.integers(0, 70), st.integers(1, 60), st.integers(1, 60), st.floats(0, 1), st.floats(0, 1), st.integers(0, 3),
    st.sampled_from(["plain", "transposed", "cut"]), st.sampled_from(DTYPES), st.booleans(),
)  # fmt: skip
def test_fuzz_of_single_weights(m, rows, cols, share_a, share_b, spare, how, dtype, bias):
    torch.manual_seed(m * rows + cols)
    geometry = Geometry((rows, cols), (0, 1), 1, (1, 1))
    index = sets(geometry, min(share_a, share_b), max(share_a, share_b), spare)
    check(m, geometry, index, dtype, how, bias, "csr")


@pytest.mark.parametrize("perm", [(0, 1, 2, 3), (1, 0, 2, 3)])
@pytest.mark.parametrize("block", [(1, 1), (4, 3), (16, 16)])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_scatter_and_gather_are_bitwise(perm: tuple[int, ...], block: tuple[int, int], dtype: torch.dtype) -> None:
    geometry = Geometry((6, 5, 3, 3), perm, 1, block)
    index = sets(geometry, 0.3, 0.6, 2)
    values = torch.randn(index.cols.numel() * geometry.unit).to(dtype)
    grad = torch.randn(3, 3, 5, 6).permute(3, 2, 0, 1).to(dtype)
    assert transient.weight(values, index, geometry).equal(REFERENCE.weight(values, index, geometry))
    assert transient.weight_grad(grad, index, geometry).equal(REFERENCE.weight_grad(grad, index, geometry))


class Products(TorchDispatchMode):
    """Notes how many rows every product of matrices has."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.default:
            self.rows.append(found.shape[0])
        return found


@pytest.mark.long
@pytest.mark.parametrize("block", [(1, 1), (4, 1), (1, 8)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_transient_products(block: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transient, "CHUNK", 16)
    geometry = Geometry((53, 41), (0, 1), 1, block)
    with Products() as seen:
        transient.TRANSIENT.sddmm(torch.randn(7, 53), torch.randn(7, 41), sets(geometry, 0.2, 0.5), geometry)
    assert seen.rows == [16, 16, 16, 5]
    check(9, geometry, sets(geometry, 0.2, 0.5, 3), dtype, "plain", True, "transient")
