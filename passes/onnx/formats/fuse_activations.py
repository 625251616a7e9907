"""An activation that follows one of our products, however an exporter writes it, goes into the product's node.

   h = SparseMatMul(x, ...); y = Mul(h, Sigmoid(h))
-> y = SparseMatMulSilu(x, ...)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

from .custom import DOMAIN


def number(value: float) -> Any:
    """A constant scalar. A constant of more dimensions would add to those of the other operand."""
    return pattern.OrValue([pattern.Constant(given, rel_tol=1e-6, abs_tol=0) for given in (value, [value])])


def either(operator: Any, a: Any, b: Any) -> Any:
    """The operator of two operands in any order."""
    return pattern.OrValue([operator(a, b), operator(b, a)])


def _erf(op: Any, h: Any) -> Any:
    return either(op.Add, op.Erf(op.Div(h, number(math.sqrt(2)))), number(1.0))


def _tanh(op: Any, h: Any) -> Any:
    cubic = either(op.Mul, number(0.044715), op.Pow(h, number(3.0)))
    inner = either(op.Mul, number(math.sqrt(2 / math.pi)), either(op.Add, h, cubic))
    return either(op.Add, op.Tanh(inner), number(1.0))


# Ending of the operator's name -> the result by (builder of patterns, what the activation takes). A pair: its product.
EXPRESSIONS: list[tuple[str, Any]] = [
    ("Relu", lambda op, h: op.Relu(h)),
    ("Relu6", lambda op, h: op.Clip(h, number(0.0), number(6.0))),
    ("Silu", lambda op, h: (h, op.Sigmoid(h))),
    ("GeluTanh", lambda op, h: op.Gelu(h, approximate="tanh")),
    ("GeluTanh", lambda op, h: (h, either(op.Mul, number(0.5), _tanh(op, h)))),
    ("GeluTanh", lambda op, h: (either(op.Mul, number(0.5), h), _tanh(op, h))),
    ("GeluTanh", lambda op, h: (number(0.5), either(op.Mul, h, _tanh(op, h)))),
    ("Gelu", lambda op, h: op.Gelu(h)),
    ("Gelu", lambda op, h: (h, either(op.Mul, number(0.5), _erf(op, h)))),
    ("Gelu", lambda op, h: (either(op.Mul, number(0.5), h), _erf(op, h))),
    ("Gelu", lambda op, h: (number(0.5), either(op.Mul, h, _erf(op, h)))),
]


def _rules(ending: str, expression: Any) -> Iterator[pattern.RewriteRule]:
    def in_order(step: int) -> Any:
        def activation(op: Any, h: Any) -> Any:
            found = expression(op, h)
            return op.Mul(*found[::step]) if isinstance(found, tuple) else found

        return activation

    def is_alone(context: Any, h: ir.Value) -> bool:
        product = h.producer()
        if product is None or product.domain != DOMAIN or h.is_graph_output():
            return False
        operands = [value for node in context.nodes for value in node.inputs]
        defaults = any(value.is_graph_input() for value in operands)  # a run may give another number
        return not defaults and all(user in context.nodes for user in h.consumers())

    def fused(op: Any, h: ir.Value) -> ir.Value:
        product = h.producer()
        assert product is not None
        kind = f"{product.op_type}{ending}"
        return op.op(kind, *product.inputs, _domain=DOMAIN, _name=product.name, **product.attributes)

    for step in (1, -1):
        yield pattern.RewriteRule(in_order(step), fused, is_alone)


RULES = pattern.RewriteRuleSet([rule for ending, expression in EXPRESSIONS for rule in _rules(ending, expression)])


def fuse_activations(model: ir.Model) -> int:
    """Change ``model`` in place; how many were fused. The products' former nodes stay, and nothing reads them."""
    return RULES.apply_to_model(model)
