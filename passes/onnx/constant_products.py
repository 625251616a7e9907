"""The products x W^T (+ bias) and the convolutions of an ONNX graph whose weight is a constant, however written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from .graph import constant


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

    @property
    def is_pixelwise(self) -> bool:
        """Whether each result reads one pixel, the one in its own place."""
        given = self.attributes
        return set(given["kernel_shape"]) | set(given["strides"]) == {1} and not any(given["pads"]) and self.group == 1


@dataclass(frozen=True)
class Product:
    """One product.

    Args:
        nodes: what computes it, in order; the first one reads ``x``, the last one's output is ``y``.
        weight: the constant.
        transposed: whether that is [in, out] instead of [out, in].
        bias: a constant [out], or None.
        conv: None for a matrix.
    """

    nodes: tuple[ir.Node, ...]
    weight: ir.Value
    transposed: bool
    bias: ir.Value | None
    conv: Convolution | None = None

    @property
    def x(self) -> ir.Value:
        """The activation [..., in], of a convolution [batch, channels, ...]; it changes if its own node is replaced."""
        (x, *_) = self.nodes[0].inputs
        assert x is not None
        return x

    @property
    def y(self) -> ir.Value:
        """The activation [..., out]; of a convolution [batch, channels, ...]."""
        return self.nodes[-1].outputs[0]


def products(graph: ir.Graph) -> Iterator[Product]:
    """All of them, in the graph's order, those of inner graphs too."""
    find = {"MatMul": _matmul, "Gemm": _gemm, "Conv": _conv}
    for node in graph.all_nodes():
        found = find[node.op_type](node) if node.domain == "" and node.op_type in find else None
        if found is not None:
            yield found


def _matmul(node: ir.Node) -> Product | None:
    (_, right), (y,) = node.inputs, node.outputs
    weight, transposed = turned_constant(right), False
    if weight is None:
        weight, transposed = right, True
    dims = _float_sizes(weight)
    if weight is None or len(dims) != 2:
        return None
    dims = dims if transposed else dims[::-1]
    users = [use.node for use in y.uses()]
    if len(users) == 1 and users[0].op_type == "Add" and not users[0].domain and not y.is_graph_output():
        (add,) = users
        (other,) = (value for value in add.inputs if value is not y)
        if _float_sizes(other) == dims[1:] and add.graph is node.graph:  # in no inner graph
            return Product((node, add), weight, transposed, other)
    return Product((node,), weight, transposed, None)


def turned_constant(value: ir.Value | None) -> ir.Value | None:
    """The matrix of which ``value`` is the transpose, as of a head that is tied to an embedding; None otherwise."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Transpose" or node.domain:
        return None
    (matrix,) = node.inputs
    dims, perm = _float_sizes(matrix), node.attributes.get_ints("perm", (1, 0))
    return matrix if len(dims) == 2 and tuple(perm) == (1, 0) else None


def _gemm(node: ir.Node) -> Product | None:
    given, (_, weight, *rest) = node.attributes, node.inputs
    dims = _float_sizes(weight)
    if weight is None or len(dims) != 2 or given.get_int("transA", 0) != 0 or given.get_float("alpha", 1.0) != 1.0:
        return None
    transposed, bias = given.get_int("transB", 0) == 0, rest[0] if rest else None
    out = dims[1 if transposed else 0]
    if bias is not None and not (given.get_float("beta", 1.0) == 1.0 and _float_sizes(bias) == (out,)):
        return None
    return Product((node,), weight, transposed, bias)


def _conv(node: ir.Node) -> Product | None:
    given = {attribute.name: attribute.value for attribute in node.attributes.values()}
    _, weight, *rest = node.inputs
    dims, bias = _float_sizes(weight), rest[0] if rest else None
    if weight is None or not 3 <= len(dims) <= 5 or given.pop("auto_pad", "NOTSET") != "NOTSET":
        return None
    out, channels, *kernel = dims
    if bias is not None and _float_sizes(bias) != (out,):
        return None
    ones = [1] * len(kernel)
    defaults: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": ones,
        "pads": [0, 0] * len(kernel),
        "dilations": ones,
        "group": 1,
    }
    attributes = defaults | given
    if min(attributes["pads"]) < 0:
        return None
    return Product((node,), weight, False, bias, Convolution(attributes, channels, attributes["group"]))


def _float_sizes(value: ir.Value | None) -> tuple[int, ...]:
    """The dimensions of a float32 constant; none for any other value."""
    tensor = constant(value)
    return tuple(tensor.shape.numpy()) if tensor is not None and tensor.dtype == ir.DataType.FLOAT else ()
