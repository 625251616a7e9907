"""LSTM and GRU nodes with sparse weights, written as matrix products, which a format can then store sparse.

   Y, Yh, Yc = LSTM(x, W, R, b)
-> p = x W^T + b, one product for all steps; Scan over p: z = p + h R^T, gates, new h and c

ONNX's own nodes take dense weights only. The weights are those of the node: the exporter's reordering of gates is
computed here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import RemoveUnusedNodesPass

from topkast.passes.onnx.blocks import Array, digest
from topkast.passes.onnx.graph import Builder, array_of, constant, shape_of

# (recurrent matrix [gates * hidden, hidden], dimension of the batch) -> whether to write the node as products
Pays = Callable[[Array, int | str], bool]
GATES = {"LSTM": 4, "GRU": 3}
MOVES = {"Concat", "Slice", "Squeeze", "Transpose", "Unsqueeze"}  # by which an exporter reorders gates


@dataclass(frozen=True)
class Direction:
    """The weights of one direction.

    Args:
        names: of the parameters that W and R come from.
        w, r: [gates * hidden, inputs] and [gates * hidden, hidden].
        bias_w, bias_r: [gates * hidden].
        reverse: whether the steps run from the last to the first.
    """

    names: tuple[str, str]
    w: Array
    r: Array
    bias_w: Array
    bias_r: Array
    reverse: bool


def spell_recurrent(model: ir.Model, pays: Pays) -> dict[str, str]:
    """Change ``model`` in place; digest of each new [out, in] matrix -> the name of the parameter it comes from."""
    names = dict[str, str]()
    for node in list(model.graph):
        if node.domain == "" and node.op_type in GATES and (directions := _directions(node)):
            batch = (shape_of(node.inputs[0]) or [0, 0, 0])[1]  # type: ignore[arg-type]
            if all(pays(direction.r, batch) for direction in directions):
                _Spelling(model.graph, node, batch).replace(directions)
                names |= {digest(m): n for one in directions for m, n in zip((one.w, one.r), one.names, strict=True)}
    if names:
        RemoveUnusedNodesPass()(model)
    return names


def _directions(node: ir.Node) -> list[Direction] | None:
    """The weights of each direction; None if the node is not as PyTorch's layers are."""
    given = node.attributes
    inputs = [*node.inputs, *[None] * (8 - len(node.inputs))]
    plain = not {"activations", "clip"} & set(given) and inputs[4] is None and inputs[7] is None
    if node.op_type == "GRU":
        plain = plain and given.get_int("linear_before_reset", None) == 1
    if not plain or any(given.get_int(name, 0) for name in ("input_forget", "layout")):
        return None
    read = [_evaluated(value) for value in inputs[1:4]]
    if read[0] is None or read[1] is None or (inputs[3] is not None and read[2] is None):
        return None
    (w, w_names), (r, r_names) = read[0], read[1]
    bias = np.zeros((len(w), 2 * w.shape[1]), np.float32) if read[2] is None else read[2][0]
    if w.dtype != np.float32 or len(w_names) < len(w) or len(r_names) < len(w):
        return None
    kind = given.get_string("direction", "forward")
    found = []
    for i in range(len(w)):
        bias_w, bias_r = np.split(bias[i], 2)
        reverse = kind == "reverse" or i == 1
        found.append(Direction((w_names[i], r_names[i]), w[i], r[i], bias_w, bias_r, reverse))
    return found


def _evaluated(value: ir.Value | None) -> tuple[Array, list[str]] | None:
    """(the number that constants and moves give, names of the constants of two or more dimensions, each once)."""
    if value is None or value.name is None:
        return None
    if constant(value) is not None:
        array = array_of(value)
        return array, [value.name] if array.ndim >= 2 else []
    node = value.producer()
    if node is None or node.domain or node.op_type not in MOVES or any(one is None for one in node.inputs):
        return None
    read = [_evaluated(one) for one in node.inputs]
    known = [one for one in read if one is not None]
    if len(known) < len(read):
        return None
    feeds = {str(one.name): array for one, (array, _) in zip(node.inputs, known, strict=True) if one is not None}
    found: Any = ReferenceEvaluator(ir.to_proto(node)).run(None, feeds)
    return found[0], list(dict.fromkeys(name for _, names in known for name in names))


