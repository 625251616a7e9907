"""Dead units go, the results stay, and what only looks dead is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.quantization import quantize_dynamic
from torch import nn

import topkast
from topkast.compiler.cli.main import main
from topkast.passes.onnx import metadata, writer
from topkast.passes.onnx.convert import Wanted
from topkast.passes.onnx.metadata import Shrunk
from topkast.tests.support.models.nets import Net, assert_same
from topkast.tests.support.protobuf import convert, rewrite_nothing, shrink
from topkast.tests.support.stated import assert_stated
from topkast.tests.support.truth.budget import assert_budget
from topkast.tests.support.truth.builders import CASES


def dims(model: onnx.ModelProto) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}


def check(net: Net, *outputs: str, where: str = "", blocks: Any = ((1, 1),)) -> tuple[onnx.ModelProto, list[Shrunk]]:
    """Shrink; what is left computes the same, is a fixed point, and is the same file if nothing went."""
    model = net.model(*outputs)
    rewrite_nothing(model)
    before = model.SerializeToString()
    found, _ = shrink(model, blocks)
    once = model.SerializeToString()
    assert (once == before) == (not any(one.rows or one.columns for one in found)), where
    assert_same(net, list(outputs), model, where)
    shrink(model, blocks)
    assert model.SerializeToString() == once, where
    return model, found


def test_what_a_dead_row_emits_goes_into_the_next_bias() -> None:
    for bias in (True, False):
        net = Net(7)
        hidden = net.add("Gelu", net.linear("x", 7, 12, dead_rows=[0, 3, 11]))
        y = net.linear(hidden, 12, 5, bias)
        model, found = check(net, y)
        assert dims(model)["c0"] == [9, 7] and dims(model)["c2"] == [5, 9]
        assert [(one.dead_rows, one.rows, one.dead_columns, one.columns) for one in found] == [
            (3, 3, 0, 0),
            (0, 0, 3, 3),
        ]
        assert not any(one.kept for one in found)


@pytest.mark.long
def test_names_that_are_taken_stay_what_they_are(tmp_path: Path) -> None:
    """torch names a value after its op, so a bias that is made for it could have a module's name."""

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.linear_1 = nn.Linear(7, 12), nn.Linear(12, 5, bias=False), nn.Linear(5, 5)
            with torch.no_grad():
                self.a.weight[:4] *= 1e-6
                self.a.bias[:4] = 1

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear_1(self.b(self.a(x).relu()).relu())

    x = torch.randn(3, 7)
    model = topkast.sparsify(Named(), fwd=1 / 3, balanced=False, include="a.weight", min_size=1)
    path = topkast.export(model, tmp_path / "m.onnx", x, format="dense").path
    (y,) = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy()})
    plain = topkast.densify(model)
    assert_budget(torch.from_numpy(y), plain(x), plain.double()(x.double()), "y")
    assert [8, 7] in dims(onnx.load(path)).values(), "four of twelve units go"


