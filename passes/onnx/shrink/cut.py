"""Cut units out of a graph's tensors, and put what they added into biases."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from topkast.passes.onnx.blocks import Array
from topkast.passes.onnx.graph import add_constant, array_of, constant

from .move_rules import entries_of
from .units import At, Linear, Units, Use


def cut(units: Units, keep: Array, foldable: Mapping[ir.Node, Array]) -> None:
    """Change the graph in place.

    Args:
        units: of the graph.
        keep: bool, by label; whole parts, and at least one unit of each axis.
        foldable: for each linear node the numbers [cols] its constant inputs hold, NaN elsewhere.
    """
    cutter = _Cutter(units, keep)
    for linear in units.linears:
        cutter.fold(linear, foldable[linear.at.node])
    cutter.constants()
    for node in units.model.graph:
        if node.op_type in SIZES:
            SIZES[node.op_type](cutter, At(node))
    cutter.shapes()
    cutter.biases()
    RemoveUnusedNodesPass()(units.model)


class _Cutter:
    def __init__(self, units: Units, keep: Array) -> None:
        self.units, self.graph, self.keep = units, units.model.graph, keep
        self.added: dict[Use, Array] = {}  # to a constant in one place
        self.unbiased: list[tuple[ir.Value, ir.Value]] = []  # results of products, and what is to be added to them
        self.taken: set[str | None] = set()
        for graph in units.model.graphs():
            self.taken |= {value.name for value in (*graph.inputs, *graph.initializers.values())}
            self.taken |= {value.name for node in graph for value in node.outputs}

    def _name(self, name: str) -> str:
        """One that nothing in the file has: exporters name values after modules, and constants too."""
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def _constant(self, name: str, array: Array) -> ir.Value:
        return add_constant(self.graph, self._name(name), array)

    def fold(self, linear: Linear, numbers: Array) -> None:
        """Let the bias have what the constant inputs add that go."""
        gone = np.where(self.keep[linear.cols] | np.isnan(numbers), 0, numbers)
        if not gone.any():
            return
        added, at = linear.times(gone), linear.at
        if not added[self.keep[linear.rows]].any():
            return
        if linear.bias is None:
            place = self._addition(at.y, len(linear.rows))
            if place is None:
                self.unbiased.append((at.y, self._bias(linear, added)))
                return
        elif at.has(linear.bias):
            place = (at.node, linear.bias)
        else:
            at.node.resize_inputs(linear.bias + 1)
            at.node.replace_input_with(linear.bias, self._bias(linear, added))
            return
        self.added[place] = added

    def _bias(self, linear: Linear, added: Array) -> ir.Value:
        array = added[self.keep[linear.rows]].astype(linear.weight.dtype)
        return self._constant(f"{linear.at.y.name}.bias", array)

    def biases(self) -> None:
        """Add those that a product has no place for."""
        for product, bias in self.unbiased:
            node, name = product.producer(), product.name
            assert node is not None
            y = ir.Value(name=name, type=product.type, shape=product.shape)
            product.replace_all_uses_with(y, replace_graph_outputs=True)
            product.name, product.type, product.shape = self._name(f"{name}.product"), None, None
            self.graph.insert_after(node, ir.node("Add", [product, bias], name=name, outputs=[y]))

    def _addition(self, y: ir.Value, size: int) -> Use | None:
        """The constant vector that is added to ``y``, if that is all that is done with it."""
        users = y.consumers()
        if len(users) == 1 and users[0].op_type == "Add" and users[0].graph is self.graph and not y.is_graph_output():
            for i, value in enumerate(users[0].inputs):
                tensor = constant(value)
                if tensor is not None and tensor.shape.numpy() == (size,):
                    return (users[0], i)
        return None

    def constants(self) -> None:
        """Each in as many versions as its users need."""
        uses: dict[ir.Value, dict[bytes, tuple[Array, list[Use]]]] = {}
        for node in self.graph:
            at = At(node)
            for i, value in enumerate(node.inputs):
                if constant(value) is None or at.operand(i) not in self.units.axes:
                    continue  # computed, or a new bias
                assert value is not None
                use, array = (node, i), array_of(value)
                more = self.added.get(use)
                if more is not None:
                    array = (array + more).astype(array.dtype)
                masks = [self.keep[labels] for labels in self.units.axes[at.operand(i)] if labels is not None]
                if more is None and all(mask.all() for mask in masks):
                    continue
                array = array[np.ix_(*masks)]
                uses.setdefault(value, {}).setdefault(array.tobytes(), (array, []))[1].append(use)
        for value, versions in uses.items():
            count = sum(len(where) for _, where in versions.values())
            alone = len(versions) == 1 and count == len(value.uses()) and not value.is_graph_output()
            for number, (array, where) in enumerate(versions.values()):
                if alone:
                    value.const_value, value.shape = ir.tensor(np.ascontiguousarray(array)), ir.Shape(array.shape)
                    continue
                new = self._constant(f"{value.name}.cut{number}", array)
                for node, i in where:
                    node.replace_input_with(i, new)

    def shapes(self) -> None:
        """The sizes that the file states."""
        for value, axes in self.units.axes.items():
            if isinstance(value, ir.Value) and value.shape is not None and constant(value) is None:
                dims = list(value.shape)
                for axis, labels in enumerate(axes):
                    if labels is not None and not self.keep[labels].all():
                        dims[axis] = int(self.keep[labels].sum())
                value.shape = ir.Shape(dims)

    def groups(self, at: At) -> None:
        groups = at.given.get("group", 1)
        rows = next((linear.rows for linear in self.units.linears if linear.at.node is at.node), None)
        if rows is not None and groups > 1 and not self.keep[rows].all():
            at.node.attributes.add(ir.AttrInt64("group", groups * int(self.keep[rows].sum()) // len(rows)))

    def reshape(self, at: At) -> None:
        entries, axes = entries_of(at.input(1)), self.units.axes.get(at.y, [])
        change = np.zeros(len(axes), np.int64)
        for axis, labels in enumerate(axes):
            if labels is not None and not self.keep[labels].all() and (entries or ())[axis] not in (0, -1):
                change[axis] = self.keep[labels].sum() - len(labels)
        if not change.any():
            return
        shape = at.constant(1)
        if shape is not None:
            changed = self._constant(f"{at.y.name}.shape", shape + change)
        else:
            changed = ir.Value(name=self._name(f"{at.y.name}.shape"))
            more = self._constant(f"{at.y.name}.change", change)
            add = ir.node("Add", [at.input(1), more], name=changed.name, outputs=[changed])
            self.graph.insert_before(at.node, add)
        at.node.replace_input_with(1, changed)

    def split(self, at: At) -> None:
        axis = at.given.get("axis", 0)
        if any(part not in self.units.axes for part in at.node.outputs):
            return
        parts = [self.units.axes[part][axis] for part in at.node.outputs]
        sizes = [0 if labels is None else int(self.keep[labels].sum()) for labels in parts]
        if sizes != [0 if labels is None else len(labels) for labels in parts]:
            at.node.resize_inputs(2)
            at.node.replace_input_with(1, self._constant(f"{at.y.name}.sizes", np.array(sizes)))
            at.node.attributes.pop("num_outputs", None)

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
            dtype = array_of(at.input(1)).dtype
            for i, name, values in ((1, "starts", starts), (2, "ends", ends)):
                array = np.array(values, np.int64).astype(dtype)
                at.node.replace_input_with(i, self._constant(f"{at.y.name}.{name}", array))


# Nodes that state sizes.
SIZES = {
    "Conv": _Cutter.groups,
    "ConvTranspose": _Cutter.groups,
    "Reshape": _Cutter.reshape,
    "Slice": _Cutter.slice,
    "Split": _Cutter.split,
}
