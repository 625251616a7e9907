"""int8 in every format: ONNX Runtime computes the same bits as integer arithmetic in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from topkast.compiler.export.int8.check_integers import check_integers, expected
from topkast.passes.onnx import convert as conversion
from topkast.passes.onnx.convert import Wanted
from topkast.passes.onnx.formats import FORMATS, custom
from topkast.passes.onnx.integers import Integers
from topkast.passes.onnx.metadata import SiteResult
from topkast.passes.onnx.writer import save_proto, serialize
from topkast.runtime.errors import ConfigError, ExportError
from topkast.runtime.kernels import native_library
from topkast.tests.support.models.product_files import dense_file, sparse_matrix
from topkast.tests.support.stated import assert_stated

LIBRARY = native_library.path()
INTEGERS = ("block", "custom", "dense")  # formats of which products of a matrix are products of integers


def convert(model: onnx.ModelProto, wanted: Wanted) -> tuple[list[SiteResult], Integers]:
    read = ir.from_proto(model)
    found = conversion.convert(read, wanted)
    model.CopyFrom(serialize(read))
    return found


def run(model: onnx.ModelProto, x: Tensor) -> Tensor:
    made = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.tensor(made.run(None, {"x": x.numpy()})[0])


def assert_same_bits(given: Tensor, wanted: Tensor) -> None:
    assert torch.equal(given.isnan(), wanted.isnan())
    assert torch.equal(*(torch.where(y.isnan(), 0, y).view(torch.int32) for y in (given, wanted)))


def even(rows: int, columns: int, unit: tuple[int, int], period: int = 3) -> np.ndarray:
    """One block of ``period``, as many in each row and, if the grid is square, in each column."""
    r, c = unit
    mask = np.add.outer(np.arange(-(-rows // r)), np.arange(-(-columns // c))) % period == 0
    dense = np.kron(mask, np.ones(unit))[:rows, :columns]
    return (np.random.default_rng(0).standard_normal((rows, columns)) * dense).astype(np.float32)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("unit", [(1, 1), (4, 1), (16, 16), (32, 16)])
@pytest.mark.parametrize("biased, lead", [(True, ("m",)), (False, ("a", "b"))])
def test_one_product(format: str, unit: tuple[int, int], biased: bool, lead: tuple[Any, ...], tmp_path: Path) -> None:
    matrix = even(96, 160, unit, 5)
    bias = np.linspace(-1, 1, 96, dtype=np.float32) if biased else None
    model = dense_file(matrix, bias, lead)
    ((site,), integers) = convert(model, Wanted(format, "int8", [unit]))
    products = site.format in INTEGERS
    assert site.precision == "int8" and (len(integers.products), len(integers.weights)) == (products, not products)
    x = torch.randn(*[5, 2][: len(lead)], 160, generator=torch.Generator().manual_seed(0))
    assert_stated(model, {"x": x.numpy()}, f"{format} {unit}")
    stored = sum(numpy_helper.to_array(t).nbytes for t in model.graph.initializer)
    assert site.format != format or stored < matrix.nbytes * (0.3 if format == "dense" else 0.26)
    y = run(model, x)
    if products:
        assert_same_bits(y, expected(integers.products[0], x))
    float_y = x @ torch.tensor(matrix).t() + (0 if bias is None else torch.tensor(bias))
    assert (y - float_y).norm() < 0.02 * float_y.norm()
    save_proto(model, tmp_path / "m.onnx")
    check_integers(tmp_path / "m.onnx", integers, {"x": x}, LIBRARY)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_rows_that_are_special() -> None:
    """NaN, infinities, a range that is not finite, zeros, one sign, and numbers that are almost zero."""
    matrix, bias = sparse_matrix(33, 47, (1, 1), 0.3), np.linspace(-1, 1, 33, dtype=np.float32)
    model = dense_file(matrix, bias)
    _, integers = convert(model, Wanted("custom", "int8"))
    x = torch.randn(10, 47, generator=torch.Generator().manual_seed(0))
    x[0, 3], x[1, 4], x[2, 5] = torch.nan, torch.inf, -torch.inf
    x[3, :2] = torch.tensor([3e38, -3e38])
    x[4], x[5], x[6], x[7], x[8] = 0, x[5].abs(), -x[6].abs(), x[7] * 1e-43, x[8] * 1e36
    y = run(model, x)
    assert y[:4].isnan().all() and y[4:].isfinite().all()
    assert torch.equal(y[4], torch.from_numpy(bias.copy()))
    assert_same_bits(y, expected(integers.products[0], x))


@pytest.mark.parametrize("unit", [(1, 1), (3, 2), (16, 1)])
@pytest.mark.parametrize("image", [(), (5,), (3, 4), (2, 3, 2)])
def test_pixelwise_convolutions(unit: tuple[int, int], image: tuple[int, ...], tmp_path: Path) -> None:
    if not image:
        image = (1,)
    matrix, bias = sparse_matrix(21, 35, unit, 0.3), np.ones(21, np.float32)
    model = conv_file(matrix, bias, [1] * len(image))
    ((site,), integers) = convert(model, Wanted("custom", "int8", [unit]))
    assert site.precision == "int8" and [node.op_type for node in model.graph.node] == ["SparseConvInt8Relu"]
    x = torch.randn(3, 35, *image, generator=torch.Generator().manual_seed(1))
    x[1, 2, 0] = torch.nan
    assert_stated(model, {"x": x.numpy()})
    y = expected(integers.products[0], x)
    assert y.shape == (3, 21, *image) and y.isnan().any() and not y.isnan().all()
    assert_same_bits(run(model, x).nan_to_num(7), y.relu().nan_to_num(7))
    save_proto(model, tmp_path / "m.onnx")
    check_integers(tmp_path / "m.onnx", integers, {"x": x}, LIBRARY)


def conv_file(matrix: np.ndarray, bias: np.ndarray, kernel: list[int], **attributes: Any) -> onnx.ModelProto:
    """A convolution and a ReLU."""
    weight = matrix.reshape(len(matrix), -1, *kernel)
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["h"], **attributes), helper.make_node("Relu", ["h"], ["y"])]
    tensors = [numpy_helper.from_array(array, name) for name, array in (("w", weight), ("b", bias))]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"{name}{i}" if i != 1 else size for i in range(n)])
        for name, size, n in (
            ("x", weight.shape[1] * attributes.get("group", 1), 2 + len(kernel)),
            ("y", len(weight), 2 + len(kernel)),
        )
    )
    graph = helper.make_graph(nodes, "conv", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize(
    "kernel, attributes",
    [
        ([3, 3], {}),
        ([1, 1], {"strides": [2, 2]}),
        ([1, 1], {"pads": [1] * 4}),
        ([1, 1], {"group": 3}),
        ([3], {"pads": [2, 1], "dilations": [2]}),
        ([2, 3], {"pads": [0, 1, 2, 1], "strides": [2, 1], "group": 3}),
        ([1, 3, 2], {"pads": [0, 1, 1] * 2, "strides": [1, 2, 1]}),
    ],
)
def test_other_convolutions(kernel: list[int], attributes: dict[str, Any], tmp_path: Path) -> None:
    """In "custom" each image is quantised as a whole; the other formats unpack the weight."""
    matrix, bias = sparse_matrix(21, 6 * int(np.prod(kernel)), (1, 1), 0.3), np.ones(21, np.float32)
    x = torch.randn(3, 6 * attributes.get("group", 1), *[5] * len(kernel), generator=torch.Generator().manual_seed(0))
    x[1] *= 1e-3
    for format in ("custom", "block", "compact", "dense"):
        model = conv_file(matrix, bias, kernel, **attributes)
        float_y = run(model, x)
        ((site,), integers) = convert(model, Wanted(format, "int8"))
        assert site.precision == "int8" and len(integers.products) == (format == "custom")
        assert_stated(model, {"x": x.numpy()})
        y = run(model, x)
        for image in range(3):
            assert (y[image] - float_y[image]).norm() < 0.02 * float_y[image].norm(), format
        save_proto(model, tmp_path / "m.onnx")
        check_integers(tmp_path / "m.onnx", integers, {"x": x}, LIBRARY)
        if format == "custom":
            assert [node.op_type for node in model.graph.node] == ["SparseConvPerImageInt8Relu"]
            (product,) = integers.products
            x[1, 2, 0] = torch.nan
            y = expected(product, x)
            assert y[1].isnan().all() and y[[0, 2]].isfinite().all()
            assert_same_bits(run(model, x).nan_to_num(7), y.relu().nan_to_num(7))
            x[1, 2, 0] = 0.001
        else:
            (unpacked,) = integers.weights
            assert np.allclose(unpacked.values * unpacked.scale, matrix.reshape(unpacked.values.shape), atol=0.03)


@pytest.mark.parametrize("format", FORMATS)
def test_a_weight_that_is_read_both_ways(format: str, tmp_path: Path) -> None:
    """Each reading has its own outputs, and so its own scales."""
    matrix = even(96, 96, (16, 16))
    model = dense_file(matrix, None)
    model.graph.node.append(helper.make_node("Gemm", ["y", "w"], ["back"], transB=1))
    model.graph.output.append(helper.make_tensor_value_info("back", TensorProto.FLOAT, ("batch", 96)))
    ((site,), integers) = convert(model, Wanted(format, "int8", [(16, 16)]))
    assert site.precision == "int8"
    x = torch.randn(7, 96, generator=torch.Generator().manual_seed(0))
    save_proto(model, tmp_path / "m.onnx")
    check_integers(tmp_path / "m.onnx", integers, {"x": x}, LIBRARY)
    if format in INTEGERS:
        first, second = integers.products
        assert not np.array_equal(first.matrix.values, second.matrix.values.T)
        assert_same_bits(run(model, x), expected(first, x))


@pytest.mark.parametrize("kind", custom.INT8_BODIES)
@pytest.mark.parametrize("ending", custom.ENDINGS)
def test_functions_with_activations(kind: str, ending: str) -> None:
    """Valid at every opset of a file, and equal to the activation of the product."""
    matrix, bias = sparse_matrix(9, 11, (2, 3), 0.4), np.linspace(-2, 2, 9, dtype=np.float32)
    conv = kind.startswith("SparseConv")
    pads = {"pads": [1, 0, 0, 1]} if kind == "SparseConvPerImageInt8" else {}
    model = conv_file(matrix, bias, [1, 1], **pads) if conv else dense_file(matrix, bias)
    _, integers = convert(model, Wanted("custom", "int8", [(2, 3)]))
    (node,) = model.graph.node
    x = torch.randn(*((2, 11, 3, 2) if conv else (5, 11)), generator=torch.Generator().manual_seed(0))
    node.op_type = kind + ending
    del model.functions[:]
    model.functions.append(custom.function(node.op_type))
    y = expected(integers.products[0], x)
    activations = {
        "": y,
        "Relu": y.relu(),
        "Relu6": y.clamp(0, 6),
        "Silu": torch.nn.functional.silu(y),
        "Gelu": torch.nn.functional.gelu(y),
        "GeluTanh": torch.nn.functional.gelu(y, approximate="tanh"),
    }
    run_before = run(model, x)
    torch.testing.assert_close(run_before, activations[ending])
    for opset in (20, 23):
        model.opset_import[0].version = opset
        del model.functions[:]
        model.functions.append(custom.function(node.op_type, opset))
        onnx.checker.check_model(model, full_check=True)
        assert torch.equal(run(model, x), run_before)


@pytest.mark.parametrize("format", FORMATS)
def test_what_stays_in_float(format: str) -> None:
    matrix = even(64, 96, (16, 16))
    for wanted, why in [
        (Wanted(format, "int8", [(16, 16)], keep_float=[("w*", "it is named")]), "stays in float32: it is named"),
        (Wanted(format, "fp32", [(16, 16)]), ""),
    ]:
        ((site,), integers) = convert(dense_file(matrix, None), wanted)
        assert site.precision == "fp32" and why in site.why and not integers.products and not integers.weights
    full = np.ones((6, 9), np.float32)
    ((site,), _) = convert(conv_file(full, full[:, 0], [3, 3]), Wanted(format, "int8"))
    assert (site.precision, site.why) == ("fp32", "it has no zeros")
    model = dense_file(matrix, None)
    model.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "alone"))
    named = {site.name: site for site in convert(model, Wanted(format, "int8", [(16, 16)]))[0]}
    assert named["alone"].precision == "fp32" and named["w"].precision == "int8"
    assert "no product reads it" in named["alone"].why


@pytest.mark.parametrize("format", FORMATS)
def test_a_dense_layer_multiplies_integers_too(format: str, tmp_path: Path) -> None:
    full = np.random.default_rng(0).standard_normal((24, 35)).astype(np.float32)
    model, x = dense_file(full, np.ones(24, np.float32)), torch.randn(5, 35)
    ((site,), integers) = convert(model, Wanted(format, "int8"))
    assert (site.format, site.precision, site.why) == (
        "dense",
        "int8",
        "it has no zeros",
    ) and site.bytes < full.size * 2
    assert_same_bits(run(model, x), expected(integers.products[0], x))
    ((site,), _) = convert(dense_file(full, None), Wanted(format, "int8", keep_float=[("w", "it is named")]))
    assert site.precision == "fp32" and "it is named" in site.why
    full[3, 4] = 1e6  # nobody asked for int8 of this weight, so it is no error
    ((site,), _) = convert(dense_file(full, None), Wanted(format, "int8"))
    assert site.precision == "fp32" and "row 3: its largest weight is 1e+06" in site.why


def test_a_head_that_is_tied_to_an_embedding(tmp_path: Path) -> None:
    """The head multiplies integers; the embedding keeps float32, and is stored once."""
    table = np.random.default_rng(0).standard_normal((31, 8)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["w", "ids"], ["h"]),
        helper.make_node("Transpose", ["w"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "turned"], ["y"]),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["a", "b"])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["a", "b", n]) for name, n in (("y", 31), ("h", 8))
    ]
    graph = helper.make_graph(nodes, "tied", [ids], outputs, [numpy_helper.from_array(table, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    given = torch.randint(0, 31, (3, 4))
    for wanted in (Wanted("auto", "int8"), Wanted("custom", "int8", keep_float=[("w", "it is named")])):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        ((site,), integers) = convert(changed, wanted)
        made = onnxruntime.InferenceSession(changed.SerializeToString(), providers=["CPUExecutionProvider"])
        y, h = (torch.tensor(found) for found in made.run(None, {"ids": given.numpy()}))
        assert torch.equal(h, torch.tensor(table)[given])
        kinds = [node.op_type for node in changed.graph.node]
        if not wanted.keep_float:
            assert site.precision == "int8" and "Transpose" not in kinds and "MatMul" not in kinds
            assert_same_bits(y, expected(integers.products[0], h))
            assert site.bytes == table.nbytes + table.size + 31 * 4
        else:
            assert site.precision == "fp32" and kinds == ["Gather", "Transpose", "MatMul"]


def test_blocks_of_odd_columns_stay_float_in_block() -> None:
    """Their neighbours in the file are not their neighbours in the weight."""
    matrix = even(64, 17 * 9, (16, 17))
    ((site,), _) = convert(dense_file(matrix, None), Wanted("block", "int8", [(16, 17)]))
    assert (site.format, site.precision) == ("block", "fp32") and "blocks of 17 columns" in site.why
    ((site,), _) = convert(dense_file(matrix, None), Wanted("custom", "int8", [(16, 17)]))
    assert (site.format, site.precision) == ("custom", "int8")


@pytest.mark.parametrize("format", FORMATS)
def test_a_bad_weight_is_named(format: str) -> None:
    matrix = sparse_matrix(64, 96, (1, 1), 0.3)
    matrix[3, 5] = np.inf
    with pytest.raises(ConfigError, match="w holds NaN or infinities"):
        convert(dense_file(matrix, None), Wanted(format, "int8"))
    ((site,), _) = convert(dense_file(matrix, None), Wanted(format, "int8", keep_float=[("w", "it is named")]))
    assert site.precision == "fp32"


@pytest.mark.parametrize("format", ["block", "custom", "compact"])
def test_a_wrong_bit_is_found(format: str, tmp_path: Path) -> None:
    """The check of the export is one that can fail."""
    matrix = even(64, 96, (16, 16))
    model = dense_file(matrix, None)
    _, integers = convert(model, Wanted(format, "int8", [(16, 16)]))
    x = torch.randn(7, 96, generator=torch.Generator().manual_seed(0))
    for tensor in model.graph.initializer:
        if numpy_helper.to_array(tensor).dtype == np.int8:
            values = numpy_helper.to_array(tensor).copy()
            values.reshape(-1)[np.flatnonzero(values)[0]] += 1
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    save_proto(model, tmp_path / "m.onnx")
    with pytest.raises(ExportError, match="w: ONNX Runtime does not compute the int8 product"):
        check_integers(tmp_path / "m.onnx", integers, {"x": x}, LIBRARY)


def test_sums_beyond_what_float32_holds() -> None:
    """The integers are exact, and are rounded once. Here numpy computes them by the formulas of the operator."""
    matrix = np.random.default_rng(1).uniform(0.9, 1, (4, 6001)).astype(np.float32)
    matrix[:, ::7] = 0
    model = dense_file(matrix, None)
    _, integers = convert(model, Wanted("custom", "int8"))
    (product,) = integers.products
    x = np.random.default_rng(0).uniform(5, 6, (3, 6001)).astype(np.float32)
    s = x.max(axis=1, keepdims=True) / np.float32(255)
    q = np.rint(x / s).clip(0, 255).astype(np.int64)
    sums = q @ product.matrix.values.astype(np.int64).T
    assert sums.min() > 2**26 and (sums != sums.astype(np.float32)).any()
    y = torch.from_numpy(sums.astype(np.float32) * (s * product.matrix.scale))
    assert_same_bits(run(model, torch.from_numpy(x)), y)
    assert_same_bits(expected(product, torch.from_numpy(x)), y)
