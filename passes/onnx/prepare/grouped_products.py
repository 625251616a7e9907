"""Grouped products, of which ONNX has none: a product for each weight of the stack, on its own rows.

The rows lie in the order of the weights, so each takes a slice whose size is known when it runs; the weights, taken out
of the stack, are constants like any other, which every format can store.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import onnxscript
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass

from topkast.passes.onnx.graph import add_constant, constant
from topkast.runtime.errors import ExportError

op: Any = onnxscript.opset18  # its methods are typed for tensors, while values of a graph are what they get here


def translations() -> dict[Any, Any]:
    """What ``torch.onnx.export`` is to be told."""
    table: dict[Any, Any] = {torch.ops.aten._grouped_mm.default: _grouped_mm}
    if hasattr(torch.ops.transformers, "grouped_mm_fallback"):  # where transformers has been imported
        table[torch.ops.transformers.grouped_mm_fallback.default] = _products
    return table


def _grouped_mm(x: ir.Value, weight: ir.Value, offs: Any = None, bias: Any = None, out_dtype: Any = None) -> Any:
    if offs is None or bias is not None or out_dtype is not None or len(x.shape or ()) != 2:
        raise ExportError("_grouped_mm of another form than [M, K] x [E, K, N] with offs")
    return _products(x, weight, offs)


def _products(x: ir.Value, weight: ir.Value, ends: Any) -> Any:
    """x [M, K] by weight [E, K, N], rows ``ends[e - 1]:ends[e]`` by the e-th; the rows after that are zero."""
    assert weight.shape is not None
    experts, _, n = (int(size) for size in weight.shape)  # type: ignore[arg-type]
    ends = op.Cast(ends, to=ir.DataType.INT64)
    begin, rows, parts = op.Constant(value_ints=[0]), op.Constant(value_ints=[0]), []
    for e in range(experts):
        end = op.Slice(ends, op.Constant(value_ints=[e]), op.Constant(value_ints=[e + 1]))
        one = op.Gather(weight, op.Constant(value_int=e), axis=0)
        parts.append(op.MatMul(op.Slice(x, begin, end, rows), one))
        begin = end
    left = op.Sub(op.Shape(x, start=0, end=1), begin)
    zero = op.CastLike(op.Constant(value_float=0.0), x)
    return op.Concat(*parts, op.Expand(zero, op.Concat(left, op.Constant(value_ints=[n]), axis=0)), axis=0)


def unstack(model: ir.Model) -> None:
    """Make every matrix that a node takes out of a constant stack a constant of its own, in place."""
    graph = model.graph
    for node in graph:
        stack = constant(node.inputs[0]) if node.op_type == "Gather" and not node.domain else None
        if stack is None or stack.shape.rank() != 3 or node.attributes.get_int("axis", 0) != 0:
            continue
        assert node.inputs[1] is not None
        index = ir.convenience.get_const_tensor(node.inputs[1])
        if index is None or index.shape.rank() != 0:
            continue
        name = f"{stack.name}.{int(index.numpy())}"
        if name not in graph.initializers:
            add_constant(graph, name, stack.numpy()[int(index.numpy())])
        node.outputs[0].replace_all_uses_with(graph.initializers[name], replace_graph_outputs=True)
    RemoveUnusedNodesPass()(model)