class _Spelling:
    """Writes one node as products and a Scan for each direction."""

    def __init__(self, graph: ir.Graph, node: ir.Node, batch: int | str) -> None:
        self.graph, self.node, self.batch = graph, node, batch
        assert node.inputs[0] is not None
        self.kind, self.x = node.op_type, node.inputs[0]
        self.label = str(node.name or node.outputs[0].name)
        self.outer = Builder(graph, self.label)

    def replace(self, directions: list[Direction]) -> None:
        """Put the new nodes in the place of the node."""
        node = self.outer.node
        parts = [self._direction(i, direction) for i, direction in enumerate(directions)]
        zero, one = (self.outer.constant(f"topkast.ints.{axis}", np.array([axis])) for axis in (0, 1))
        made: list[ir.Value] = []
        for values in zip(*parts, strict=True):  # Y, Y_h and for an LSTM Y_c
            axis = 0 if made else 1
            raised = [node("Unsqueeze", value, zero if made else one) for value in values]
            made.append(raised[0] if len(raised) == 1 else node("Concat", *raised, axis=axis))
        old = [value for value in self.node.outputs if value.name]
        new = [value for value, before in zip(made, self.node.outputs, strict=False) if before.name]
        ir.convenience.replace_nodes_and_values(self.graph, self.node, [self.node], self.outer.nodes, old, new)

    def _direction(self, number: int, one: Direction) -> list[ir.Value]:
        """[Y [steps, batch, hidden], Y_h [batch, hidden], Y_c if the node is an LSTM]."""
        hidden, node = one.r.shape[1], self.outer.node
        bias = one.bias_w + one.bias_r if self.kind == "LSTM" else one.bias_w
        w = self.outer.constant(f"{one.names[0]}.by_gate", one.w.T)
        add = self.outer.constant(f"{self.label}.{number}.bias", bias)
        projected = node("Add", node("MatMul", self.x, w), add)
        states = [self._start(5 + i, number, hidden) for i in range(2 if self.kind == "LSTM" else 1)]
        body = self._step(number, one, len(states))
        along = [int(one.reverse)]
        names = [*["h", "c"][: len(states)], "y"]
        outputs = [ir.Value(name=f"{self.label}.{number}.{name}") for name in names]
        self.outer.op_multi_out(
            "Scan",
            [*states, projected],
            {"body": body, "num_scan_inputs": 1, "scan_input_directions": along, "scan_output_directions": along},
            outputs=outputs,
            name=f"{self.label}.{number}",
        )
        return [outputs[-1], *outputs[:-1]]

    def _start(self, place: int, number: int, hidden: int) -> ir.Value:
        """The state before the first step, [batch, hidden]: an input of the node, or zeros."""
        given = self.node.inputs[place] if len(self.node.inputs) > place else None
        if given is not None:
            index, zero = (self.outer.constant(f"topkast.ints.{n}", np.array([n])) for n in (number, 0))
            return self.outer.node("Squeeze", self.outer.node("Gather", given, index, axis=0), zero)
        batch = self.outer.node("Shape", self.x, start=1, end=2)
        size = self.outer.constant(f"topkast.ints.{hidden}", np.array([hidden]))
        return self.outer.node("ConstantOfShape", self.outer.node("Concat", batch, size, axis=0))

    def _step(self, number: int, one: Direction, states: int) -> ir.Graph:
        """One time step: (states, a row of the projected inputs) -> (new states, the row of Y)."""
        inner, width = Builder(self.graph, f"{self.label}.{number}.step"), len(one.r)
        hidden = one.r.shape[1]
        sizes = [hidden] * states + [width]
        inputs = [self._value(f"{inner.label}.in{i}", size) for i, size in enumerate(sizes)]
        *before, x = inputs
        r = self.outer.constant(f"{one.names[1]}.by_gate", one.r.T)
        product = inner.node("MatMul", before[0], r)
        if self.kind == "LSTM":
            after = _lstm(inner, inner.node("Add", product, x), before[1])
        else:
            add = self.outer.constant(f"{self.label}.{number}.bias_r", one.bias_r)
            after = _gru(inner, x, inner.node("Add", product, add), before[0])
        outputs = [*after, inner.node("Identity", after[0])]
        for value in outputs:
            value.type, value.shape = inputs[0].type, inputs[0].shape
        return ir.Graph(inputs, outputs, nodes=inner.nodes, name=inner.label)

    def _value(self, name: str, size: int) -> ir.Value:
        batch = self.batch or None
        return ir.Value(name=name, shape=ir.Shape([batch, size]), type=ir.TensorType(ir.DataType.FLOAT))


def _split(builder: Builder, value: ir.Value, parts: int) -> list[ir.Value]:
    label = f"{builder.label}.{len(builder.nodes)}"
    outputs = [ir.Value(name=f"{label}.{i}") for i in range(parts)]
    builder.op_multi_out("Split", [value], {"axis": -1, "num_outputs": parts}, outputs=outputs, name=label)
    return outputs


def _lstm(builder: Builder, gates: ir.Value, c: ir.Value) -> list[ir.Value]:
    """[h, c] after a step, by the formulas of ONNX's LSTM; the gates come in the order i, o, f, c."""
    node = builder.node
    i, o, f, g = _split(builder, gates, 4)
    kept = node("Mul", node("Sigmoid", f), c)
    c = node("Add", kept, node("Mul", node("Sigmoid", i), node("Tanh", g)))
    return [node("Mul", node("Sigmoid", o), node("Tanh", c)), c]


def _gru(builder: Builder, x: ir.Value, product: ir.Value, h: ir.Value) -> list[ir.Value]:
    """[h] after a step, by the formulas of ONNX's GRU with linear_before_reset; the gates come in the order z, r, h."""
    node = builder.node
    (xz, xr, xn), (hz, hr, hn) = _split(builder, x, 3), _split(builder, product, 3)
    z = node("Sigmoid", node("Add", xz, hz))
    reset = node("Mul", node("Sigmoid", node("Add", xr, hr)), hn)
    n = node("Tanh", node("Add", xn, reset))
    return [node("Add", n, node("Mul", z, node("Sub", h, n)))]  # (1 - z) n + z h
