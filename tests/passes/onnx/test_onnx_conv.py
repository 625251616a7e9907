"""topkast.SparseConv and fused activations against float64, in stock ONNX Runtime, and with hostile files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional as F

from topkast.passes.onnx.blocks import encode
from topkast.passes.onnx.convert import Wanted
from topkast.passes.onnx.formats import custom
from topkast.runtime import native
from topkast.tests.support.at_once import wrong_at_once
from topkast.tests.support.models.drawn_windows import drawn_window
from topkast.tests.support.models.product_files import dense_file, parts, session, sparse_matrix
from topkast.tests.support.protobuf import convert
from topkast.tests.support.stated import assert_stated, assert_valid
from topkast.tests.support.truth.product_layouts import within

pytestmark = pytest.mark.skipif(native.path() is None, reason="the ONNX Runtime library is not built")
PLAIN = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
ACTIVATIONS = {
    "": lambda x: x,
    "Relu": torch.relu,
    "Relu6": F.relu6,
    "Silu": F.silu,
    "Gelu": F.gelu,
    "GeluTanh": lambda x: F.gelu(x, approximate="tanh"),
}


def node_file(kind: str, given: dict[str, np.ndarray], **attributes: Any) -> onnx.ModelProto:
    """One node of ours, with the function that any ONNX Runtime runs instead."""
    node = helper.make_node(kind, ["x", *given], ["y"], domain=custom.DOMAIN, **attributes)
    tensors = [numpy_helper.from_array(array, name) for name, array in given.items()]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(custom.DOMAIN, 1)]
    graph = helper.make_graph([node], "product", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=[custom.function(kind)])


def check_conv(matrix: np.ndarray, bias: np.ndarray, x: Tensor, y: Tensor, act: str, shape: dict[str, Any]) -> None:
    """The budget of tests/runtime/native/test_native.py, channels in four orders."""
    dims, groups, pads = len(shape["kernel_shape"]), shape["group"], shape["pads"]
    w = torch.from_numpy(matrix).reshape(len(matrix), -1, *shape["kernel_shape"])
    sides = [pads[d + side * dims] for d in reversed(range(dims)) for side in (0, 1)]

    def plain(order: Tensor, dtype: torch.dtype) -> Tensor:
        of_x = torch.cat([order + g * len(order) for g in range(groups)])
        padded = F.pad(x[:, of_x].to(dtype), sides)
        rest = torch.from_numpy(bias).to(dtype), shape["strides"], 0, shape["dilations"], groups
        return ACTIVATIONS[act](PLAIN[dims](padded, w[:, order].to(dtype), *rest))

    orders = [torch.randperm(w.shape[1]) for _ in range(4)]
    where = f"{act} {shape} {tuple(x.shape)}"
    within(y, [plain(order, torch.float32) for order in orders], plain(orders[0], torch.float64), where)


@pytest.mark.long
@settings(deadline=None, max_examples=120, derandomize=True)
@given(st.data())
def test_fuzz(data: st.DataObject) -> None:
    draw = data.draw
    window, size = drawn_window(draw, dict.fromkeys((1, 2, 3), 9))
    groups = window["group"]
    block = draw(st.sampled_from([(1, 1), (2, 1), (3, 5), (4, 1), (8, 1), (16, 1), (16, 16), (5, 1), (1, 4), (64, 2)]))
    rows = draw(st.integers(1, 70)) if groups == 1 else block[0] * groups
    channels, batch = draw(st.integers(1, 9)), draw(st.sampled_from([0, 1, 1, 2, 8, 17]))
    columns, half, wide = channels * int(np.prod(window["kernel_shape"])), draw(st.booleans()), draw(st.booleans())
    act, threads = draw(st.sampled_from(list(ACTIVATIONS))), draw(st.sampled_from([1, 2]))
    matrix = sparse_matrix(rows, columns, block, draw(st.floats(0, 1)), seed=columns)
    if half:
        matrix = matrix.astype(np.float16).astype(np.float32)
    bias = np.random.default_rng(1).standard_normal(rows).astype(np.float32)
    model = node_file(
        f"SparseConv{act}",
        parts(encode(matrix, block), bias, half, wide),
        rows=rows,
        columns=columns,
        block=list(block),
        **window,
    )
    x = torch.randn(batch, channels * groups, *size)
    (y,) = session(model, threads).run(None, {"x": x.numpy()})
    assert_valid(model, x=tuple(x.shape), y=y.shape)
    check_conv(matrix, bias, x, torch.from_numpy(y), act, window)


@pytest.mark.parametrize("block", [(1, 1), (4, 1), (16, 1)])
@pytest.mark.parametrize("kernel, size, batch", [(1, 20, 1), (1, 16, 3), (1, 14, 2), (3, 20, 1), (1, 5, 9)])
def test_images_of_many_positions(block: tuple[int, int], kernel: int, size: int, batch: int) -> None:
    """Several runs an image, in place and packed, the last run one that is not full."""
    matrix, bias = sparse_matrix(70, 20 * kernel**2, block, 0.3), np.ones(70, np.float32)
    window = {
        "kernel_shape": [kernel] * 2,
        "strides": [1, 1],
        "pads": [kernel // 2] * 4,
        "dilations": [1, 1],
        "group": 1,
    }
    given = parts(encode(matrix, block), bias)
    model = node_file("SparseConvRelu", given, rows=70, columns=matrix.shape[1], block=list(block), **window)
    x = torch.randn(batch, 20, size, size)
    made = session(model, 2)
    (y,) = made.run(None, {"x": x.numpy()})
    check_conv(matrix, bias, x, torch.from_numpy(y), "Relu", window)

    assert not wrong_at_once(3, 5, lambda i: np.array_equal(made.run(None, {"x": x.numpy()})[0], y))


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("kind", custom.BODIES)
def test_a_stock_session_runs_the_function(kind: str, act: str) -> None:
    matrix, bias = sparse_matrix(21, 27, (2, 3), 0.3), np.linspace(-4, 9, 21, dtype=np.float32)
    given, shape = parts(encode(matrix, (2, 3)), bias), {"rows": 21, "columns": 27, "block": [2, 3]}
    window = {"kernel_shape": [3, 3], "strides": [2, 1], "pads": [1, 0, 2, 3], "dilations": [1, 2], "group": 1}
    conv = kind == "SparseConv"
    model = node_file(kind + act, given, **shape, **(window if conv else {}))
    x = torch.randn(2, 3, 7, 8) if conv else torch.randn(5, 27)
    stock = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (plain,), (ours,) = (made.run(None, {"x": x.numpy()}) for made in (stock, session(model)))
    assert_valid(model, x=tuple(x.shape), y=plain.shape)
    torch.testing.assert_close(torch.from_numpy(ours), torch.from_numpy(plain), rtol=1e-5, atol=1e-5)
    if conv:
        check_conv(matrix, bias, x, torch.from_numpy(ours), act, window)


WINDOW: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1] * 4, "dilations": [1, 1], "group": 2}
SHAPE: dict[str, Any] = {"rows": 8, "columns": 18, "block": [4, 1]}
GOOD = parts(encode(sparse_matrix(8, 18, (4, 1), 0.5), (4, 1)), np.zeros(8, np.float32))
X = np.ones((1, 4, 6, 6), np.float32)


@pytest.mark.parametrize(
    "message, tensors, attributes, x",
    [
        (r"cols\[0\] is 18", {"cols": np.full_like(GOOD["cols"], 18)}, {}, X),
        ("row_ptr descends", {"row_ptr": np.array([0, 2**62, len(GOOD["cols"])])}, {}, X),
        ("kernel_shape must hold 1 to 3", {}, {"kernel_shape": [1, 1, 3, 3]}, X),
        ("kernel_shape must hold 1 to 3", {}, {"kernel_shape": None}, X),
        ("kernel_shape holds 0", {}, {"kernel_shape": [0, 3]}, X),
        ("strides holds 0", {}, {"strides": [0, 1]}, X),
        ("strides must hold 2 integers", {}, {"strides": [1]}, X),
        ("dilations holds -1", {}, {"dilations": [-1, 1]}, X),
        ("pads holds -1", {}, {"pads": [-1, 0, 0, 0]}, X),
        ("pads must hold 4 integers", {}, {"pads": [1, 1]}, X),
        ("group is 0", {}, {"group": 0}, X),
        ("group is 3", {}, {"group": 3}, X),
        ("cross the border of groups of 2", {}, {"group": 4}, X),
        ("no multiple of the kernel's taps", {}, {"kernel_shape": [3, 4]}, X),
        ("no multiple of the kernel's taps", {}, {"kernel_shape": [2**31 - 1] * 2}, X),
        (r"x must be float \[batch, 4", {}, {}, np.ones((1, 5, 6, 6), np.float32)),
        (r"x must be float \[batch, 4", {}, {}, np.ones((1, 4, 6), np.float32)),
        (r"x must be float \[batch, 4", {}, {}, np.array(1, np.float32)),
        ("smaller than the kernel", {}, {"dilations": [2**31 - 1, 1]}, X),
        ("2\\^31 floats or more", {}, {"pads": [2**31 - 1] * 4}, X),
        ("2\\^31 floats or more", {}, {"pads": [2**31 - 1] * 4, "dilations": [2**31 - 1] * 2}, X),
        ("2\\^31 floats or more", {}, {"pads": [2**31 - 1] * 4}, np.ones((0, 4, 6, 6), np.float32)),
        ("bias must be float", {"bias": np.zeros(7, np.float32)}, {}, X),
    ],
)
def test_hostile_files_are_refused(message: str, tensors: dict, attributes: dict, x: np.ndarray) -> None:
    merged = {key: value for key, value in (SHAPE | WINDOW | attributes).items() if value is not None}
    model = node_file("SparseConv", GOOD | tensors, **merged)
    del model.functions[:]  # ONNX Runtime's own checks of the function's operators do not come first
    with pytest.raises(Exception, match=message) as refused:
        session(model).run(None, {"x": x})
    assert "onnxruntime" in type(refused.value).__module__


def resident(field: str) -> int:
    """Bytes, by a field of the process's status."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells a process its peak of memory")
