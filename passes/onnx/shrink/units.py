"""Units of an ONNX graph, and which of them can only go together.

A unit is one index of one axis: a channel, a feature. Every axis of fixed size carries a label for each of its units;
where an operator hands units on, its output carries its input's labels, and where it joins two tensors, their labels
are tied. Whatever is connected by ties is one part: it goes from every tensor it is in, or from none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import networkx
import numpy as np
import onnx_ir as ir

from topkast.passes.onnx.blocks import Array
from topkast.passes.onnx.graph import array_of, constant, shape_of

Axes = list[Array | None]  # labels, int64 [size], axis by axis; None where the size is not fixed
Use = tuple[ir.Node, int]  # one input of a node
Operand = ir.Value | Use  # a value, or a small constant in one place


@dataclass(frozen=True)
class At:
    """A node of the graph, and its parts as numbers."""

    node: ir.Node

    @cached_property
    def given(self) -> dict[str, Any]:
        """The attributes."""
        return {attribute.name: attribute.value for attribute in self.node.attributes.values()}

    @property
    def y(self) -> ir.Value:
        """The first output."""
        return self.node.outputs[0]

    @property
    def inputs(self) -> list[ir.Value]:
        """The inputs that the node has."""
        return [value for value in self.node.inputs if value is not None]

    def input(self, i: int) -> ir.Value:
        """Input ``i``, which the node has."""
        value = self.node.inputs[i]
        assert value is not None
        return value

    def has(self, i: int) -> bool:
        return len(self.node.inputs) > i and self.node.inputs[i] is not None

    def constant(self, i: int) -> Array | None:
        """Input ``i``, where it is a constant."""
        tensor = constant(self.node.inputs[i]) if self.has(i) else None
        return None if tensor is None else tensor.numpy()

    def ints(self, i: int) -> list[int] | None:
        """A constant input of integers as a list."""
        found = self.constant(i)
        return None if found is None else [int(value) for value in found.reshape(-1)]

    def operand(self, i: int) -> Operand:
        """Input ``i``. Nodes may share vectors because these are equal, which ties no units: each use has its own."""
        value = self.input(i)
        tensor = constant(value)
        small = tensor is not None and sum(size != 1 for size in tensor.shape.numpy()) < 2
        return (self.node, i) if small else value


@dataclass(frozen=True)
class Linear:
    """Operator whose every output unit is a sum over input units: a matrix product or a convolution by a constant.

    Args:
        at: the node; its inputs are x, the weight and, if any, the bias.
        rows, cols: labels of the output and of the input units.
        axis: of the units in x and in y.
        as_matrix: from the weight's numbers to [rows, cols, the rest], zero where two units have none in common.
        bias: the node's input that holds it (whether it has one or not); None: it cannot have one.
        even: whether a constant input adds the same at every position; else only zeros do.
    """

    at: At
    rows: Array
    cols: Array
    axis: int
    as_matrix: Callable[[Array], Array]
    bias: int | None
    even: bool

    @cached_property
    def nonzero(self) -> Array:
        """Whether row i reads column j, bool [rows, cols]."""
        return np.asarray(self.as_matrix(self.weight != 0).any(axis=2))

    @property
    def weight(self) -> Array:
        return array_of(self.at.input(1))

    def times(self, constants: Array) -> Array:
        """What constants [cols] add to each row, float64."""
        used = np.flatnonzero(constants)
        return self.as_matrix(self.weight)[:, used].sum(axis=2, dtype=np.float64) @ constants[used].astype(np.float64)


class Units:
    """Labels, ties, what is needed, and the linear operators met, in the graph's order."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.ties = networkx.Graph()
        self.needed: dict[int, str] = {}  # label -> why it must stay
        self.axes: dict[Operand, Axes] = {}
        self.linears: list[Linear] = []
        self.count = 0

    def fresh(self, size: int, why: str | None = None) -> Array:
        """New labels; with ``why`` they must stay."""
        labels = np.arange(self.count, self.count + size)
        self.count += size
        if why is not None:
            self.need(labels, why)
        return labels

    def of(self, operand: Operand) -> Axes | None:
        """The axes of a constant or of a value that has been labelled; None where its shape is not known."""
        if operand not in self.axes:
            tensor = constant(operand if isinstance(operand, ir.Value) else operand[0].inputs[operand[1]])
            if tensor is None:
                return None
            self.axes[operand] = [self.fresh(size) for size in tensor.shape.numpy()]
        return self.axes[operand]

    def inputs(self, at: At) -> list[Axes]:
        """The axes of each input that a node has; all of them are known."""
        return [self.of(at.operand(i)) or [] for i in range(len(at.node.inputs)) if at.has(i)]

    def give(self, value: ir.Value, axes: Sequence[Array | None], why: str = "its axis is of no known units") -> None:
        """Label a value; an axis without labels whose size the file gives gets some of its own, which stay."""
        sizes = shape_of(value) or [0] * len(axes)
        self.axes[value] = [
            self._unknown(size, why) if labels is None else labels for labels, size in zip(axes, sizes, strict=True)
        ]

    def _unknown(self, size: int | str, why: str) -> Array | None:
        return self.fresh(size, why) if isinstance(size, int) and size else None

    def need(self, labels: Array | None, why: str) -> None:
        for label in () if labels is None else labels.tolist():
            self.needed.setdefault(label, why)

    def need_all(self, operand: Operand, why: str) -> None:
        for labels in self.of(operand) or ():
            self.need(labels, why)

    def tie(self, a: Array, b: Array) -> None:
        """Unit i of one axis goes only with unit i of the other."""
        if a is not b:
            self.ties.add_edges_from(zip(a.tolist(), b.tolist(), strict=True))

    def tie_groups(self, labels: Array, size: int) -> None:
        """Neighbours, ``size`` at a time, go together."""
        for start in range(0, len(labels), size) if size > 1 else ():
            networkx.add_path(self.ties, labels[start : start + size].tolist())

    def broadcast(self, operands: list[Axes]) -> Axes:
        """The axes of what comes of operands that are stretched to one another's sizes."""
        rank, out = max(map(len, operands)), Axes()
        for axis in range(-rank, 0):
            met = [axes[axis] for axes in operands if len(axes) >= -axis]
            fixed = [labels for labels in met if labels is not None]
            if not fixed:
                out.append(None)
                continue
            size = max(map(len, fixed))
            same = [labels for labels in fixed if len(labels) == size]
            for labels in same[1:]:
                self.tie(same[0], labels)
            if len(fixed) < len(met):
                self.need(same[0], "it meets an axis of no fixed size")
            # One that meets several stretches, and stays.
            for labels in fixed:
                if len(labels) != size:
                    self.need(labels, "it is stretched")
            out.append(same[0] if size > 1 or len(fixed) == len(met) else None)
        return out

    def parts(self) -> Array:
        """The part of each label, int64 [labels]; a part is named by one of its labels."""
        found = np.arange(self.count)
        for part in networkx.connected_components(self.ties):
            members = list(part)
            found[members] = members[0]
        return found

    def every_axis(self) -> Iterator[Array]:
        for axes in self.axes.values():
            yield from (labels for labels in axes if labels is not None)
