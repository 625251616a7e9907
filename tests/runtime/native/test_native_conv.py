"""Native convolutions × layout × instruction set × odd shape against float64, with the error budget."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor, nn

import topkast
from topkast.runtime import native
from topkast.runtime.kernels.candidates import KERNELS, candidates
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.reference.products import REFERENCE, ConvArgs
from topkast.tests.runtime.native.test_native import AVAILABLE, LIBRARY
from topkast.tests.support.at_once import wrong_at_once
from topkast.tests.support.truth.product_layouts import sets, within

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the native kernels are not built")
BLOCKS = [(1, 1), (4, 1), (8, 1), (16, 1), (16, 16), (2, 1), (3, 5), (1, 4), (48, 2)]
LAST = {3: torch.contiguous_format, 4: torch.channels_last, 5: torch.channels_last_3d}
PRODUCTS = ("conv", "conv_input_grad", "conv_weight_grad")


def geometry_of(channels: int, rows: int, kernel: list[int], groups: int, transposed: bool, block: tuple[int, int]):
    """Of a convolution with that many channels, and rows of the matrix, a group."""
    if transposed:
        return Geometry((channels * groups, rows, *kernel), (1, 0, *range(2, len(kernel) + 2)), 1, block)
    return Geometry((rows * groups, channels, *kernel), tuple(range(len(kernel) + 2)), 1, block)


def run(kernel: str, x: Tensor, dy: Tensor, values: Tensor, index: Index, geometry: Geometry, bias, conv: ConvArgs):
    """The three products."""
    found = KERNELS[kernel].products
    return (
        found.conv(x, values, index, geometry, bias, conv),
        found.conv_input_grad(dy, x, values, index, geometry, conv),
        found.conv_weight_grad(dy, x, index, geometry, conv),
    )


def plain(x: Tensor, dy: Tensor, values: Tensor, index: Index, geometry: Geometry, bias, conv: ConvArgs):
    """PyTorch's own results, their sums in a random order: channels, rows and images change places."""
    groups, w = conv.groups, REFERENCE.weight(values, index, geometry)
    first = torch.randperm(w.shape[0] // groups)
    second, images = torch.randperm(w.shape[1]), torch.randperm(x.shape[0])
    rows = torch.cat([first + g * first.numel() for g in range(groups)])
    cols = torch.cat([second + g * second.numel() for g in range(groups)])
    of_x, of_y = (rows, cols) if conv.transposed else (cols, rows)
    xs, dys, ws = x[:, of_x], dy[:, of_y], w[rows][:, second]
    b = None if bias is None else bias[of_y]
    backward = torch.ops.aten.convolution_backward
    y, dx = torch.ops.aten.convolution(xs, ws, b, *conv), backward(dys, xs, ws, None, *conv, [True, False, False])[0]
    dw = backward(dy[images], x[images], w, None, *conv, [False, True, False])[1]
    return y[:, of_y.argsort()], dx[:, of_x.argsort()], REFERENCE.weight_grad(dw, index, geometry)


def check(
    x: Tensor, geometry: Geometry, index: Index, conv: ConvArgs, dtype: torch.dtype, last: bool, bias: bool, where: str
) -> None:
    slots = index.cols.numel() * geometry.unit
    x, values = x.to(dtype), torch.randn(slots).to(dtype)
    if last:
        x = x.contiguous(memory_format=LAST[x.dim()])
    b = torch.randn(geometry.rows * conv.groups if conv.transposed else geometry.rows).to(dtype) if bias else None
    y = REFERENCE.conv(x, values, index, geometry, b, conv)
    dy = torch.randn_like(y)
    doubles = (x.double(), dy.double(), values.double(), index, geometry, None if b is None else b.double(), conv)
    truth = run("reference", *doubles)
    plains = [plain(x, dy, values, index, geometry, b, conv) for _ in range(4)]
    ours = run("native", x, dy, values, index, geometry, b, conv)
    strides = y.stride(), REFERENCE.conv_input_grad(dy, x, values, index, geometry, conv).stride()
    assert (ours[0].stride(), ours[1].stride()) == strides, f"{where}: not in the strides that the op promises"
    for k, product in enumerate(PRODUCTS):
        within(ours[k], [p[k] for p in plains], truth[k], f"{product} {where}")
    assert ours[2][int(index.row_ptr[-1]) * geometry.unit :].eq(0).all(), "unused slots"


@pytest.mark.long
@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.data())
def test_fuzz(data: st.DataObject) -> None:
    draw = data.draw
    dims, transposed, groups = (
        draw(st.sampled_from([1, 2, 2, 3])),
        draw(st.booleans()),
        draw(st.sampled_from([1, 1, 2, 3])),
    )
    kernel, stride, dilation = (draw(st.lists(st.integers(1, 3), min_size=dims, max_size=dims)) for _ in range(3))
    padding, size = (draw(st.lists(st.integers(*n), min_size=dims, max_size=dims)) for n in ((0, 2), (1, 9)))
    extra = [draw(st.integers(0, max(s, d) - 1)) if transposed else 0 for s, d in zip(stride, dilation, strict=True)]
    block, channels = draw(st.sampled_from(BLOCKS)), draw(st.integers(1, 20))
    rows = draw(st.integers(1, 40)) if groups == 1 or transposed else block[0] * draw(st.integers(1, 3))
    batch, last = draw(st.sampled_from([1, 3, 16, 17, 33, 70])), draw(st.booleans())
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    shares = sorted((draw(st.floats(0, 1)), draw(st.floats(0, 1))))
    spare, wide, bias, isa = (
        draw(st.integers(0, 3)),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from(AVAILABLE)),
    )
    spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if transposed:
        out = [
            (n - 1) * s - 2 * p + e + o + 1 for n, s, p, e, o in zip(size, stride, padding, spans, extra, strict=True)
        ]
        assume(min(out) > 0)
    else:
        assume(all(n + 2 * p > e for n, p, e in zip(size, padding, spans, strict=True)))
    torch.manual_seed(batch * channels + rows)
    geometry = geometry_of(channels, rows, kernel, groups, transposed, block)
    conv = ConvArgs(stride, padding, dilation, transposed, extra, groups)
    index = sets(geometry, shares[0], shares[1], spare, wide)
    x = torch.randn(batch, channels * groups, *size)
    assert candidates("conv", x, geometry, conv)[0] == "native"
    assert LIBRARY is not None
    LIBRARY.tk_set_isa(native.ISAS.index(isa))
    try:
        check(x, geometry, index, conv, dtype, last, bias, f"{tuple(x.shape)} {geometry} {conv} {dtype} {isa}")
    finally:
        LIBRARY.tk_set_isa(LIBRARY.tk_isa_best())