@pytest.mark.parametrize("kind", ["SparseConv", "SparseConvPerImageInt8"])
@pytest.mark.parametrize(
    "attributes, x",
    [
        ({"pads": [2**13] * 4}, X),
        ({"pads": [2**13] * 4, "dilations": [2**12] * 2}, X),
        ({"pads": [2**13] * 4, "kernel_shape": [2**14] * 2, "columns": 2**28, "group": 1}, X[:, :1]),
    ],
)
def test_absurd_sizes_take_no_memory(kind: str, attributes: dict[str, Any], x: np.ndarray) -> None:
    """A file of some bytes asks for gigabytes: borders, an offset for each tap, or results."""
    given = dict(GOOD)
    if kind.endswith("Int8"):
        values = GOOD["values"].astype(np.int8)
        given = {"values": values, "row_ptr": GOOD["row_ptr"], "cols": GOOD["cols"], "scale": np.ones(8, np.float32)}
        given["bias"] = GOOD["bias"]
    model = node_file(kind, given, **(SHAPE | WINDOW | attributes))
    del model.functions[:]
    made = session(model)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    with pytest.raises(Exception, match="more than 64 times as many"):
        made.run(None, {"x": x})
    assert resident("VmHWM") - before < 2**26


def test_far_pads_and_strides_are_right() -> None:
    """Numbers beyond 32 bits on the way to a small result."""
    window = WINDOW | {"strides": [2**31 - 1] * 2, "pads": [2**20] * 4}
    (y,) = session(node_file("SparseConv", GOOD, **SHAPE, **window)).run(None, {"x": X})
    assert y.shape == (1, 8, 1, 1) and not y.any(), "the kernel lies in the border"


