"""Let a model compute each int8 weight's products in float32 too, and choose between the two while it runs.

With one such file the effect of int8 is measured for any choice of weights, without writing a file for each choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from .constant_products import Product, products
from .convert import Wanted, convert
from .formats.weight import Weight
from .graph import Builder, add_constant, array_of

SWITCHES = "topkast.int8"  # the name of the input, bool [weights]: whether a weight is in int8


def switch_integers(model: ir.Model, wanted: Wanted, names: Sequence[str]) -> None:
    """Change ``model``, which holds its weights dense in float32, in place.

    Args:
        model: gets one more input, :data:`SWITCHES`, in the order of ``names``.
        wanted: how to store the weights, with precision "int8".
        names: the weights that ``convert`` stores in int8 then.
    """
    graph = model.graph
    switches = ir.Value(name=SWITCHES, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([len(names)]))
    graph.inputs.append(switches)
    by_weight = dict[ir.Value, list[Product]]()
    for product in products(graph):
        by_weight.setdefault(product.weight, []).append(product)
    for value, found in by_weight.items():
        label = Weight(value, found, "fp32", wanted.blocks, wanted.names, wanted.sizes).label
        if label in names:
            _switch(graph, value, found, switches, list(names).index(label))
    convert(model, wanted)


def _switch(graph: ir.Graph, value: ir.Value, found: list[Product], switches: ir.Value, number: int) -> None:
    """Compute each use of a weight twice."""
    builder = Builder(graph, f"{value.name}.switch")
    index = add_constant(graph, f"{value.name}.switch.number", np.array(number))
    is_int8 = builder.node("Gather", switches, index, axis=0)
    # Behind a node, the copy is no weight of a product any more, so it stays as it is.
    in_float = builder.node("Identity", add_constant(graph, f"{value.name}.in_float", array_of(value)))
    in_float.type, in_float.shape = value.type, value.shape
    floats: dict[ir.Value | None, ir.Value] = {value: in_float}
    readers = {product.nodes[0] for product in found}
    for turned in {reader.inputs[1] for reader in readers} - {value}:
        floats[turned] = builder.node("Transpose", in_float, perm=[1, 0])
        readers.add(turned.producer())  # type: ignore[union-attr, arg-type]
    graph.insert_before(graph[0], builder.nodes)
    others = [use for use in value.uses() if use.node not in readers]
    for product in found:
        copies = dict(floats)
        for node in product.nodes:
            inputs = [copies.get(x, x) for x in node.inputs]
            y = ir.Value(
                name=f"{node.outputs[0].name}.in_float", type=node.outputs[0].type, shape=node.outputs[0].shape
            )
            twin = ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()), outputs=[y])
            graph.insert_after(product.nodes[-1], [twin])
            copies[node.outputs[0]] = y
        _choose(graph, is_int8, product.y, y, y.producer())
    for use in others:
        chosen = ir.Node("", "Where", [is_int8, value, in_float])
        chosen.outputs[0].name = f"{value.name}.{use.node.name}.{use.idx}.chosen"
        graph.insert_before(use.node, [chosen])
        use.node.replace_input_with(use.idx, chosen.outputs[0])


def _choose(graph: ir.Graph, is_int8: ir.Value, y: ir.Value, in_float: ir.Value, after: ir.Node | None) -> None:
    assert after is not None
    chosen = ir.Node("", "Where", [is_int8, in_float, in_float])
    (new,) = chosen.outputs
    new.type, new.shape, new.name = y.type, y.shape, y.name
    ir.convenience.replace_all_uses_with(y, new, replace_graph_outputs=True)
    y.name = f"{y.name}.in_int8"
    chosen.replace_input_with(1, y)
    graph.insert_after(after, [chosen])
