"""Units that hold the same number whatever the input is: what a row of zeros still emits, followed through the graph.

Numbers are computed by ONNX Runtime from the very nodes of the graph, on the units alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime

from topkast.passes.onnx.blocks import Array
from topkast.passes.onnx.graph import array_of

from .unit_rules import ELEMENTWISE
from .units import At, Linear, Units

# These change no number, or average equal ones; units keep their labels, or stand beside others.
MOVES = {
    *("Flatten", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "ReduceMax", "ReduceMean", "ReduceMin", "Reshape"),
    *("Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
}
# These mix numbers with zeros at a border, or may, and leave units alone that are zero.
ZERO_AT_BORDERS = {"AveragePool", "Pad", "Resize"}

# What ONNX Runtime and numpy both have.
PLAIN = {
    ir.DataType[kind]
    for kind in ("BOOL", "DOUBLE", "FLOAT", "FLOAT16", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32")
}


@dataclass(frozen=True)
class Known:
    """The constant units of a value along one axis.

    Args:
        axis: counted from the last, which is -1.
        mask: bool [units]: which are constant.
        numbers: [units], of the value's dtype; anything where they are not.
    """

    axis: int
    mask: Array
    numbers: Array


def known_constants(units: Units) -> tuple[dict[ir.Value, Known], dict[ir.Node, Array]]:
    """(what is constant, by value; for each linear node what its constant inputs [cols] add up from, NaN elsewhere)."""
    found: dict[ir.Value, Known] = {}
    foldable: dict[ir.Node, Array] = {}
    linears = {linear.at.node: linear for linear in units.linears}
    for node in units.model.graph:
        if node in linears:
            numbers = foldable[node] = _folded(units, linears[node], found)
            known = _emitted(units, linears[node], numbers)
            if known is not None:
                found[node.outputs[0]] = known
        elif any(value in found for value in node.inputs) and node.domain == "":
            found |= _followed(units, At(node), found)
    return found, foldable


def _folded(units: Units, linear: Linear, found: Mapping[ir.Value, Known]) -> Array:
    x = found.get(linear.at.input(0))
    numbers = np.full(len(linear.cols), np.nan)
    rank = len(units.axes[linear.at.y])
    if x is not None and x.axis == linear.axis - rank:
        usable = x.mask & (linear.even | (x.numbers == 0)) & np.isfinite(x.numbers)
        numbers[usable] = x.numbers[usable]
    return numbers


def _emitted(units: Units, linear: Linear, numbers: Array) -> Known | None:
    """The rows that read constants alone, or nothing."""
    mask = ~(linear.nonzero & np.isnan(numbers)).any(axis=1)
    if not mask.any():
        return None
    emitted = linear.times(np.nan_to_num(numbers))
    at = linear.at
    if linear.bias is not None and at.has(linear.bias):
        emitted = emitted + array_of(at.input(linear.bias))
    return Known(linear.axis - len(units.axes[at.y]), mask, emitted.astype(linear.weight.dtype))


def _followed(units: Units, at: At, found: Mapping[ir.Value, Known]) -> dict[ir.Value, Known]:
    kind = at.node.op_type
    known: Known | None = None
    training = (kind == "Dropout" and at.has(2)) or at.given.get("training_mode")
    if training or any(output not in units.axes for output in at.node.outputs if output.name):
        return {}
    if kind in ELEMENTWISE:
        known = _elementwise(units, at, found)
    elif kind == "BatchNormalization":
        known = _batch_norm(units, at, found)
    elif kind == "Concat":
        known = _concat(units, at, found)
    elif kind in MOVES | ZERO_AT_BORDERS and at.input(0) in found:
        x = found[at.input(0)]
        if kind in ZERO_AT_BORDERS and not (kind == "Pad" and at.given.get("mode", "constant") != "constant"):
            x = Known(x.axis, x.mask & (x.numbers == 0) & _pads_with_zero(at), x.numbers)
        moved = {output: _moved(units, at.input(0), x, output) for output in at.node.outputs if output.name}
        return {output: known for output, known in moved.items() if known is not None and known.mask.any()}
    return {} if known is None or not known.mask.any() else {at.y: known}


def _pads_with_zero(at: At) -> bool:
    value = at.constant(2) if at.node.op_type == "Pad" and at.has(2) else np.zeros(1)
    return value is not None and not value.any() and not at.given.get("extrapolation_value")


def _moved(units: Units, value: ir.Value, x: Known, output: ir.Value) -> Known | None:
    """The same constants under the same labels, along the one axis of ``output`` that has them."""
    axes = units.axes[value]
    labels = axes[x.axis]
    others = [other for axis, other in enumerate(axes) if axis != x.axis % len(axes) and other is not None]
    if labels is None or any(np.isin(other, labels).any() for other in others):
        return None
    by_label: dict[int, Array | None] = {}
    for label, mask, number in zip(labels.tolist(), x.mask, x.numbers, strict=True):
        first = by_label.setdefault(label, number if mask else None)
        if first is None or not mask or first != number:  # one unit may stand in a value twice
            by_label[label] = None
    axes = units.axes[output]
    matching = [
        axis - len(axes)
        for axis, found in enumerate(axes)
        if found is not None and len(found) and all(label in by_label for label in found.tolist())
    ]
    if len(matching) != 1:
        return None
    numbers = [by_label[label] for label in (axes[matching[0]]).tolist()]  # type: ignore[union-attr]
    mask = np.array([number is not None for number in numbers])
    return Known(matching[0], mask, np.array([n if n is not None else 0 for n in numbers], x.numbers.dtype))


def _concat(units: Units, at: At, found: Mapping[ir.Value, Known]) -> Known | None:
    rank = len(units.axes[at.y])
    axis = at.given["axis"] % rank - rank
    operands = [units.of(at.operand(i)) for i in range(len(at.node.inputs))]
    sizes = [None if axes is None else axes[axis] for axes in operands]
    if any(labels is None for labels in sizes):
        return None
    dtype = next(found[value].numbers.dtype for value in at.inputs if value in found)
    masks, numbers = [], []
    for value, labels in zip(at.inputs, sizes, strict=True):
        assert labels is not None
        x = found.get(value)
        alike = x is not None and x.axis == axis
        masks.append(x.mask if x is not None and alike else np.zeros(len(labels), bool))
        numbers.append(x.numbers if x is not None and alike else np.zeros(len(labels), dtype))
    return Known(axis, np.concatenate(masks), np.concatenate(numbers))


def _batch_norm(units: Units, at: At, found: Mapping[ir.Value, Known]) -> Known | None:
    x = found.get(at.input(0))
    vectors = [at.constant(i) for i in range(1, 5)]
    rank = len(units.axes[at.y])
    if x is None or x.axis != 1 - rank or any(vector is None for vector in vectors):
        return None
    columns = [vector[x.mask] for vector in vectors if vector is not None]
    return _spread(x, x.mask, _evaluate(units, at, [x.numbers[x.mask][None], *columns]).reshape(-1))


def _elementwise(units: Units, at: At, found: Mapping[ir.Value, Known]) -> Known | None:
    """Where all operands are constant; and a product with a constant zero."""
    if at.node.op_type == "Cast" and at.given["to"] not in PLAIN:
        return None
    axes = {found[value].axis for value in at.inputs if value in found}
    if len(axes) != 1:
        return None
    (axis,) = axes
    labels = units.axes[at.y][axis]
    if labels is None:
        return None
    operands = [_operand(units, at, i, axis, found) for i in range(len(at.node.inputs)) if at.has(i)]
    mask = np.ones(len(labels), bool)
    for known in operands:
        mask &= known.mask
    first = next(found[value] for value in at.inputs if value in found)
    zero = np.zeros(len(labels), bool)
    if at.node.op_type == "Mul":
        for known in operands:
            zero |= known.mask & (known.numbers == 0)
    if not mask.any():
        return Known(axis, zero, np.zeros(len(labels), first.numbers.dtype))
    given = [known.numbers if known.numbers.ndim == 0 else known.numbers[mask] for known in operands]
    known = _spread(first, mask, np.broadcast_to(_evaluate(units, at, given), (int(mask.sum()),)))
    return Known(axis, known.mask | zero, np.where(zero, 0, known.numbers).astype(known.numbers.dtype))


def _operand(units: Units, at: At, i: int, axis: int, found: Mapping[ir.Value, Known]) -> Known:
    """Input ``i`` along ``axis`` of the output; a scalar where all of it is one number."""
    known = found.get(at.input(i))
    if known is not None and len(known.mask) > 1:
        return known
    array = at.constant(i)
    if array is None:
        return Known(axis, np.zeros((), bool), np.zeros((), np.float32))
    if array.size == 1:
        return Known(axis, np.ones((), bool), array.reshape(()))
    if array.ndim < -axis:
        return Known(axis, np.zeros((), bool), np.zeros((), array.dtype))
    rows = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    mask = (rows == rows[:, :1]).all(axis=1)
    return Known(axis, mask if len(rows) > 1 else mask[0], rows[:, 0] if len(rows) > 1 else rows[0, 0])


def _spread(like: Known, mask: Array, numbers: Array) -> Known:
    all_numbers = np.zeros(len(mask), numbers.dtype)
    all_numbers[mask] = numbers
    return Known(like.axis, mask, all_numbers)


def _evaluate(units: Units, at: At, arrays: Sequence[Array]) -> Array:
    """The node's result on these operands."""
    feeds = {f"x{i}": np.asarray(array) for i, array in enumerate(arrays)}
    inputs = [ir.val(name, ir.DataType.from_numpy(array.dtype), array.shape) for name, array in feeds.items()]
    given = iter(inputs)
    operands = [None if value is None else next(given) for value in at.node.inputs]
    count = len(at.node.outputs)
    node = ir.Node("", at.node.op_type, operands, at.node.attributes.values(), num_outputs=count)
    opsets = dict(units.model.opset_imports)
    graph = ir.Graph(inputs, node.outputs[:1], nodes=[node], opset_imports=opsets, name="units")
    model = ir.to_proto(ir.Model(graph, ir_version=units.model.ir_version))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])
