"""Constants and sizes of an ``onnx_ir`` graph, and a builder of the nodes that replace others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from .blocks import Array

SPARSE = "topkast.sparse"  # in a constant's ``meta``: the file stores the constant as a sparse initializer


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of a constant; None if the value is computed, or is an input with a default."""
    if value is None or not value.is_initializer() or value.is_graph_input():
        return None
    return value.const_value


def array_of(value: ir.Value) -> Array:
    """The numbers of a constant."""
    assert value.const_value is not None
    return value.const_value.numpy()


def shape_of(value: ir.Value) -> list[int | str] | None:
    """A value's dimensions, those of unknown size by their name or as 0; None if the file does not say."""
    if value.shape is None:
        return None
    return [dim if isinstance(dim, int) else dim.value or 0 for dim in value.shape]


def sizes_of(value: ir.Value, sizes: Mapping[str, int]) -> list[int | None] | None:
    """A value's dimensions, dynamic ones of these sizes; None if the file does not say."""
    dims = shape_of(value)
    return None if dims is None else [_size(dim, sizes) for dim in dims]


def rows_of(value: ir.Value, sizes: Mapping[str, int]) -> int | None:
    """The product of a value's leading dimensions, dynamic ones of these sizes; None if a dimension is unknown."""
    dims = sizes_of(value, sizes)
    return None if dims is None or None in dims[:-1] else math.prod(dim or 0 for dim in dims[:-1])


def _size(dim: str | int, sizes: Mapping[str, int]) -> int | None:
    """A dimension as a number; a dynamic one may be a product, as in ``128*batch`` for tokens laid out in one row."""
    factors = [sizes.get(factor, int(factor) if factor.isdecimal() else None) for factor in str(dim).split("*")]
    return None if None in factors else math.prod(factor or 0 for factor in factors)


def add_constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """A new constant."""
    return ir.tape.Tape(graph).initializer(ir.tensor(np.ascontiguousarray(array), name=name))


class Builder(ir.tape.Tape):
    """Nodes that will replace others. Their constants are in the graph at once; those of equal names are one constant.

    Such a constant may be read before the node that widens it, so the graph must be sorted in the end.

    Args:
        graph: takes the constants and the nodes.
        label: the names of the nodes and of their results begin so.
    """

    def __init__(self, graph: ir.Graph, label: str) -> None:
        super().__init__()
        self.graph, self.label, self.added_bytes = graph, label, 0

    def node(self, kind: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
        """The result of a new node."""
        name = f"{self.label}.{len(self.nodes)}"
        return self.op(kind, inputs, attributes, name=name, output=ir.Value(name=name))  # type: ignore[arg-type]

    def node_of(self, kind: str, *inputs: ir.Value, outputs: int) -> Sequence[ir.Value]:
        """The results of a new node that has several."""
        name = f"{self.label}.{len(self.nodes)}"
        values = [ir.Value(name=f"{name}.{i}") for i in range(outputs)]
        return self.op_multi_out(kind, inputs, name=name, outputs=values)

    def constant(self, name: str, array: Array) -> ir.Value:
        """A constant of this name, made unless it is there."""
        if name not in self.graph.initializers:
            self.added_bytes += array.nbytes
            add_constant(self.graph, name, array)
        return self.graph.initializers[name]

    def floats(self, name: str, array: Array, dtype: type[np.generic]) -> ir.Value:
        """A float32 constant, stored as ``dtype``; a node, which is folded at load, widens other types."""
        if dtype is np.float32:
            return self.constant(name, array)
        suffix = "half" if dtype is np.float16 else dtype.__name__
        stored = self.constant(f"{name}.{suffix}", array.astype(dtype))
        if not stored.uses():
            self.op("Cast", [stored], {"to": ir.DataType.FLOAT}, name=stored.name, output=ir.Value(name=name))
        return stored.consumers()[0].outputs[0]

    def scaled(self, value: ir.Value, name: str, scale: Array | None) -> ir.Value:
        """``value`` times the scale of the constant ``name``, if there is one."""
        return value if scale is None else self.node("Mul", value, self.constant(f"{name}.scale", scale))

    def replace(self, old: Sequence[ir.Node], y: ir.Value) -> None:
        """Put the new nodes in the place of ``old``; ``y`` is the result of its last node from now on."""
        graph = old[-1].graph  # perhaps an inner graph; constants are in the outer one
        assert graph is not None
        ir.convenience.replace_nodes_and_values(graph, old[-1], old, self.nodes, old[-1].outputs, [y])

    def compute(self, value: ir.Value, y: ir.Value) -> None:
        """Let the new nodes, which need constants only, give the constant ``value``, which is ``y`` from now on."""
        assert value.name is not None
        value.replace_all_uses_with(y, replace_graph_outputs=True)
        del self.graph.initializers[value.name]
        y.name, y.type, y.shape = value.name, value.type, value.shape
        self.graph.insert_before(self.graph[0], self.nodes)
