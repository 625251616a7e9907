"""Programs that share one sum of the weight gradient: the sum of their parts, always in the same order."""

from __future__ import annotations

import pytest
import torch

from topkast.runtime.layout import Geometry
from topkast.runtime.triton import products
from topkast.tests.runtime.native.test_native import check, sets
from topkast.tests.support.interpreted import INTERPRETED

pytestmark = INTERPRETED


@pytest.mark.parametrize("programs, m, splits", [
    (32, 8192, 4), (16, 8192, 8), (16, 4096, 4), (129, 8192, 1), (0, 8192, 8), (64, 8192, 1), (1, 900, 1),
])  # fmt: skip
def test_sums_are_shared_until_the_gpu_is_full(programs: int, m: int, splits: int) -> None:
    assert products.programs_a_sum(programs, m) == splits


@pytest.mark.parametrize("block, dtype", [
    ((16, 16), torch.bfloat16), ((32, 64), torch.float16), ((128, 16), torch.float32), ((48, 16), torch.float16),
], ids=str)  # fmt: skip
def test_shared_sums_are_right(monkeypatch: pytest.MonkeyPatch, block: tuple[int, int], dtype: torch.dtype) -> None:
    """With unused slots, rows that no part divides, and a part without rows of its own."""
    monkeypatch.setattr(products, "SPLIT_ROWS", 8)
    geometry = Geometry((3 * block[0] - 5, 2 * block[1] + 3), (0, 1), 1, block)
    index = sets(geometry, 0.4, 0.7, 3)
    for m, how in [(33, "cut"), (130, "transposed")]:
        check(m, geometry, index, dtype, how, True, "triton")
    dy, x = torch.randn(130, geometry.rows).to(dtype), torch.randn(130, geometry.cols).to(dtype)
    first, again = (products.sddmm(dy, x, index, geometry) for _ in range(2))
    assert torch.equal(first, again)
    monkeypatch.setattr(products, "SPLITS", ())
    whole = products.sddmm(dy, x, index, geometry)
    assert first.dtype == dtype and not first[int(index.row_ptr[-1]) * geometry.unit :].any()
    torch.testing.assert_close(first, whole)
