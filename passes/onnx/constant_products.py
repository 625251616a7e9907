"""The products x W^T (+ bias) and the convolutions of an ONNX graph whose weight is a constant, however written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from onnx import NodeProto, TensorProto, helper

from .graph import Graph


@dataclass(frozen=True)
class Convolution:
    """What a convolution is beside a product.

    Args:
        attributes: all of the operator Conv's but auto_pad.
        channels: of a group.
        group: how many groups.
    """

    attributes: dict[str, Any]
    channels: int
    group: int


@dataclass(frozen=True)
class Product:
    """One product.

    Args:
        nodes: what computes it, in order; the last one's output is ``y``.
        x, y: names of the activations [..., in] and [..., out]; of a convolution [batch, channels, ...].
        weight: name of the constant.
        transposed: whether that is [in, out] instead of [out, in].
        bias: name of a constant [out], or None.
        conv: None for a matrix.
    """

    nodes: tuple[NodeProto, ...]
    x: str
    y: str
    weight: str
    transposed: bool
    bias: str | None
    conv: Convolution | None = None


def products(graph: Graph) -> Iterator[Product]:
    """All of them, in the graph's order."""
    find = {"MatMul": _matmul, "Gemm": _gemm, "Conv": _conv}
    for node in graph.nodes:
        found = find[node.op_type](graph, node) if node.domain == "" and node.op_type in find else None
        if found is not None:
            yield found


def _matmul(graph: Graph, node: NodeProto) -> Product | None:
    (x, weight), (y,) = node.input, node.output
    if not _is_matrix(graph, weight):
        return None
    users = graph.users.get(y, [])
    outside = len(users) == 1 and graph.producers.get(users[0].output[0]) is users[0]  # in no inner graph
    if outside and users[0].op_type == "Add" and not users[0].domain and y not in graph.outputs:
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


def _conv(graph: Graph, node: NodeProto) -> Product | None:
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    x, weight, *rest = node.input
    tensor = graph.constants.get(weight)
    if tensor is None or tensor.data_type != TensorProto.FLOAT or given.pop("auto_pad", b"NOTSET") != b"NOTSET":
        return None
    out, channels, *kernel = tensor.dims
    bias = rest[0] if rest and rest[0] else None
    if not 1 <= len(kernel) <= 3 or not (bias is None or _is_vector(graph, bias, out)):
        return None
    ones = [1] * len(kernel)
    defaults = {"kernel_shape": kernel, "strides": ones, "pads": [0, 0] * len(kernel), "dilations": ones, "group": 1}
    attributes = defaults | given
    if min(attributes["pads"]) < 0:
        return None
    conv = Convolution(attributes, channels, attributes["group"])
    return Product((node,), x, node.output[0], weight, False, bias, conv)


def _is_matrix(graph: Graph, name: str) -> bool:
    tensor = graph.constants.get(name)
    return tensor is not None and len(tensor.dims) == 2 and tensor.data_type == TensorProto.FLOAT


def _is_vector(graph: Graph, name: str, length: int) -> bool:
    tensor = graph.constants.get(name)
    return tensor is not None and list(tensor.dims) == [length] and tensor.data_type == TensorProto.FLOAT
