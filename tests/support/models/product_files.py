"""ONNX files of one product y = x W^T + b, dense or as topkast.SparseMatMul, and sessions that run them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import topkast
from topkast.passes.onnx.blocks import Block, Blocks, encode
from topkast.passes.onnx.formats import custom
from topkast.tests.support.stated import assert_valid


def sparse_matrix(rows: int, columns: int, block: Block, density: float, seed: int = 0) -> np.ndarray:
    """Random blocks; the first block row is empty and the last full, where there are several."""
    rng = np.random.default_rng(seed)
    r, c = block
    mask = rng.random((-(-rows // r), -(-columns // c))) < density
    if len(mask) > 1:
        mask[0], mask[-1] = False, True
    dense = np.kron(mask, np.ones(block))[:rows, :columns]
    return (rng.standard_normal((rows, columns)) * dense).astype(np.float32)


def dense_file(matrix: np.ndarray, bias: np.ndarray | None, lead: tuple[Any, ...] = ("batch",)) -> onnx.ModelProto:
    """MatMul and Add, as an exporter writes them."""
    rows, columns = matrix.shape
    constants = [numpy_helper.from_array(np.ascontiguousarray(matrix.T), "w")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y" if bias is None else "h"])]
    if bias is not None:
        constants.append(numpy_helper.from_array(bias, "b"))
        nodes.append(helper.make_node("Add", ["h", "b"], ["y"]))
    return _model(nodes, [_value("x", (*lead, columns))], [_value("y", (*lead, rows))], constants)


def parts(weight: Blocks, bias: np.ndarray | None, half: bool = False, wide: bool = False) -> dict[str, np.ndarray]:
    """The node's inputs but x."""
    found = {
        "values": weight.values.reshape(-1).astype(np.float16 if half else np.float32),
        "row_ptr": weight.row_ptr,
        "cols": weight.cols.astype(np.int32 if wide else np.uint16),
    }
    return found if bias is None else found | {"bias": bias}


def node_file(given: dict[str, np.ndarray], constant: bool = True, **attributes: Any) -> onnx.ModelProto:
    """One topkast.SparseMatMul node with these inputs, as constants of the file or as inputs of the graph."""
    node = helper.make_node("SparseMatMul", ["x", *given], ["y"], domain=custom.DOMAIN, **attributes)
    tensors = [numpy_helper.from_array(array, name) for name, array in given.items()]
    inputs = [_value("x", None)]
    if not constant:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, [None] * len(t.dims)) for t in tensors]
    return _model([node], inputs, [_value("y", None)], tensors if constant else [])


def sparse_file(
    matrix: np.ndarray, block: Block, bias: np.ndarray | None, half: bool = False, wide: bool = False
) -> onnx.ModelProto:
    """A node with the right inputs for ``matrix``."""
    given = parts(encode(matrix, block), bias, half, wide)
    return node_file(given, rows=matrix.shape[0], columns=matrix.shape[1], block=list(block))


def run(model: onnx.ModelProto, threads: int = 1, **feeds: np.ndarray) -> np.ndarray:
    """y, computed by our library; the file passes the full check."""
    (y,) = session(model, threads).run(None, feeds)
    assert_valid(model, y=y.shape, **{name: array.shape for name, array in feeds.items()})
    return y


def session(model: onnx.ModelProto | bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """A session with our library."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4  # what is refused is raised, not printed
    return topkast.onnx.session(model if isinstance(model, bytes) else model.SerializeToString(), sess_options=options)


def _value(name: str, shape: tuple[Any, ...] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: list[onnx.TensorProto],
) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(custom.DOMAIN, 1)]
    graph = helper.make_graph(nodes, "product", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)
