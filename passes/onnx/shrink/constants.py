"""Units that hold the same number whatever the input is: what a row of zeros still emits, followed through the graph.

Numbers are computed by ONNX Runtime from the very nodes of the graph, on the units alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, helper

from topkast.passes.onnx.blocks import Array

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
    getattr(onnx.TensorProto, kind)
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


def known_constants(units: Units) -> tuple[dict[str, Known], dict[int, Array]]:
    """(what is constant, by value; for each linear node what its constant inputs [cols] add up from, NaN elsewhere)."""
    found: dict[str, Known] = {}
    foldable: dict[int, Array] = {}
    linears = {linear.at.index: linear for linear in units.linears}
    for index, node in enumerate(units.graph.nodes):
        at = At(units.graph, index, node)
        if index in linears:
            numbers = foldable[index] = _folded(units, linears[index], found)
            known = _emitted(units, linears[index], numbers)
            if known is not None:
                found[node.output[0]] = known
        elif any(name in found for name in node.input) and node.domain in ("", "ai.onnx"):
            found |= _followed(units, at, found)
    return found, foldable


def _folded(units: Units, linear: Linear, found: Mapping[str, Known]) -> Array:
    x = found.get(linear.at.node.input[0])
    numbers = np.full(len(linear.cols), np.nan)
    rank = len(units.axes[linear.at.node.output[0]])
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
        emitted = emitted + at.graph.array(at.node.input[linear.bias])
    return Known(linear.axis - len(units.axes[at.node.output[0]]), mask, emitted.astype(linear.weight.dtype))


def _followed(units: Units, at: At, found: Mapping[str, Known]) -> dict[str, Known]:
    kind, name = at.node.op_type, at.node.output[0]
    known: Known | None = None
    training = (kind == "Dropout" and at.has(2)) or at.given.get("training_mode")
    if training or any(output not in units.axes for output in at.node.output if output):
        return {}
    if kind in ELEMENTWISE:
        known = _elementwise(units, at, found)
    elif kind == "BatchNormalization":
        known = _batch_norm(units, at, found)
    elif kind == "Concat":
        known = _concat(units, at, found)
    elif kind in MOVES | ZERO_AT_BORDERS and at.node.input[0] in found:
        x = found[at.node.input[0]]
        if kind in ZERO_AT_BORDERS and not (kind == "Pad" and at.given.get("mode", b"constant") != b"constant"):
            x = Known(x.axis, x.mask & (x.numbers == 0) & _pads_with_zero(at), x.numbers)
        moved = {output: _moved(units, at.node.input[0], x, output) for output in at.node.output if output}
        return {output: known for output, known in moved.items() if known is not None and known.mask.any()}
    return {} if known is None or not known.mask.any() else {name: known}


def _pads_with_zero(at: At) -> bool:
    value = at.constant(2) if at.node.op_type == "Pad" and at.has(2) else np.zeros(1)
    return value is not None and not value.any() and not at.given.get("extrapolation_value")


def _moved(units: Units, name: str, x: Known, output: str) -> Known | None:
    """The same constants under the same labels, along the one axis of ``output`` that has them."""
    axes = units.axes[name]
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


def _concat(units: Units, at: At, found: Mapping[str, Known]) -> Known | None:
    rank = len(units.axes[at.node.output[0]])
    axis = at.given["axis"] % rank - rank
    operands = [units.of(at.operand(i)) for i in range(len(at.node.input))]
    sizes = [None if axes is None else axes[axis] for axes in operands]
    if any(labels is None for labels in sizes):
        return None
    dtype = next(found[name].numbers.dtype for name in at.node.input if name in found)
    masks, numbers = [], []
    for name, labels in zip(at.node.input, sizes, strict=True):
        assert labels is not None
        x = found.get(name)
        alike = x is not None and x.axis == axis
        masks.append(x.mask if x is not None and alike else np.zeros(len(labels), bool))
        numbers.append(x.numbers if x is not None and alike else np.zeros(len(labels), dtype))
    return Known(axis, np.concatenate(masks), np.concatenate(numbers))


def _batch_norm(units: Units, at: At, found: Mapping[str, Known]) -> Known | None:
    x = found.get(at.node.input[0])
    vectors = [at.constant(i) for i in range(1, 5)]
    rank = len(units.axes[at.node.output[0]])
    if x is None or x.axis != 1 - rank or any(vector is None for vector in vectors):
        return None
    columns = [vector[x.mask] for vector in vectors if vector is not None]
    return _spread(x, x.mask, _evaluate(units, at, [x.numbers[x.mask][None], *columns]).reshape(-1))


def _elementwise(units: Units, at: At, found: Mapping[str, Known]) -> Known | None:
    """Where all operands are constant; and a product with a constant zero."""
    if at.node.op_type == "Cast" and at.given["to"] not in PLAIN:
        return None
    axes = {found[name].axis for name in at.node.input if name in found}
    if len(axes) != 1:
        return None
    (axis,) = axes
    labels = units.axes[at.node.output[0]][axis]
    if labels is None:
        return None
    operands = [_operand(units, at, i, axis, found) for i in range(len(at.node.input)) if at.has(i)]
    mask = np.ones(len(labels), bool)
    for known in operands:
        mask &= known.mask
    first = next(found[name] for name in at.node.input if name in found)
    zero = np.zeros(len(labels), bool)
    if at.node.op_type == "Mul":
        for known in operands:
            zero |= known.mask & (known.numbers == 0)
    if not mask.any():
        return Known(axis, zero, np.zeros(len(labels), first.numbers.dtype))
    given = [known.numbers if known.numbers.ndim == 0 else known.numbers[mask] for known in operands]
    known = _spread(first, mask, np.broadcast_to(_evaluate(units, at, given), (int(mask.sum()),)))
    return Known(axis, known.mask | zero, np.where(zero, 0, known.numbers).astype(known.numbers.dtype))


def _operand(units: Units, at: At, i: int, axis: int, found: Mapping[str, Known]) -> Known:
    """Input ``i`` along ``axis`` of the output; a scalar where all of it is one number."""
    name = at.node.input[i]
    if name in found and len(found[name].mask) > 1:
        return found[name]
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
    node = NodeProto()
    node.CopyFrom(at.node)
    feeds = dict(zip((f"x{i}" for i in range(len(arrays))), map(np.asarray, arrays), strict=True))
    names = iter(feeds)
    node.input[:] = [next(names) if name else "" for name in node.input]
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    output = onnx.ValueInfoProto(name=node.output[0])
    graph = helper.make_graph([node], "units", inputs, [output])
    model = helper.make_model(
        graph, opset_imports=units.graph.model.opset_import, ir_version=units.graph.model.ir_version
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])