PLAIN = ConvArgs([1, 1], [1, 1], [1, 1], False, [0, 0], 1)


@pytest.mark.parametrize("how", ["images apart", "channels apart", "expanded", "positions swapped"])
def test_any_strides(how: str) -> None:
    geometry = Geometry((24, 7, 3, 3), (0, 1, 2, 3), 1, (4, 1))
    index = sets(geometry, 0.2, 0.5)
    x = torch.randn(18, 7, 6, 5)
    x = {
        "images apart": torch.stack([x, x + 1], 1)[:, 0],
        "channels apart": torch.stack([x, x + 1], 2)[:, :, 0],
        "expanded": x[:1].expand(18, 7, 6, 5),
        "positions swapped": x.mT.contiguous().mT,
    }[how]
    check(x, geometry, index, PLAIN, torch.float32, False, True, how)


@pytest.mark.parametrize(
    "shape, batch, size, block",
    [
        ((210, 40, 3, 3), 40, (9, 8), (16, 1)),
        ((210, 40, 3, 3), 130, (9, 8), (1, 1)),
        ((40, 1500, 1, 1), 32, (3, 3), (8, 1)),
        ((600, 300, 3, 3), 8, (2, 3), (4, 2)),
    ],
)
def test_many_tiles(shape: tuple[int, ...], batch: int, size: tuple[int, int], block: tuple[int, int]) -> None:
    """Several tasks of rows, of positions and of channels; more images than one tile; sums of many pieces."""
    geometry = Geometry(shape, (0, 1, 2, 3), 1, block)
    padding = [(k - 1) // 2 for k in shape[2:]]
    conv, x = PLAIN._replace(padding=padding), torch.randn(batch, shape[1], *size)
    check(x, geometry, sets(geometry, 0.1, 0.2), conv, torch.float32, False, True, f"{shape} {batch} {block}")


def test_nothing_in_nothing_out() -> None:
    geometry = Geometry((8, 4, 3, 3), (0, 1, 2, 3), 1, (4, 1))
    index = sets(geometry, 0.2, 0.5)
    x, values = torch.randn(0, 4, 5, 5), torch.randn(index.cols.numel() * 4)
    y, dx, dw = run("native", x, torch.randn(0, 8, 5, 5), values, index, geometry, None, PLAIN)
    assert (y.shape, dx.shape) == ((0, 8, 5, 5), x.shape) and dw.eq(0).all() and dw.numel() == values.numel()


def test_a_kernel_larger_than_the_image_is_refused_as_by_torch() -> None:
    geometry = Geometry((8, 4, 5, 5), (0, 1, 2, 3), 1, (4, 1))
    index = sets(geometry, 0.2, 0.5)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        KERNELS["native"].products.conv(
            torch.randn(2, 4, 2, 2), torch.randn(index.cols.numel() * 4), index, geometry, None, PLAIN
        )


def test_what_does_not_fit_is_left_to_others() -> None:
    x = torch.ones(2, 12, 6, 6)
    grouped = ConvArgs([1, 1], [1, 1], [1, 1], False, [0, 0], 2)
    across = Geometry((12, 6, 3, 3), (0, 1, 2, 3), 1, (4, 1))  # 6 rows a group
    assert "native" not in candidates("conv", x, across, grouped)
    assert "native" in candidates("conv", x, Geometry((16, 6, 3, 3), (0, 1, 2, 3), 1, (4, 1)), grouped)
    assert "native" not in candidates("conv", x, Geometry((200, 12, 3, 3), (0, 1, 2, 3), 1, (128, 1)), PLAIN)
    assert "native" not in candidates("conv", x, Geometry((16, 12, 3, 3), (1, 0, 2, 3), 1, (4, 1)), PLAIN)
    assert candidates("conv", x.double(), Geometry((16, 12, 3, 3), (0, 1, 2, 3), 1, (4, 1)), PLAIN) == ["reference"]


@pytest.mark.parametrize("transposed", [False, True])
def test_threads_change_nothing(transposed: bool) -> None:
    """Every sum is made by one thread in a fixed order: any number of threads gives the same bits."""
    geometry = geometry_of(24, 32, [3, 3], 2, transposed, (4, 1))
    conv = ConvArgs([2, 1], [1, 1], [1, 2], transposed, [0, 0], 2)
    index = sets(geometry, 0.2, 0.4)
    values, x = torch.randn(index.cols.numel() * 4), torch.randn(37, 48, 9, 7)
    dy = torch.randn_like(REFERENCE.conv(x, values, index, geometry, None, conv))
    alone = run("native", x, dy, values, index, geometry, None, conv)
    try:
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert native.parallel().threads == threads
            together = run("native", x, dy, values, index, geometry, None, conv)
            assert all(a.equal(b) for a, b in zip(alone, together, strict=True))
    finally:
        torch.set_num_threads(1)


def test_concurrent_calls() -> None:
    """Several Python threads at once, each with its own scratch."""
    geometry = Geometry((32, 12, 3, 3), (0, 1, 2, 3), 1, (1, 1))
    index = sets(geometry, 0.2, 0.4)
    values = torch.randn(index.cols.numel())
    inputs = [(torch.randn(20 + i, 12, 6, 6), torch.randn(20 + i, 32, 6, 6)) for i in range(4)]
    expected = [run("native", *pair, values, index, geometry, None, PLAIN) for pair in inputs]

    def right(i: int) -> bool:
        found = run("native", *inputs[i], values, index, geometry, None, PLAIN)
        return all(a.equal(b) for a, b in zip(found, expected[i], strict=True))

    assert not wrong_at_once(4, 10, right)


def test_a_refusal_reaches_the_report() -> None:
    model = nn.Conv2d(12, 12, 3, groups=2)
    model = topkast.compile(model, 0.8, 0.6, block=(4, 1), backend="aot_eager", min_size=20, include="weight")
    model(torch.randn(2, 12, 6, 6)).sum().backward()
    found = topkast.report(model)
    assert (
        "native kernel: blocks of 4 rows cross the border of groups of 6 rows"
        in found.passes["ChooseKernel"]["refusals"]
    )
    assert {kernel for ran in found.sites[0]["fused"].values() for kernel in ran} == {"dense"}


def test_compiled_with_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor trusts the strides that the ops promise."""
    monkeypatch.setenv("TOPKAST_KERNEL", "native")
    torch.manual_seed(0)
    build = lambda: nn.Sequential(nn.Conv2d(8, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 8, 3, stride=2))  # noqa: E731
    found = []
    for backend in ("eager", "inductor"):
        torch.manual_seed(0)
        built: Any = build()
        model = topkast.compile(built.to(memory_format=torch.channels_last), 0.8, 0.6, backend=backend, min_size=20)
        x = torch.randn(17, 8, 9, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
        model(x).square().sum().backward()
        found.append([x.grad, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(found[0], found[1])
