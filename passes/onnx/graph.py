"""An ONNX model while its weights are stored another way: constants and users at hand, changes collected."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from .blocks import Array


class Graph:
    """The main graph of a model; inner graphs count as users and stay as they are.

    Args:
        model: holds its weights itself (none in files beside it); changed by :meth:`finish`.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        proto = model.graph
        inputs = {value.name for value in proto.input}
        self.nodes = list(proto.node)
        self.outputs = {value.name for value in proto.output}
        self.constants = {tensor.name: tensor for tensor in proto.initializer if tensor.name not in inputs}
        self.users: dict[str, list[NodeProto]] = {}
        for graph in graphs(proto):
            for node in graph.node:
                for name in node.input:
                    self.users.setdefault(name, []).append(node)
        self.producers = {name: node for node in self.nodes for name in node.output}
        self._shapes = {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in [*proto.input, *proto.value_info, *proto.output]
            if value.type.tensor_type.HasField("shape")
        }
        self.sparse: list[onnx.SparseTensorProto] = []  # constants to add that are stored sparse
        self._added: dict[str, TensorProto] = {}
        self._instead: dict[str, list[NodeProto]] = {}
        self._first: list[NodeProto] = []

    def array(self, name: str) -> Array:
        """A constant's values."""
        return numpy_helper.to_array(self.constants[name])

    def shape(self, name: str) -> list[int | str] | None:
        """An activation's dimensions, those of unknown size by their name or as 0; None where the file does not say."""
        return self._shapes.get(name)

    def rank(self, name: str) -> int | None:
        """How many dimensions an activation has, None where the file does not say."""
        return len(self._shapes[name]) if name in self._shapes else None

    def rows(self, name: str, sizes: Mapping[str, int]) -> int | None:
        """The product of an activation's leading dimensions, dynamic ones of these sizes; None where one is unknown."""
        dims = self.dims(name, sizes)
        return None if dims is None or None in dims[:-1] else math.prod(dim or 0 for dim in dims[:-1])

    def dims(self, name: str, sizes: Mapping[str, int]) -> list[int | None] | None:
        """An activation's dimensions, dynamic ones of these sizes; None where the file does not say."""
        return [_size(dim, sizes) for dim in self._shapes[name]] if name in self._shapes else None

    def add(self, name: str, array: Array) -> str:
        """A constant of this name, made unless it is there; its name."""
        if name not in self._added:
            self._added[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def add_floats(self, name: str, array: Array, half: bool) -> str:
        """A float32 constant; with ``half`` stored as float16, and widened by a node that is folded at load."""
        if not half:
            return self.add(name, array)
        if f"{name}.half" not in self._added:
            self.add(f"{name}.half", array.astype(np.float16))
            self._first.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
        return name

    def added_bytes(self) -> int:
        """Bytes of the constants that were added."""
        return sum(len(tensor.raw_data) for tensor in self._added.values())

    def replace(self, old: Sequence[NodeProto], new: list[NodeProto]) -> None:
        """Put ``new`` in the place of ``old``, whose last node gives the result."""
        for node in old:
            self._instead[node.output[0]] = []
        self._instead[old[-1].output[0]] = new

    def remove(self, nodes: Iterable[NodeProto]) -> None:
        """Take nodes out, whose results nothing needs, or another node gives."""
        for node in nodes:
            self._instead.setdefault(node.output[0], [])

    def compute(self, name: str, nodes: Iterable[NodeProto]) -> None:
        """Let ``nodes``, which need constants only, give the constant ``name`` its value."""
        del self.constants[name]
        self._first += nodes

    def finish(self) -> None:
        """Write the changes into the model, without the constants that nothing uses any more.

        A constant states its shape itself. What the file says of it a second time, as exporters do, is left out: it
        would have to be changed wherever a constant is.
        """
        proto = self.model.graph
        nodes = [new for node in self.nodes for new in self._instead.get(node.output[0], [node])]
        del proto.node[:]
        proto.node.extend([*self._first, *nodes])
        used = {name for graph in graphs(proto) for node in graph.node for name in node.input} | self.outputs
        tensors = [tensor for tensor in (self.constants | self._added).values() if tensor.name in used]
        inputs = {value.name for value in proto.input}
        tensors += [tensor for tensor in proto.initializer if tensor.name in inputs]
        del proto.initializer[:]
        proto.initializer.extend(tensors)
        proto.sparse_initializer.extend(self.sparse)
        computed = {name for node in proto.node for name in node.output}
        values = [value for value in proto.value_info if value.name in computed]
        del proto.value_info[:]
        proto.value_info.extend(values)


def _size(dim: str | int, sizes: Mapping[str, int]) -> int | None:
    """A dimension as a number; a dynamic one may be a product, as in ``128*batch`` for tokens laid out in one row."""
    factors = [sizes.get(factor, int(factor) if factor.isdecimal() else None) for factor in str(dim).split("*")]
    return None if None in factors else math.prod(factor or 0 for factor in factors)


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and all that its control flow holds."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs:
                yield from graphs(inner)