def test_what_has_no_linear_rule_is_no_obstacle() -> None:
    """A convolution by a weight that is computed, beside units that go."""
    net = Net(7)
    y = net.linear(net.add("Relu", net.linear("x", 7, 12, dead_rows=[0, 3])), 12, 5)
    model = net.model(y)
    kernel = onnx.numpy_helper.from_array(np.ones((2, 1, 3), np.float32), "kernel")
    model.graph.initializer.append(kernel)
    model.graph.node.append(onnx.helper.make_node("Relu", ["kernel"], ["computed"]))
    model.graph.node.append(onnx.helper.make_node("Unsqueeze", [y, "one"], ["image"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1]), "one"))
    model.graph.node.append(onnx.helper.make_node("Conv", ["image", "computed"], ["z"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None))
    x = np.random.default_rng(0).standard_normal((2, 7)).astype(np.float32)
    before = onnxruntime.InferenceSession(model.SerializeToString()).run(["z"], {"x": x})[0]
    found, _ = shrink(model)
    assert sum(one.rows for one in found) == 2
    after = onnxruntime.InferenceSession(model.SerializeToString()).run(["z"], {"x": x})[0]
    torch.testing.assert_close(torch.from_numpy(after), torch.from_numpy(before))


def test_products_and_their_biases_as_nodes_of_their_own() -> None:
    for bias in (True, False):
        net = Net(4, 7)
        first = net.add("MatMul", "x", net.constant(net.constants[net.random(12, 7, dead_rows=range(6))].T))
        hidden = net.add("Sigmoid", net.add("Add", net.random(12), first))
        y = net.add("MatMul", hidden, net.random(12, 5))
        if bias:
            y = net.add("Add", y, net.random(5))
        model, _ = check(net, net.add("Relu", y))
        assert [6, 5] in dims(model).values() and [7, 6] in dims(model).values()
        assert sum(node.op_type == "Add" for node in model.graph.node) == 2


def test_what_nothing_reads_goes_and_drags_more_along() -> None:
    net = Net(7)
    hidden = net.add("Relu", net.linear("x", 7, 8, dead_rows=[0, 1]))
    weight = net.random(9, 8)
    net.constants[weight][4, 2:] = 0  # row 4 reads constants only
    hidden = net.add("Relu", net.add("Gemm", hidden, weight, net.random(9), transB=1))
    y = net.linear(hidden, 9, 5, dead_columns=[6, 7])
    model, found = check(net, y)
    assert dims(model)[weight] == [6, 6]
    assert [(one.rows, one.columns) for one in found] == [(2, 0), (3, 2), (0, 3)]


def residual(both: bool) -> tuple[onnx.ModelProto, list[Shrunk]]:
    net = Net(7)
    x = net.linear("x", 7, 10, dead_rows=[1, 2, 3])
    for _ in range(2):
        inner = net.add("Tanh", net.linear(x, 10, 6, dead_rows=[5]))
        x = net.add("Add", x, net.linear(inner, 6, 10, dead_rows=[1, 2] if both else []))
    return check(net, net.linear(x, 10, 4))


def test_a_residual_group_goes_as_one() -> None:
    model, found = residual(both=True)
    assert dims(model)["c0"] == [8, 7] and dims(model)["c2"] == [5, 8] and dims(model)["c4"] == [8, 5]
    model, found = residual(both=False)
    assert dims(model)["c0"] == [10, 7] and dims(model)["c2"] == [5, 10]
    assert found[0].dead_rows == 3 and found[0].kept == ["3 rows: c10 reads it, or units that go with it"]


def padded(pad: int, bias: float) -> tuple[onnx.ModelProto, list[Shrunk]]:
    net = Net(3, 6, 6)
    x = net.conv("x", 3, 8, dead_rows=[2, 5])
    net.constants["c1"][[2, 5]] = bias
    return check(net, net.conv(net.add("Relu", x), 8, 4, pad=pad))


def test_a_constant_meets_padding_only_as_zero() -> None:
    for pad, bias in ((0, 1.0), (1, -1.0)):
        model, _ = padded(pad, bias)
        assert dims(model)["c0"][0] == 6 and dims(model)["c2"][:2] == [4, 6]
    model, found = padded(1, 1.0)
    assert dims(model)["c0"][0] == 8
    assert found[0].kept == ["2 rows: it is constant, but not at the border that c2 sees"]


@pytest.mark.parametrize(
    "miss, why",
    [
        ("LayerNormalization", "LayerNormalization reads all of it"),
        ("Softmax", "Softmax reads all of it"),
        ("output", "it is an output"),
        ("heads", "Reshape splits it"),
        ("computed", "MatMul sums over it with what is computed"),
        ("shape", "its size is read by Shape"),
        ("unknown", "Hardmax reads all of it"),
        ("input", "it is an input"),
        ("shared", "it is an input"),
    ],
)
def test_near_misses(miss: str, why: str) -> None:
    net = Net(8)
    x = net.linear("x", 8, 8, dead_rows=[1, 2])
    outputs = []
    if miss == "LayerNormalization":
        x = net.add("LayerNormalization", x, net.random(8), net.random(8))
    elif miss in ("Softmax", "Hardmax", "unknown"):
        x = net.add("Hardmax" if miss == "unknown" else miss, x)
    elif miss == "output":
        outputs = [x]
    elif miss == "heads":
        heads = net.add("Reshape", x, net.constant([0, 2, 4], np.int64))
        x = net.add("Reshape", net.add("Tanh", heads), net.constant([0, 8], np.int64))
    elif miss == "computed":
        turned = net.add("Transpose", x, perm=[1, 0])
        x = net.add("MatMul", net.add("MatMul", x, turned), net.add("MatMul", x, net.random(8, 8)))
    elif miss == "shape":
        x = net.add("Expand", x, net.add("Shape", x))
    elif miss == "input":  # tied to units of the input by the sum, which the next weight reads
        x = net.add("Add", x, "x")
    elif miss == "shared":  # by a use whose inputs are the graph's: rows and columns of c0 are the same units
        x = net.add("Gemm", net.add("Tanh", x), "c0", "c1", transB=1)
    model, found = check(net, net.linear(x, 8, 5), *outputs)
    assert dims(model)["c0"] == [8, 8]
    assert any(why in reason for one in found for reason in one.kept), found


def test_a_layer_that_is_all_dead_keeps_one_unit() -> None:
    net = Net(7)
    y = net.linear(net.add("Relu", net.linear("x", 7, 12, dead_rows=range(12))), 12, 5)
    model, _ = check(net, y)
    assert dims(model)["c0"] == [1, 7] and dims(model)["c2"] == [5, 1]


def test_vectors_that_are_shared_because_they_are_equal_tie_nothing() -> None:
    net = Net(9)
    bias, x = net.random(9), "x"
    for dead in ([0, 1], [5], []):
        x = net.add("Tanh", net.add("Gemm", x, net.random(9, 9, dead_rows=dead), bias, transB=1))
    model, _ = check(net, x)
    assert sorted(size for size in map(tuple, dims(model).values()) if len(size) == 2) == [(7, 9), (8, 7), (9, 8)]


def test_blocks_stay_whole() -> None:
    net = Net(8)
    hidden = net.add("Relu", net.linear("x", 8, 16, dead_rows=[0, 1, 2, 3, 9]))
    model, found = check(net, net.linear(hidden, 16, 8), blocks=((4, 4),))
    assert dims(model)["c0"] == [12, 8] and found[0].dead_rows == 5 and found[0].rows == 4


def test_whole_groups_of_a_convolution_go() -> None:
    net = Net(3, 7, 7)
    x = net.conv("x", 3, 8, dead_rows=[0, 1, 4])
    x = net.conv(net.add("Tanh", x), 8, 12, groups=4, dead_rows=[0, 1, 2, 6])
    model, _ = check(net, net.conv(x, 12, 4, size=1))
    assert dims(model)["c2"] == [9, 2, 3, 3] and dims(model)["c0"][0] == 6


def test_sizes_in_shapes_that_are_computed() -> None:
    """Two dynamic dimensions: the shape comes of Concat, and the units' number in it is mended by a node."""
    net = Net(6, 7)
    x = net.add("Relu", net.add("MatMul", "x", net.constant(net.constants[net.random(10, 7, dead_rows=[3, 4])].T)))
    sizes = net.add("Concat", net.add("Shape", x, end=1), net.constant([6, 10], np.int64), axis=0)
    x = net.add("Reshape", x, sizes)
    model, _ = check(net, net.add("MatMul", x, net.random(10, 3)))
    assert [8, 3] in dims(model).values()


@pytest.mark.long
def test_what_is_left_can_be_quantized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's tool infers all shapes anew; without dead units a file is as near to the model as with them."""
    model = nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256))
    model, x = topkast.sparsify(model, 0.9, 0.8, block=(32, 32)), torch.randn(5, 256)
    small = topkast.export(model, tmp_path / "small.onnx", x[:2], format="dense")
    monkeypatch.setattr(writer, "shrink", lambda model, blocks, names: ([], names))
    whole = topkast.export(model, tmp_path / "whole.onnx", x[:2], format="dense", verify=False)
    assert sum(one.rows for one in small.shrunk) and not whole.shrunk

    def quantized(path: Path) -> torch.Tensor:
        assert_stated(onnx.load(path), {"input": x.numpy()}, path.name)
        quantize_dynamic(path, path.with_suffix(".int8"))
        made = onnxruntime.InferenceSession(path.with_suffix(".int8"), providers=["CPUExecutionProvider"])
        return torch.from_numpy(made.run(None, {"input": x.numpy()})[0])

    wanted, exact = quantized(whole.path), topkast.densify(model).double()(x.double())
    assert_budget(quantized(small.path), wanted, exact, "dense")
    assert {"MatMulInteger", "DynamicQuantizeLinear"} <= kinds(small.path.with_suffix(".int8"))
    for format in ("auto", "custom", "block", "compact"):
        file, path = onnx.load(small.path), tmp_path / f"{format}.onnx"
        sites = convert(file, Wanted(format, blocks=[(32, 32)]))
        assert format == "auto" or {site.format for site in sites if site.block} == {format}
        onnx.save(file, path)
        assert_budget(quantized(path), wanted, exact, format)


