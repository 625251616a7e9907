"""Cut units out of a graph's tensors, and put what they added into biases."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import NodeProto, helper

from topkast.passes.onnx.blocks import Array
from topkast.passes.onnx.graph import graphs

from .move_rules import entries_of
from .units import At, Linear, Units


def cut(units: Units, keep: Array, foldable: Mapping[int, Array]) -> None:
    """Change the graph in place.

    Args:
        units: of the graph.
        keep: bool, by label; whole parts, and at least one unit of each axis.
        foldable: for each linear node the numbers [cols] its constant inputs hold, NaN elsewhere.
    """
    cutter = _Cutter(units, keep)
    for linear in units.linears:
        cutter.fold(linear, foldable[linear.at.index])
    cutter.constants()
    cutter.biases()
    for index, node in enumerate(units.graph.nodes):
        if node.op_type in SIZES:
            SIZES[node.op_type](cutter, At(units.graph, index, node))
    cutter.shapes()
    units.graph.finish()


class _Cutter:
    def __init__(self, units: Units, keep: Array) -> None:
        self.units, self.graph, self.keep = units, units.graph, keep
        self.added: dict[tuple[int, int], Array] = {}  # to the constant that is input i of a node
        self.index = {id(node): index for index, node in enumerate(self.graph.nodes)}
        self.unbiased: list[tuple[NodeProto, str]] = []  # products, and what is to be added to them
        held = list(graphs(self.graph.model.graph))
        self.taken = {name for graph in held for node in graph.node for name in (*node.input, *node.output)}
        self.taken |= {value.name for graph in held for value in (*graph.input, *graph.output, *graph.initializer)}

    def _name(self, name: str) -> str:
        """One that nothing in the file has: exporters name values after modules, and constants too."""
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def fold(self, linear: Linear, numbers: Array) -> None:
        """Let the bias have what the constant inputs add that go."""
        gone = np.where(self.keep[linear.cols] | np.isnan(numbers), 0, numbers)
        if not gone.any():
            return
        added, at = linear.times(gone), linear.at
        if not added[self.keep[linear.rows]].any():
            return
        if linear.bias is None:
            place = self._addition(at.node.output[0], len(linear.rows))
            if place is None:
                self.unbiased.append((at.node, self._bias(linear, added)))
                return
        elif at.has(linear.bias):
            place = at.index, linear.bias
        else:
            at.node.input[:] = [*at.node.input[: linear.bias], self._bias(linear, added)]
            return
        self.added[place] = added

    def _bias(self, linear: Linear, added: Array) -> str:
        array = added[self.keep[linear.rows]].astype(linear.weight.dtype)
        return self.graph.add(self._name(f"{linear.at.node.output[0]}.bias"), array)

    def biases(self) -> None:
        """Add those that a product has no place for; after constants are cut, for its copy reads the cut ones."""
        for node, bias in self.unbiased:
            product = _copy(node, output=self._name(f"{node.output[0]}.product"))
            add = helper.make_node("Add", [product.output[0], bias], [node.output[0]])
            self.graph.replace([node], [product, add])

    def _addition(self, y: str, size: int) -> tuple[int, int] | None:
        """The constant vector that is added to ``y``, if that is all that is done with it."""
        users = self.graph.users.get(y, [])
        if len(users) == 1 and users[0].op_type == "Add" and y not in self.graph.outputs and id(users[0]) in self.index:
            for i, name in enumerate(users[0].input):
                if name in self.graph.constants and list(self.graph.constants[name].dims) == [size]:
                    return self.index[id(users[0])], i
        return None

    def constants(self) -> None:
        """Each in as many versions as its users need."""
        uses: dict[str, dict[bytes, tuple[Array, list[tuple[NodeProto, int]]]]] = {}
        seen: dict[str, int] = {}
        for index, node in enumerate(self.graph.nodes):
            at = At(self.graph, index, node)
            for i, name in enumerate(node.input):
                if name not in self.graph.constants:
                    continue
                seen[name] = seen.get(name, 0) + 1
                array = self.graph.array(name)
                more = self.added.get((index, i))
                if more is not None:
                    array = (array + more).astype(array.dtype)
                masks = [self.keep[labels] for labels in self.units.axes[at.operand(i)] if labels is not None]
                if more is None and all(mask.all() for mask in masks):
                    continue
                array = array[np.ix_(*masks)]
                where = uses.setdefault(name, {}).setdefault(array.tobytes(), (array, []))[1]
                where.append((node, i))
        for name, versions in uses.items():
            cut_uses = sum(len(where) for _, where in versions.values())
            alone = len(versions) == 1 and cut_uses == seen[name] == len(self.graph.users[name])
            alone = alone and name not in self.graph.outputs
            for number, (array, where) in enumerate(versions.values()):
                new = self.graph.add(name if alone else self._name(f"{name}.cut{number}"), array)
                for node, i in where:
                    node.input[i] = new

    def shapes(self) -> None:
        """The sizes that the file states."""
        proto = self.graph.model.graph
        for value in [*proto.value_info, *proto.output]:
            for labels, dim in zip(self.units.axes.get(value.name, ()), value.type.tensor_type.shape.dim, strict=False):
                if labels is not None and not self.keep[labels].all():
                    dim.dim_value = int(self.keep[labels].sum())

    def groups(self, at: At) -> None:
        groups = at.given.get("group", 1)
        rows = next((linear.rows for linear in self.units.linears if linear.at.node is at.node), None)
        if rows is not None and groups > 1 and not self.keep[rows].all():
            _set(at.node, "group", groups * int(self.keep[rows].sum()) // len(rows))

    def reshape(self, at: At) -> None:
        y, entries = at.node.output[0], entries_of(self.graph, at.node.input[1])
        axes = self.units.axes.get(y, [])
        change = np.zeros(len(axes), np.int64)
        for axis, labels in enumerate(axes):
            if labels is not None and not self.keep[labels].all() and (entries or ())[axis] not in (0, -1):
                change[axis] = self.keep[labels].sum() - len(labels)
        if not change.any():
            return
        shape = at.constant(1)
        if shape is not None:
            at.node.input[1] = self.graph.add(self._name(f"{y}.shape"), shape + change)
            return
        changed = self._name(f"{y}.shape")
        more = self.graph.add(self._name(f"{y}.change"), change)
        add = helper.make_node("Add", [at.node.input[1], more], [changed])
        at.node.input[1] = changed
        self.graph.replace([at.node], [add, at.node])

    def split(self, at: At) -> None:
        axis, rest = at.given.get("axis", 0), [a for a in at.node.attribute if a.name != "num_outputs"]
        if any(name not in self.units.axes for name in at.node.output):
            return
        parts = [self.units.axes[name][axis] for name in at.node.output]
        sizes = [0 if labels is None else int(self.keep[labels].sum()) for labels in parts]
        if sizes != [0 if labels is None else len(labels) for labels in parts]:
            at.node.input[:] = [
                at.node.input[0],
                self.graph.add(self._name(f"{at.node.output[0]}.sizes"), np.array(sizes)),
            ]
            del at.node.attribute[:]
            at.node.attribute.extend(rest)

    def slice(self, at: At) -> None:
        starts, ends = at.ints(1), at.ints(2)
        axes = at.ints(3) if at.has(3) else list(range(len(starts or ())))
        x = self.units.axes.get(at.operand(0))
        if starts is None or ends is None or axes is None or x is None:
            return
        cut_any = False
        for i, axis in enumerate(axes):
            labels = x[axis]
            if labels is not None and not self.keep[labels].all():
                start, end, _ = slice(starts[i], ends[i]).indices(len(labels))
                starts[i], ends[i] = int(self.keep[labels[:start]].sum()), int(self.keep[labels[:end]].sum())
                cut_any = True
        if cut_any:
            dtype = self.graph.array(at.node.input[1]).dtype
            for i, name, values in ((1, "starts", starts), (2, "ends", ends)):
                array = np.array(values, np.int64).astype(dtype)
                at.node.input[i] = self.graph.add(self._name(f"{at.node.output[0]}.{name}"), array)


# Nodes that state sizes.
SIZES = {
    "Conv": _Cutter.groups,
    "ConvTranspose": _Cutter.groups,
    "Reshape": _Cutter.reshape,
    "Slice": _Cutter.slice,
    "Split": _Cutter.split,
}


def _copy(node: NodeProto, output: str) -> NodeProto:
    made = NodeProto()
    made.CopyFrom(node)
    made.output[:] = [output]
    return made


def _set(node: NodeProto, name: str, value: int) -> None:
    for attribute in node.attribute:
        if attribute.name == name:
            attribute.i = value
