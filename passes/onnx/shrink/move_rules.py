"""Operators that move units about: Transpose, Reshape, Concat, Split and their like."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from topkast.passes.onnx.blocks import Array
from topkast.passes.onnx.graph import constant, shape_of

from .units import At, Axes, Units

FLATTENED = "it is flattened with another axis"
SPLIT = "Reshape splits it, or joins it with an axis of no fixed size"


def _transpose(units: Units, at: At) -> str | None:
    (x,) = units.inputs(at)
    units.give(at.y, [x[axis] for axis in at.given.get("perm", range(len(x))[::-1])])
    return None


def _squeeze(units: Units, at: At) -> str | None:
    (x, *_), axes = units.inputs(at), at.ints(1)
    if axes is None:
        return "the axes of Squeeze are not constant"
    gone = {axis % len(x) for axis in axes}
    for axis in gone:
        units.need(x[axis], "Squeeze takes it away")
    units.give(at.y, [labels for axis, labels in enumerate(x) if axis not in gone])
    return None


def _unsqueeze(units: Units, at: At) -> str | None:
    (x, *_), axes = units.inputs(at), at.ints(1)
    if axes is None:
        return "the axes of Unsqueeze are not constant"
    rank, rest = len(x) + len(axes), iter(x)
    made = {axis % rank for axis in axes}
    units.give(at.y, [None if axis in made else next(rest) for axis in range(rank)])
    return None


def _concat(units: Units, at: At) -> str | None:
    operands = units.inputs(at)
    axis = at.given["axis"] % len(operands[0])
    along = [axes[axis] for axes in operands]
    if any(labels is None for labels in along):
        for labels in along:
            units.need(labels, "Concat puts it beside units of no fixed number")
        joined = None
    else:
        joined = np.concatenate([labels for labels in along if labels is not None])
    out = units.broadcast([[*axes[:axis], None, *axes[axis + 1 :]] for axes in operands])
    out[axis] = joined
    units.give(at.y, out)
    return None


def _split(units: Units, at: At) -> str | None:
    (x, *_) = units.inputs(at)
    axis = at.given.get("axis", 0) % len(x)
    labels, sizes = x[axis], at.ints(1)
    if labels is None or (at.has(1) and sizes is None):
        return "Split is not by constant sizes"
    if sizes is None:
        count = len(at.node.outputs)
        size = -(-len(labels) // count)
        sizes = [size] * (count - 1) + [len(labels) - size * (count - 1)]
    for part, own in zip(at.node.outputs, np.split(labels, np.cumsum(sizes)[:-1]), strict=True):
        units.give(part, [*x[:axis], own, *x[axis + 1 :]])
    return None


def _slice(units: Units, at: At) -> str | None:
    (x, *_), starts, ends, axes = units.inputs(at), at.ints(1), at.ints(2), at.ints(3)
    steps = at.ints(4) if at.has(4) else [1] * len(starts or ())
    axes = axes if at.has(3) else list(range(len(starts or ())))
    if starts is None or ends is None or axes is None or steps is None or any(step != 1 for step in steps):
        return "Slice is not by constants, or takes steps"
    out = list(x)
    for start, end, axis in zip(starts, ends, axes, strict=True):
        labels = x[axis % len(x)]
        out[axis % len(x)] = None if labels is None else labels[start:end]
    units.give(at.y, out)
    return None


def _gather(units: Units, at: At) -> str | None:
    """Axes that are not gathered from are handed on: an embedding's features."""
    x, indices = units.inputs(at)
    axis = at.given.get("axis", 0) % len(x)
    units.need(x[axis], "Gather picks from it")
    units.give(at.y, [*x[:axis], *indices, *x[axis + 1 :]])
    return None


def _shape(units: Units, at: At) -> str | None:
    (x,) = units.inputs(at)
    for labels in x[slice(at.given.get("start", 0), at.given.get("end", len(x)))]:
        units.need(labels, "its size is read by Shape")
    units.give(at.y, [None])
    return None


def _flatten(units: Units, at: At) -> str | None:
    (x,) = units.inputs(at)
    axis = at.given.get("axis", 1)
    axis = axis + len(x) if axis < 0 else axis
    units.give(at.y, [merge(units, part) for part in (x[:axis], x[axis:])], FLATTENED)
    return None


def merge(units: Units, axes: Axes) -> Array | None:
    """The labels of one axis made of several; all but one of these must keep their units."""
    sizes = [0 if labels is None else len(labels) for labels in axes]
    free = [
        axis
        for axis, labels in enumerate(axes)
        if labels is not None and units.needed.keys().isdisjoint(labels.tolist())
    ]
    for axis, labels in enumerate(axes):
        if 0 in sizes or axis not in free[-1:]:
            units.need(labels, FLATTENED)
    if 0 in sizes or not free:
        return None
    chosen = free[-1]
    own = axes[chosen]
    assert own is not None
    shape = [-1 if axis == chosen else 1 for axis in range(len(sizes))]
    return np.broadcast_to(own.reshape(shape), sizes).reshape(-1)


def _reshape(units: Units, at: At) -> str | None:
    (x, *_), before, after = units.inputs(at), shape_of(at.input(0)), shape_of(at.y)
    if before is None or after is None:
        return "the shapes at Reshape are not known"
    first = last = 0
    known = min(len(before), len(after))
    while first < known and before[first] == after[first] != 0:
        first += 1
    while last < known - first and before[-1 - last] == after[-1 - last] != 0:
        last += 1
    middle, made = x[first : len(x) - last], after[first : len(after) - last]
    entries = entries_of(at.input(1))
    handed = [*range(first), *range(len(after) - last, len(after))]
    joins = len(made) == 1 and isinstance(made[0], int) and made[0] > 1
    if joins:
        handed.append(first)
    if entries is None or any(entries[axis] is None and isinstance(after[axis], int) for axis in handed):
        return "the sizes that Reshape makes are computed"
    if 0 in entries[first:]:  # the size of the input's axis of that number, which is another one
        return "Reshape copies a size from another axis"
    joined: Axes = [None] * len(made)
    if joins:
        joined = [merge(units, middle)]
    else:
        for labels in middle:
            units.need(labels, SPLIT)
    units.give(at.y, [*x[:first], *joined, *x[len(x) - last :]], FLATTENED if joins else SPLIT)
    return None


def entries_of(value: ir.Value | None) -> list[int | None] | None:
    """What a shape is made of: numbers where they are constants, else None; None where their count is not known."""
    tensor = constant(value)
    if value is None or tensor is not None:
        return None if tensor is None else [int(size) for size in tensor.numpy().reshape(-1)]
    node = value.producer()
    if node is not None and node.op_type == "Concat":
        parts = [entries_of(part) for part in node.inputs]
        return None if None in parts else [size for part in parts for size in part or ()]
    dims = shape_of(value)
    return [None] * dims[0] if dims and isinstance(dims[0], int) and dims[0] else None


MOVES = {
    "Concat": _concat,
    "Flatten": _flatten,
    "Gather": _gather,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
