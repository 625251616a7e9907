"""Grouped products, of which ONNX has none: a product for each weight of the stack, on its own rows.

The rows lie in the order of the weights, so each takes a slice whose size is known when it runs; the weights, taken out
of the stack, are constants like any other, which every format can store.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxscript
import torch
from onnx import helper, numpy_helper

from topkast.runtime.errors import ExportError

op: Any = onnxscript.opset18  # its methods are typed for tensors, while values of a graph are what they get here


def translations() -> dict[Any, Any]:
    """What ``torch.onnx.export`` is to be told."""
    table: dict[Any, Any] = {torch.ops.aten._grouped_mm.default: _grouped_mm}
    if hasattr(torch.ops.transformers, "grouped_mm_fallback"):  # where transformers has been imported
        table[torch.ops.transformers.grouped_mm_fallback.default] = _products
    return table


def _grouped_mm(
    x: onnx_ir.Value, weight: onnx_ir.Value, offs: Any = None, bias: Any = None, out_dtype: Any = None
) -> Any:
    if offs is None or bias is not None or out_dtype is not None or len(x.shape or ()) != 2:
        raise ExportError("_grouped_mm of another form than [M, K] x [E, K, N] with offs")
    return _products(x, weight, offs)


def _products(x: onnx_ir.Value, weight: onnx_ir.Value, ends: Any) -> Any:
    """x [M, K] by weight [E, K, N], rows ``ends[e - 1]:ends[e]`` by the e-th; the rows after that are zero."""
    assert weight.shape is not None
    experts, _, n = (int(size) for size in weight.shape)  # type: ignore[arg-type]
    ends = op.Cast(ends, to=onnx.TensorProto.INT64)
    begin, rows, parts = op.Constant(value_ints=[0]), op.Constant(value_ints=[0]), []
    for e in range(experts):
        end = op.Slice(ends, op.Constant(value_ints=[e]), op.Constant(value_ints=[e + 1]))
        one = op.Gather(weight, op.Constant(value_int=e), axis=0)
        parts.append(op.MatMul(op.Slice(x, begin, end, rows), one))
        begin = end
    left = op.Sub(op.Shape(x, start=0, end=1), begin)
    zero = op.CastLike(op.Constant(value_float=0.0), x)
    return op.Concat(*parts, op.Expand(zero, op.Concat(left, op.Constant(value_ints=[n]), axis=0)), axis=0)


def unstack(model: onnx.ModelProto) -> None:
    """Make every matrix that a node takes out of a constant stack a constant of its own, in place."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    given = {node.output[0]: node for node in graph.node if node.op_type == "Constant"}
    taken: dict[str, str] = {}
    for node in list(graph.node):
        stack = constants.get(node.input[0]) if node.op_type == "Gather" and not node.domain else None
        index = None if stack is None or len(stack.dims) != 3 else _number(node.input[1], constants, given)
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        if index is None or axis != 0:
            continue
        assert stack is not None
        name = f"{stack.name}.{index}"
        if name not in taken.values():
            graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(_array(stack)[index]), name))
        taken[node.output[0]] = name
        graph.node.remove(node)
    if not taken:
        return
    for node in graph.node:
        node.input[:] = [taken.get(name, name) for name in node.input]
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for name in {tensor.name for tensor in graph.initializer} - used:
        graph.initializer.remove(next(tensor for tensor in graph.initializer if tensor.name == name))


def _array(tensor: onnx.TensorProto) -> np.ndarray[Any, Any]:
    return numpy_helper.to_array(tensor)


def _number(name: str, constants: dict[str, onnx.TensorProto], given: dict[str, onnx.NodeProto]) -> int | None:
    """The whole number that a constant is; None where it is none."""
    if name in given:
        value = helper.get_attribute_value(given[name].attribute[0])
        value = _array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
    elif name in constants:
        value = _array(constants[name])
    else:
        return None
    return int(value) if value.ndim == 0 else None