def test_depthwise_stays_dense_and_groups_do_not() -> None:
    for groups, channels, unit, format, why in [
        (8, 1, (4, 1), "dense", "depthwise"),
        (2, 4, (4, 1), "custom", "as asked"),
        (4, 2, (4, 1), "custom", "as asked"),
    ]:
        matrix = sparse_matrix(8, channels * 9, (1, 1), 0.3)
        model = dense_file(matrix, None)
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.initializer.append(numpy_helper.from_array(matrix.reshape(8, channels, 3, 3), "w"))
        model.graph.node.append(helper.make_node("Conv", ["x", "w"], ["y"], group=groups))
        for value, count in ((model.graph.input[0], 8), (model.graph.output[0], 8)):
            value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, ["n", count, None, None]))
        before = onnxruntime.InferenceSession(model.SerializeToString())
        (site,) = convert(model, Wanted("custom", blocks=[unit]))
        assert site.format == format and why in site.why
        x = np.random.default_rng(0).standard_normal((2, 8, 6, 7)).astype(np.float32)
        assert_stated(model, {"x": x})
        (plain,), (ours,) = (made.run(None, {"x": x}) for made in (before, session(model)))
        torch.testing.assert_close(torch.from_numpy(ours), torch.from_numpy(plain), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("taken_twice", [False, True])
def test_an_activation_that_is_not_alone_stays(taken_twice: bool) -> None:
    matrix = sparse_matrix(16, 24, (1, 1), 0.2)
    model = dense_file(matrix, np.zeros(16, np.float32))
    model.graph.node[-1].output[0] = "h"
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "product"
    model.graph.node.append(helper.make_node("Relu", ["h"], ["r"]))
    model.graph.node.append(helper.make_node("Add", ["r", "h" if taken_twice else "r"], ["y"]))
    convert(model, Wanted("custom"))
    assert [node.op_type for node in model.graph.node] == (
        ["SparseMatMul", "Relu", "Add"] if taken_twice else ["SparseMatMulRelu", "Add"]
    )


@pytest.mark.parametrize(
    "unit, density, channels, batch, wanted, why",
    [
        ((16, 1), 0.2, 64, 8, "custom", "blocks of 16 x 1: faster with topkast's library"),
        ((1, 1), 0.1, 64, 1, "custom", "faster with topkast's library"),
        ((1, 1), 0.1, 64, 8, "dense", "faster only up to a density of 0%, with 64 inputs to each output"),
        ((1, 1), 0.2, 256, 8, "custom", "faster with topkast's library"),
        ((1, 1), 0.4, 256, 1, "dense", "only up to a density of 22%, with 256 inputs"),
        ((4, 4), 0.1, 256, 1, "dense", "blocks of one column"),
        ((16, 1), 0.1, 64, None, "dense", "too small"),
    ],
)
def test_auto_takes_what_is_faster(
    unit: tuple[int, int], density: float, channels: int, batch: int | None, wanted: str, why: str
) -> None:
    grid = -(-128 // unit[0]), channels // unit[1]
    kept = np.random.default_rng(0).permutation(grid[0] * grid[1]).reshape(grid) < round(grid[0] * grid[1] * density)
    matrix = np.kron(kept, np.ones(unit, np.float32))
    size = 48 if batch else 2
    model = dense_file(matrix, None)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.initializer.append(numpy_helper.from_array(matrix.reshape(128, channels, 1, 1), "w"))
    model.graph.node.append(helper.make_node("Conv", ["x", "w"], ["y"]))
    for value, count in ((model.graph.input[0], channels), (model.graph.output[0], 128)):
        shape = ["n", count, size, size]
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, shape))
    sizes = {"n": batch} if batch else {}
    (site,) = convert(model, Wanted("auto", blocks=[unit], sizes=sizes))
    assert site.format == ("compact" if wanted == "dense" else wanted) and why in site.why
