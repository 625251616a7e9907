"""Small ONNX graphs built node by node, and their results in ONNX Runtime and, in float64, in ONNX's own reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from topkast.tests.support.stated import assert_stated
from topkast.tests.support.truth.budget import assert_budget

Array = np.ndarray


class Net:
    """A graph of one input ``x`` with a batch of any size, grown one node at a time.

    Args:
        shape: of one example.
        seed: of the weights.
    """

    def __init__(self, *shape: int, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.input = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def constant(self, array: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array, dtype)
        return name

    def random(self, *shape: int, dead_rows: Any = (), dead_columns: Any = ()) -> str:
        """A weight; its first axis are rows, its second are columns."""
        array = self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        array[np.array(dead_rows, int)] = 0
        if len(shape) > 1:
            array[:, np.array(dead_columns, int)] = 0
        return self.constant(array)

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"v{len(self.nodes)}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def linear(self, x: str, into: int, out: int, bias: bool = True, **dead: Any) -> str:
        weights = [self.random(out, into, **dead), *([self.random(out)] if bias else [])]
        return self.add("Gemm", x, *weights, transB=1)

    def conv(self, x: str, into: int, out: int, size: int = 3, pad: int = 0, groups: int = 1, **dead: Any) -> str:
        weights = [self.random(out, into // groups, size, size, **dead), self.random(out)]
        return self.add("Conv", x, *weights, pads=[pad] * 4, group=groups, kernel_shape=[size, size])

    def model(self, *outputs: str, double: bool = False) -> onnx.ModelProto:
        """The file, its shapes inferred, and stated of constants too, as exporters do; with ``double`` in float64."""
        kind = TensorProto.DOUBLE if double else TensorProto.FLOAT
        constants = [
            numpy_helper.from_array(array.astype(np.float64) if double and array.dtype == np.float32 else array, name)
            for name, array in self.constants.items()
        ]
        x = onnx.ValueInfoProto()
        x.CopyFrom(self.input)
        x.type.tensor_type.elem_type = kind
        values = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
        said = [helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in constants]
        graph = helper.make_graph(self.nodes, "net", [x], values, constants, value_info=said)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        return onnx.shape_inference.infer_shapes(made, strict_mode=True, data_prop=True)


def run(model: onnx.ModelProto, x: Array) -> list[Array]:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})


def assert_same(net: Net, outputs: list[str], shrunk: onnx.ModelProto, where: str) -> None:
    """``shrunk`` computes what ``net`` does, by the error budget; for a batch of many and for one."""
    shape = [dim.dim_value for dim in net.input.type.tensor_type.shape.dim[1:]]
    whole = net.model(*outputs)
    truth = ReferenceEvaluator(net.model(*outputs, double=True))
    x = net.rng.standard_normal((17, *shape)).astype(np.float32)
    exact = truth.run(None, {"x": x.astype(np.float64)})
    for ours, oracle, exactly in zip(run(shrunk, x), run(whole, x), exact, strict=True):
        mine, theirs, true = map(torch.from_numpy, (ours, oracle, np.asarray(exactly)))
        assert_budget(mine, theirs, true, where)
    assert_stated(shrunk, {"x": x}, where)
    # Of a batch of one the shapes alone: its handful of numbers may by luck be without an error.
    assert [y.shape for y in run(shrunk, x[:1])] == [y.shape for y in run(whole, x[:1])], where
