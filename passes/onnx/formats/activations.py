"""The activation that follows a product, however an exporter writes it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from onnx import NodeProto, helper

from topkast.passes.onnx.graph import Graph

X = "x"  # what the activation takes
_ERF = ("Add", ("Erf", ("Div", X, math.sqrt(2))), 1.0)
_TANH = ("Add", ("Tanh", ("Mul", math.sqrt(2 / math.pi), ("Add", X, ("Mul", 0.044715, ("Pow", X, 3.0))))), 1.0)
# (ending of the operator's name, expression): nested (operator, operands); numbers are constants.
EXPRESSIONS: list[tuple[str, Any]] = [
    ("Relu", ("Relu", X)),
    ("Relu6", ("Clip", X, 0.0, 6.0)),
    ("Silu", ("Mul", X, ("Sigmoid", X))),
    *(
        (kind, expression)
        for kind, sum in (("Gelu", _ERF), ("GeluTanh", _TANH))
        for expression in (("Mul", X, ("Mul", 0.5, sum)), ("Mul", ("Mul", 0.5, X), sum), ("Mul", 0.5, ("Mul", X, sum)))
    ),
    ("Gelu", ("Gelu", X)),
]


@dataclass(frozen=True)
class Activation:
    """One activation.

    Args:
        kind: as the operators' names end.
        nodes: what computes it.
        y: name of its result.
    """

    kind: str
    nodes: list[NodeProto]
    y: str


def activation(graph: Graph, x: str) -> Activation | None:
    """What alone takes ``x``, if that is an activation our kernels compute."""
    if x in graph.outputs:
        return None
    near = graph.users.get(x, [])
    last = [*near, *(user for node in near for user in graph.users.get(node.output[0], []))]
    for kind, expression in EXPRESSIONS:
        for node in last:
            for nodes in _matches(graph, expression, node.output[0], x):
                inner = [x, *(other.output[0] for other in nodes if other is not node)]
                alone = all(any(user is other for other in nodes) for name in inner for user in graph.users[name])
                if alone and not graph.outputs.intersection(inner):
                    return Activation(_approximate(kind, node), nodes, node.output[0])
    return None


def _matches(graph: Graph, expression: Any, name: str, x: str) -> Iterator[list[NodeProto]]:
    """The nodes that compute ``expression`` of ``x`` into ``name``, in each way to read them."""
    if expression == X:
        yield from [[]] if name == x else []
        return
    if isinstance(expression, float):
        yield from [[]] if _equals(graph, name, expression) else []
        return
    node = graph.producers.get(name)
    kind, *operands = expression
    if node is None or node.op_type != kind or node.domain or len(node.input) != len(operands):
        return
    orders = [operands, operands[::-1]] if kind in ("Add", "Mul") else [operands]
    for order in orders:
        found: list[list[NodeProto]] = [[node]]
        for operand, given in zip(order, node.input, strict=True):
            found = [before + more for before in found for more in _matches(graph, operand, given, x)]
        yield from found


def _equals(graph: Graph, name: str, value: float) -> bool:
    # One of more dims would add to those of x.
    if name not in graph.constants or list(graph.constants[name].dims) not in ([], [1]):
        return False
    return math.isclose(graph.array(name).item(), value, rel_tol=1e-6)


def _approximate(kind: str, node: NodeProto) -> str:
    """The operator Gelu says by an attribute which one it is."""
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return "GeluTanh" if given.get("approximate") == b"tanh" else kind
