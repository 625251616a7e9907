"""The products x W^T (+ bias) of an ONNX graph whose weight is a constant matrix, however they are written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnx import NodeProto, TensorProto, helper

from .graph import Graph


@dataclass(frozen=True)
class Product:
    """One product.

    Args:
        nodes: what computes it, in order; the last one's output is ``y``.
        x, y: names of the activations [..., in] and [..., out].
        weight: name of the constant.
        transposed: whether that is [in, out] instead of [out, in].
        bias: name of a constant [out], or None.
    """

    nodes: tuple[NodeProto, ...]
    x: str
    y: str
    weight: str
    transposed: bool
    bias: str | None


def products(graph: Graph) -> Iterator[Product]:
    """All of them, in the graph's order."""
    find = {"MatMul": _matmul, "Gemm": _gemm}
    for node in graph.nodes:
        found = find[node.op_type](graph, node) if node.domain == "" and node.op_type in find else None
        if found is not None:
            yield found


def _matmul(graph: Graph, node: NodeProto) -> Product | None:
    (x, weight), (y,) = node.input, node.output
    if not _is_matrix(graph, weight):
        return None
    users = graph.users.get(y, [])
    if len(users) == 1 and users[0].op_type == "Add" and y not in graph.outputs:
        other = [name for name in users[0].input if name != y]
        if other and _is_vector(graph, other[0], graph.constants[weight].dims[1]):
            return Product((node, users[0]), x, users[0].output[0], weight, True, other[0])
    return Product((node,), x, y, weight, True, None)


def _gemm(graph: Graph, node: NodeProto) -> Product | None:
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    x, weight, *rest = node.input
    if given.get("transA", 0) or given.get("alpha", 1.0) != 1.0 or not _is_matrix(graph, weight):
        return None
    transposed, bias = not given.get("transB", 0), rest[0] if rest and rest[0] else None
    out = graph.constants[weight].dims[1 if transposed else 0]
    if bias is not None and not (given.get("beta", 1.0) == 1.0 and _is_vector(graph, bias, out)):
        return None
    return Product((node,), x, node.output[0], weight, transposed, bias)


def _is_matrix(graph: Graph, name: str) -> bool:
    tensor = graph.constants.get(name)
    return tensor is not None and len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT


def _is_vector(graph: Graph, name: str, length: int) -> bool:
    tensor = graph.constants.get(name)
    return tensor is not None and list(tensor.dims) == [length] and tensor.data_type == TensorProto.FLOAT