def kinds(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


def planted(name: str) -> tuple[nn.Module, Any]:
    """A trained model's like: rows and columns of zeros, and what is beside them."""
    case = CASES[name]
    model, ((inputs, _),) = case.model().eval(), case.batches(1)
    with torch.no_grad():
        if name == "gpt2":
            for block in model.transformer.h:
                block.mlp.c_fc.weight[:, 3:40] = 0  # [in, out]
                block.mlp.c_fc.bias.normal_()
                block.attn.c_attn.weight[:, 2:9] = 0
        else:
            model[0].weight[1:9] = 0
            model[2].weight[:, 30:33] = 0
    return model, inputs


@pytest.mark.long
@pytest.mark.parametrize("name, format, out", [("mlp", "custom", 11), ("gpt2", "dense", 2 * 37)])
def test_exports(
    name: str, format: str, out: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    model, inputs = planted(name)
    model = topkast.sparsify(model, 0.0, min_size=1)
    result = topkast.export(model, tmp_path / "small.onnx", inputs, format=format)
    assert_stated(onnx.load(result.path), dict(zip(result.inputs, (t.numpy() for t in inputs), strict=True)))
    monkeypatch.setattr(writer, "shrink", lambda model, blocks, names: ([], names))
    whole = topkast.export(model, tmp_path / "whole.onnx", inputs, format=format, verify=False)
    assert sum(one.rows for one in result.shrunk) == out and not whole.shrunk
    assert result.bytes < whole.bytes
    assert {site.name for site in result.sites} == {site.name for site in whole.sites}
    feeds = [torch.cat([tensor] * 3) for tensor in inputs]
    with torch.no_grad():
        exact = model.double()(*(t.double() if t.is_floating_point() else t for t in feeds))
    sessions = [onnxruntime.InferenceSession(one.path) for one in (result, whole)]
    named = dict(zip((value.name for value in sessions[0].get_inputs()), (t.numpy() for t in feeds), strict=True))
    ours, theirs = (torch.from_numpy(session.run(None, named)[0]) for session in sessions)
    assert_budget(ours, theirs, getattr(exact, "logits", exact), name)
    record = metadata.read(sessions[0].get_modelmeta().custom_metadata_map)
    assert record is not None and len(record["shrunk"]) == len(result.shrunk)
    rows, columns = (sum(getattr(one, side) for one in result.shrunk) for side in ("rows", "columns"))
    assert f"{rows} rows and {columns} columns of dead units" in str(result)
    assert main(["inspect", str(result.path)]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "dead units" in said and ("7 rows: Reshape splits it" in said) == (name == "gpt2")
