"""The activation that follows a product, however an exporter writes it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from topkast.passes.onnx.graph import constant

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
        nodes: what computes it; the last one gives the result.
    """

    kind: str
    nodes: list[ir.Node]


def activation(x: ir.Value) -> Activation | None:
    """What alone takes ``x``, if that is an activation our kernels compute."""
    near = x.consumers()
    for kind, expression in EXPRESSIONS:
        for node in (*near, *(further for user in near for further in user.successors())):
            for nodes in _matches(expression, node.outputs[0], x):
                inner = [x, *(other.outputs[0] for other in nodes[:-1])]
                if all(set(value.consumers()) <= set(nodes) and not value.is_graph_output() for value in inner):
                    return Activation(_approximate(kind, node), nodes)
    return None


def _matches(expression: Any, value: ir.Value | None, x: ir.Value) -> Iterator[list[ir.Node]]:
    """The nodes that compute ``expression`` of ``x`` into ``value``, in each way to read them; its own node last."""
    if not isinstance(expression, tuple):
        if value is x if expression == X else _equals(value, expression):
            yield []
        return
    node = value.producer() if value is not None else None
    kind, *operands = expression
    if (
        node is None
        or node.op_type != kind
        or node.domain
        or len(node.inputs) != len(operands)
        or node.graph is not x.graph
    ):
        return
    orders = [operands, operands[::-1]] if kind in ("Add", "Mul") else [operands]
    for order in orders:
        found = [[node]]
        for operand, given in zip(order, node.inputs, strict=True):
            found = [more + before for before in found for more in _matches(operand, given, x)]
        yield from found


def _equals(value: ir.Value | None, number: float) -> bool:
    # A constant of more dimensions would add to those of x.
    tensor = constant(value)
    if tensor is None or tensor.shape.numpy() not in ((), (1,)):
        return False
    return math.isclose(tensor.numpy().item(), number, rel_tol=1e-6)


def _approximate(kind: str, node: ir.Node) -> str:
    """The operator Gelu says by an attribute which one it is."""
    return "GeluTanh" if node.attributes.get_string("approximate") == "tanh" else kind
