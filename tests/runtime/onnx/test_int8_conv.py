"""topkast.SparseConvPerImageInt8: the bits of the reference on each instruction set, and hostile files."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from topkast.runtime import native
from topkast.runtime.reference.int8 import conv_int8
from topkast.tests.runtime.native.test_native import AVAILABLE, BLOCKS
from topkast.tests.runtime.onnx.test_int8 import ACTIVATIONS, SETS, Parts, node_file, parts, random_weight, use
from topkast.tests.support.at_once import wrong_at_once
from topkast.tests.support.models.drawn_windows import drawn_window
from topkast.tests.support.models.product_files import session

pytestmark = pytest.mark.skipif(native.path() is None, reason="the ONNX Runtime library is not built")


@pytest.fixture(autouse=True)
def best_again() -> Any:
    yield
    use(AVAILABLE[-1])


def window(kernel: list[int], **given: Any) -> dict[str, Any]:
    """The attributes of a convolution; what is not given is as in ONNX."""
    ones = [1] * len(kernel)
    plain: dict[str, Any] = {"strides": ones, "pads": [0, 0] * len(kernel), "dilations": ones, "group": 1}
    return {"kernel_shape": kernel} | plain | given


class Case:
    """A weight, and a session of one node with it."""

    def __init__(
        self,
        rows: int,
        channels: int,
        block: tuple[int, int],
        shape: dict[str, Any],
        density: float = 0.3,
        act: str = "",
        threads: int = 1,
        wide: bool = False,
        biased: bool = True,
        value: int | None = None,
    ) -> None:
        columns = channels * int(np.prod(shape["kernel_shape"]))
        self.weight, self.shape, self.act = random_weight(rows, columns, block, density, columns), shape, act
        if value is not None:
            self.weight[:] = value
        self.given = parts(self.weight, block, wide, biased)
        size: dict[str, Any] = {"rows": rows, "columns": columns, "block": list(block)}
        self.session = session(node_file(f"SparseConvPerImageInt8{act}", self.given, **size, **shape), threads)
        self.channels = channels * shape["group"]

    def images(self, batch: int, size: tuple[int, ...], seed: int = 0) -> Tensor:
        return torch.randn(batch, self.channels, *size, generator=torch.Generator().manual_seed(seed))

    def run(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.session.run(None, {"x": x.numpy()})[0])

    def expected(self, x: Tensor) -> Tensor:
        bias = torch.from_numpy(self.given["bias"]) if "bias" in self.given else None
        weight = torch.from_numpy(self.weight).reshape(len(self.weight), -1, *self.shape["kernel_shape"])
        rest = (self.shape[name] for name in ("strides", "pads", "dilations", "group"))
        return ACTIVATIONS[self.act](conv_int8(x, weight, torch.from_numpy(self.given["scale"]), bias, *rest))

    def check(self, x: Tensor) -> None:
        y, truth = self.run(x), self.expected(x)
        assert y.shape == truth.shape and np.array_equal(y, truth, equal_nan=True), f"{self.shape} {tuple(x.shape)}"


SHAPES: list[tuple[dict[str, Any], tuple[int, ...], int]] = [
    (window([3, 3], pads=[1] * 4), (13, 17), 3),
    (window([3, 3], pads=[1] * 4, strides=[2, 2]), (56, 35), 1),
    (window([2, 3], pads=[1, 0, 2, 3], strides=[2, 1], dilations=[1, 2]), (9, 33), 2),
    (window([1, 1], strides=[2, 2]), (7, 7), 9),
    (window([1, 1], pads=[1, 0, 0, 2]), (8, 5), 2),
    (window([1, 1]), (20, 17), 2),
    (window([5], pads=[4, 4], strides=[3]), (40,), 2),
    (window([2, 2, 3], pads=[0, 1, 1, 1, 0, 0], strides=[2, 2, 1], dilations=[1, 1, 2]), (7, 7, 6), 2),
    (window([7, 7], pads=[3] * 4, strides=[2, 2]), (3, 4), 17),
    (window([3], pads=[1, 1]), (5,), 0),
]


@SETS
@pytest.mark.parametrize("block", BLOCKS)
def test_every_block(isa: str, block: tuple[int, int]) -> None:
    use(isa)
    for i, (shape, size, batch) in enumerate(SHAPES):
        case = Case(70, 9, block, shape, biased=i % 3 > 0, wide=i % 2 > 0)
        case.check(case.images(batch, size))


@SETS
@pytest.mark.parametrize("groups", [2, 3])
def test_groups(isa: str, groups: int) -> None:
    use(isa)
    for block in [(1, 1), (4, 1), (16, 1), (32, 32), (5, 2)]:
        shape = window([3, 2], pads=[1, 1, 0, 0], group=groups)
        for batch, size in [(1, (20, 19)), (5, (4, 6))]:
            case = Case(2 * block[0] * groups, 7, block, shape)
            case.check(case.images(batch, size))


@pytest.mark.long
@settings(deadline=None, max_examples=150, derandomize=True)
@given(st.data())
def test_fuzz(data: st.DataObject) -> None:
    draw = data.draw
    shape, size = drawn_window(draw, {1: 300, 2: 40, 3: 9})
    block = draw(st.sampled_from([*BLOCKS, (12, 1), (7, 2), (64, 2)]))
    rows = draw(st.integers(1, 90)) if shape["group"] == 1 else block[0] * shape["group"]
    use(draw(st.sampled_from(AVAILABLE)))
    case = Case(
        rows,
        draw(st.integers(1, 20)),
        block,
        shape,
        draw(st.floats(0, 1)),
        draw(st.sampled_from(["", "Relu", "Relu6"])),
        draw(st.sampled_from([1, 2])),
        draw(st.booleans()),
        draw(st.booleans()),
    )
    case.check(case.images(draw(st.sampled_from([1, 1, 2, 8, 17])), tuple(size)))


@SETS
@pytest.mark.parametrize("block", [(1, 1), (16, 1), (32, 32)])
def test_nothing_saturates(isa: str, block: tuple[int, int]) -> None:
    """The largest products there are, all of one sign: their sums come near 2^31."""
    use(isa)
    for value in (-128, 127):
        case = Case(32, 7310, block, window([3, 3], pads=[1] * 4), wide=True, value=value)
        for sign in (1, -1):
            case.check(torch.full((1, 7310, 2, 3), float(sign)))


@SETS
def test_an_image_that_is_not_finite_gives_nan_and_harms_no_other(isa: str) -> None:
    use(isa)
    for block in [(1, 1), (16, 1)]:
        case = Case(48, 10, block, window([3, 3], pads=[1] * 4, strides=[2, 1]))
        for bad in ([np.nan], [-np.nan], [np.inf], [-np.inf], [3e38, -3e38], [np.inf, np.nan]):
            for at in (0, 77, 10 * 63 - 2):
                x = case.images(4, (7, 9))
                x[2].view(-1)[at : at + len(bad)] = torch.tensor(bad)
                case.check(x)
                y = case.run(x)
                assert y[2].isnan().all() and y[[0, 1, 3]].isfinite().all()


def test_images_of_very_different_sizes() -> None:
    """Each image has its own scale; the numbers of some are zero, almost zero, of one sign, or far from zero."""
    case = Case(33, 6, (4, 1), window([3, 3], pads=[1] * 4))
    x = case.images(8, (5, 5))
    x[1], x[2], x[3], x[4] = 0, x[2] * 1e-43, x[3].abs(), -x[4].abs()
    x[5], x[6], x[7] = x[5] * 1e36, x[6] * 1e-3 + 100, x[7] * 1e-20
    case.check(x)


def test_activations() -> None:
    for act in ACTIVATIONS:
        case = Case(40, 8, (16, 1), window([3, 3], pads=[1] * 4), act=act)
        x = case.images(2, (9, 9)) / 100
        torch.testing.assert_close(case.run(x), case.expected(x), rtol=1e-5, atol=1e-5)


def test_threads_and_calls_at_once_change_nothing() -> None:
    case = Case(96, 20, (16, 1), window([3, 3], pads=[1] * 4), threads=2)
    inputs = [case.images(1 + 3 * i, (9 + 8 * i, 20), i) for i in range(4)]
    truths = [case.expected(x) for x in inputs]
    assert not wrong_at_once(4, 10, lambda i: torch.equal(case.run(inputs[i]), truths[i]))


GOOD = parts(random_weight(8, 18, (4, 1), 0.5), (4, 1))
SHAPE: dict[str, Any] = {"rows": 8, "columns": 18, "block": [4, 1]} | window([3, 3], pads=[1] * 4, group=2)


@pytest.mark.parametrize(
    "message, tensors, attributes, x",
    [
        (r"cols\[0\] is 18", {"cols": np.full_like(GOOD["cols"], 18)}, {}, (1, 4, 6, 6)),
        ("values must be int8", {"values": GOOD["values"].astype(np.float32)}, {}, (1, 4, 6, 6)),
        (r"scale must be float \[8\]", {"scale": GOOD["scale"][:-1]}, {}, (1, 4, 6, 6)),
        ("kernel_shape must hold 1 to 3", {}, {"kernel_shape": None}, (1, 4, 6, 6)),
        ("strides holds 0", {}, {"strides": [0, 1]}, (1, 4, 6, 6)),
        ("pads holds -1", {}, {"pads": [-1, 0, 0, 0]}, (1, 4, 6, 6)),
        ("group is 3", {}, {"group": 3}, (1, 4, 6, 6)),
        ("cross the border of groups of 2", {}, {"group": 4}, (1, 4, 6, 6)),
        ("no multiple of the kernel's taps", {}, {"kernel_shape": [2**31 - 1] * 2}, (1, 4, 6, 6)),
        (r"x must be float \[batch, 4", {}, {}, (1, 5, 6, 6)),
        (r"x must be float \[batch, 4", {}, {}, ()),
        ("smaller than the kernel", {}, {"dilations": [2**31 - 1, 1]}, (1, 4, 6, 6)),
        ("2\\^31 floats or more", {}, {"pads": [2**31 - 1] * 4}, (0, 4, 6, 6)),
        ("more than 64 times as many", {}, {"pads": [2**11] * 4}, (1, 4, 6, 6)),
        ("more than 64 times as many", {}, {"pads": [2**12] * 4, "dilations": [2**11] * 2}, (0, 4, 6, 6)),
    ],
)
def test_hostile_files_are_refused(
    message: str, tensors: Parts, attributes: dict[str, Any], x: tuple[int, ...]
) -> None:
    merged = {key: value for key, value in (SHAPE | attributes).items() if value is not None}
    model = node_file("SparseConvPerImageInt8", GOOD | tensors, **merged)
    with pytest.raises(Exception, match=message) as refused:
        session(model).run(None, {"x": np.ones(x, np.float32)})
    assert "onnxruntime" in type(refused.value).__module__
