"""What each standard operator does with units: hands them on, ties them, or reads them all.

A rule labels the node's outputs and returns None, or returns why it cannot, before it has changed anything; the node
then reads all that goes in, and what comes out has units of no known origin.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from topkast.passes.onnx.blocks import Array, Block
from topkast.passes.onnx.graph import constant, shape_of

from .linear_rules import LINEAR
from .move_rules import MOVES
from .units import At, Units

Rule = Callable[[Units, At], str | None]

ELEMENTWISE = {
    *("Abs", "Acos", "Add", "And", "Asin", "Atan", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div", "Dropout", "Elu"),
    *("Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity"),
    *("IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg"),
    *("Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus"),
    *("Softsign", "Sqrt", "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor"),
}
REDUCTIONS = {"ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"}
OVER_SPACE = {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "Pad", "Resize"}
# All inputs but the first say how, and are no operands.
STEERED = REDUCTIONS | OVER_SPACE | {"Reshape", "Slice", "Split", "Squeeze", "Unsqueeze"}


def read_units(model: ir.Model, block_of: Callable[[Array], Block] | None) -> Units:
    """Walk the graph.

    Args:
        model: its main graph is walked.
        block_of: the blocks that a weight [rows, columns] will be stored in: none is to be cut. None: any may be.
    """
    units = Units(model)
    for value in model.graph.inputs:
        if (dims := shape_of(value)) is not None:
            units.give(value, [None] * len(dims), "it is an input")
    for node in model.graph:
        at = At(node)
        rule = RULES.get(node.op_type) if node.domain == "" else None
        why: str | None = f"{node.op_type} reads all of it"
        if rule is not None and all(units.of(at.operand(i)) is not None for i in range(len(node.inputs)) if at.has(i)):
            why = rule(units, at)
            for i in range(1, len(node.inputs) if node.op_type in STEERED else 0):
                if at.has(i):
                    units.need_all(at.operand(i), f"{node.op_type} is steered by it")
        if rule is None or why is not None:
            _opaque(units, at, why or f"the shapes at {node.op_type} are not known")
    for value in model.graph.outputs:
        units.need_all(value, "it is an output")
    for linear in units.linears:
        if (
            block_of is not None and linear.at.given.get("group", 1) == 1
        ):  # groups go as a whole, and no block crosses their borders
            matrix = linear.as_matrix(linear.weight)
            r, c = block_of(matrix.reshape(len(matrix), -1))
            units.tie_groups(linear.rows, r)
            units.tie_groups(linear.cols, math.lcm(c, matrix.shape[2]) // matrix.shape[2])
    return units


def _opaque(units: Units, at: At, why: str) -> None:
    for i in range(len(at.node.inputs)):
        if at.has(i):
            units.need_all(at.operand(i), why)
    for inner in at.node.attributes.values():
        held = [inner.as_graph()] if inner.type == ir.AttributeType.GRAPH else []
        held += inner.as_graphs() if inner.type == ir.AttributeType.GRAPHS else []
        for graph in held:
            read = {value for node in graph.all_nodes() for value in node.inputs} | {*graph.outputs}
            for value in read:
                if value is not None and (value in units.axes or constant(value) is not None):
                    units.need_all(value, why)
    for value in at.node.outputs:
        if value.name and (dims := shape_of(value)) is not None:
            units.give(value, [None] * len(dims), f"it comes from {at.node.op_type}")


def _elementwise(units: Units, at: At) -> str | None:
    if len(at.node.outputs) > 1 or (at.node.op_type == "Dropout" and at.has(2)):
        return f"{at.node.op_type} may be in training mode"
    units.give(at.y, units.broadcast(units.inputs(at)))
    return None


def _over_axes(units: Units, at: At) -> str | None:
    """Softmax, LayerNormalization: elementwise but for axes that are read whole."""
    if sum(bool(output.name) for output in at.node.outputs) > 1:
        return f"{at.node.op_type} has several outputs"
    x, *rest = units.inputs(at)
    axis = at.given.get("axis", -1) % len(x)
    for labels in x[axis : axis + 1] if at.node.op_type.endswith("Softmax") else x[axis:]:
        units.need(labels, f"{at.node.op_type} reads all of it")
    units.give(at.y, units.broadcast([x, *rest]))
    return None


def _per_channel(units: Units, at: At) -> str | None:
    """BatchNormalization in inference and InstanceNormalization: vectors for axis 1, each channel by itself."""
    if sum(bool(output.name) for output in at.node.outputs) > 1 or at.given.get("training_mode"):
        return f"{at.node.op_type} is in training mode"
    x, *vectors = units.inputs(at)
    if len(x) < 2 or x[1] is None:
        return f"the channels of {at.node.op_type} are not known"
    for (labels,) in vectors:
        if labels is not None:
            units.tie(x[1], labels)
    if at.node.op_type == "InstanceNormalization":
        for labels in x[2:]:
            units.need(labels, "InstanceNormalization reads all of it")
    units.give(at.y, x)
    return None


def _over_space(units: Units, at: At) -> str | None:
    """Pooling, Resize by constant factors, Pad: channels are handed on."""
    kind, (x, *_) = at.node.op_type, units.inputs(at)
    if sum(bool(output.name) for output in at.node.outputs) > 1:
        return f"{kind} has several outputs"
    kept = [0, 1]
    if kind == "Resize":
        scales = at.constant(2)
        crops = at.given.get("coordinate_transformation_mode") == "tf_crop_and_resize"
        if at.has(3) or scales is None or "axes" in at.given or crops:
            return "Resize is not by constant factors of every axis"
        kept = [axis for axis, scale in enumerate(scales.reshape(-1)) if scale == 1]
    elif kind == "Pad":
        pads = at.ints(1)
        if at.has(3) or pads is None:
            return "Pad is not by constants for every axis"
        kept = [axis for axis in range(len(x)) if pads[axis] == pads[axis + len(x)] == 0]
    for axis, labels in enumerate(x):
        if axis not in kept:
            units.need(labels, f"{kind} reads all of it")
    units.give(at.y, [labels if axis in kept else None for axis, labels in enumerate(x)])
    return None


def _reduce(units: Units, at: At) -> str | None:
    (x, *_), axes = units.inputs(at), at.given.get("axes", at.ints(1))
    if axes is None or not len(axes):  # no axes: all of them
        if (axes is None and at.has(1)) or at.given.get("noop_with_empty_axes"):
            return f"the axes of {at.node.op_type} are not constant"
        axes = range(len(x))
    gone = {axis % len(x) for axis in axes}
    for axis in gone:
        units.need(x[axis], f"{at.node.op_type} reads all of it")
    keep = at.given.get("keepdims", 1)
    stay = [None if axis in gone else labels for axis, labels in enumerate(x) if keep or axis not in gone]
    units.give(at.y, stay)
    return None


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **LINEAR,
    **MOVES,
    **dict.fromkeys(["LayerNormalization", "LogSoftmax", "RMSNormalization", "Softmax"], _over_axes),
    **dict.fromkeys(["BatchNormalization", "InstanceNormalization"], _per_channel),
    **dict.fromkeys(OVER_SPACE, _over_space),
    **dict.fromkeys(REDUCTIONS, _reduce),
}
