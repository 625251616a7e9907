"""Let a copy of a file give, as further outputs, all that it computes or unpacks from int8."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from .formats.custom import DOMAIN, base_of, function
from .integers import Integers


def show_integers(model: onnx.ModelProto, integers: Integers) -> tuple[list[tuple[str, str]], list[str]]:
    """Change ``model`` in place.

    Each product gives its x, and its result before the activation: a node of ours that ends in an activation gets a
    twin without.

    Args:
        model: a file as :func:`topkast.passes.onnx.convert.convert` made it.
        integers: what is in int8 in it.

    Returns:
        (for each product the names of the outputs with x and y, for each weight the name of its output).
    """
    graph = model.graph
    nodes = {tuple(node.input[:2]): node for node in graph.node if node.domain == DOMAIN}
    products, weights = list[tuple[str, str]](), list[str]()
    for i, product in enumerate(integers.products):
        x, y = f"topkast.int8.{i}.x", f"topkast.int8.{i}.y"
        graph.node.append(helper.make_node("Identity", [product.x], [x]))
        if product.values is None:
            graph.node.append(helper.make_node("Identity", [product.y], [y]))
        else:
            graph.node.append(_without_activation(nodes[product.x, product.values], y))
        products.append((x, y))
    for i, weight in enumerate(integers.weights):
        weights.append(f"topkast.int8.{i}.weight")
        graph.node.append(helper.make_node("Identity", [weight.value], [weights[-1]]))
    known = {(made.domain, made.name) for made in model.functions}
    for kind in {node.op_type for node in graph.node if node.domain == DOMAIN}:
        if (DOMAIN, kind) not in known:
            opset = next(made.version for made in model.opset_import if not made.domain)
            model.functions.append(function(kind, opset))
    for name in [*(name for pair in products for name in pair), *weights]:
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return products, weights


def _without_activation(node: onnx.NodeProto, y: str) -> onnx.NodeProto:
    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    plain.op_type, plain.name = base_of(node.op_type), y
    del plain.output[:]
    plain.output.append(y)
    return plain
