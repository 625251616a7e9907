"""Products of a known layout give the bits of the products that look at their tensors, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import topkast
from topkast.runtime.layout import Geometry
from topkast.runtime.native import prepared, products
from topkast.runtime.native.prepared import KINDS, Layout, run
from topkast.tests.runtime.native.test_native import LIBRARY, isa  # noqa: F401
from topkast.tests.support.truth.product_layouts import BLOCKS, sets, strided

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the native kernels are not built")


def seen(tensor: Tensor) -> tuple[int, int, int, int]:
    """Activations as a layout has them."""
    if tensor.dim() == 3:
        return tensor.shape[1], 0, 0, tensor.shape[2]
    return tensor.shape[1], tensor.stride(0), tensor.stride(1), 0


def layout(kind: str, m: int, index: topkast.runtime.layout.Index, g: Geometry, *both: Tensor, act: int = 0) -> str:
    size = index.cols.element_size()
    numbers = (g.rows, g.cols, index.cols.numel(), *g.block, size, m)
    return Layout(KINDS.index(kind), *numbers, seen(both[0]), seen(both[1]), act).text()


@pytest.mark.parametrize("block", BLOCKS)
def test_the_same_bits(isa: str, block: tuple[int, int]) -> None:  # noqa: F811
    for m, rows, cols, fwd, wide, how in [
        (1, 40, 30, 0.2, False, "plain"),
        (33, 70, 90, 0.2, True, "transposed"),
        (300, 270, 210, 0.3, False, "cut"),
        (300, 600, 97, 0.45, True, "plain"),
    ]:
        g = Geometry((rows, cols), (0, 1), 1, block)
        index = sets(g, fwd, 0.5, 3, wide)
        values, bias = torch.randn(index.cols.numel() * g.unit), torch.randn(rows)
        x, dy = strided(torch.randn(m, cols), how), strided(torch.randn(m, rows), how)
        y, dx, dw = torch.empty(m, rows), torch.empty(m, cols), torch.empty_like(values)
        run(layout("spmm", m, index, g, x, y, act=1), x, y, values, *index, bias)
        run(layout("spmm_t", m, index, g, dy, dx), dy, dx, values, *index)
        run(layout("sddmm", m, index, g, dy, x), dy, x, dw, *index)
        assert torch.equal(y, products.spmm(x, values, index, g, bias, act="relu"))
        assert torch.equal(dx, products.spmm_t(dy, values, index, g))
        assert torch.equal(dw, products.sddmm(dy, x, index, g))


@pytest.mark.parametrize("block", [(1, 1), (16, 1), (16, 16)])
def test_the_same_bits_on_tiles(isa: str, block: tuple[int, int]) -> None:  # noqa: F811
    g = Geometry((80, 96), (0, 1), 1, block)
    index, width = sets(g, 0.2, 0.5), products.width(g)
    values, m = torch.randn(index.cols.numel() * g.unit), 3 * width
    x, dy = products.pack(torch.randn(m, 96), width), products.pack(torch.randn(m, 80), width)
    y, dx, dw = torch.empty(3, 80, width), torch.empty(3, 96, width), torch.empty_like(values)
    run(layout("spmm", m, index, g, x, y), x, y, values, *index)
    run(layout("spmm_t", m, index, g, dy, dx), dy, dx, values, *index)
    run(layout("sddmm", m, index, g, dy, x), dy, x, dw, *index)
    both = (width, width)
    assert torch.equal(y, products.spmm(x, values, index, g, None, both))
    assert torch.equal(dx, products.spmm_t(dy, values, index, g, both))
    assert torch.equal(dw, products.sddmm(dy, x, index, g, both))


def test_scratch_is_enough_for_any_set() -> None:
    """A prepared product asks for its scratch once. How many of the slots are A's changes later."""
    for rows, cols, block in [(270, 210, (1, 1)), (600, 97, (1, 1)), (64, 96, (16, 1)), (33, 70, (3, 5))]:
        g = Geometry((rows, cols), (0, 1), 1, block)
        for fwd in (0.01, 0.3, 0.49, 0.95):
            index = sets(g, fwd, 0.96)
            w, keep = products.matrix(None, index, g)
            for m in (1, 127, 128, 256, 600):
                for kind in KINDS:
                    n = g.rows if kind == "spmm_t" else g.cols
                    ready = prepared._Prepared(layout(kind, m, index, g, torch.empty(m, n), torch.empty(m, 1)))
                    asked = (LIBRARY.tk_spmm_t_workspace if kind == "spmm_t" else LIBRARY.tk_workspace)(w, m)
                    assert ready.floats >= asked or kind == "sddmm", (g, fwd, m, kind)
            del keep


def test_an_index_that_ends_after_its_slots_is_refused() -> None:
    g = Geometry((20, 30), (0, 1), 1, (1, 1))
    index = sets(g, 0.2, 0.5)
    values, x, y = torch.randn(index.cols.numel()), torch.randn(8, 30), torch.full((8, 20), 7.0)
    text = layout("spmm", 8, index, g, x, y)
    index.row_ptr[-1] += 1
    with pytest.raises(topkast.OperandError, match="row_ptr: it ends after the slots that cols has"):
        run(text, x, y, values, *index)
    assert y.eq(7).all()


def test_tiles_of_another_instruction_set_are_refused() -> None:
    g = Geometry((96, 64), (0, 1), 1, (16, 1))
    index, width = sets(g, 0.2, 0.5), products.width(g)
    values, x, y = torch.randn(index.cols.numel() * 16), torch.randn(2, 64, 2 * width), torch.empty(4 * width, 96)
    with pytest.raises(topkast.ConfigError, match="take tiles of another width; compile again"):
        run(layout("spmm", 4 * width, index, g, x, y), x, y, values, *index)
