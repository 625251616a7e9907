"""Matrix products and convolutions by constant weights, as one matrix [output units, input units] each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from topkast.passes.onnx.blocks import Array
from topkast.passes.onnx.graph import constant

from .units import At, Axes, Linear, Units

FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


def _weight(at: At, ranks: range) -> bool:
    tensor = constant(at.input(1))
    return tensor is not None and tensor.dtype in FLOATS and tensor.shape.rank() in ranks


def _matmul(units: Units, at: At) -> str | None:
    a, b = (units.of(at.operand(i)) or [] for i in (0, 1))
    if min(len(a), len(b)) < 2:
        return "MatMul is of a vector"
    if not _weight(at, range(2, 3)):
        for labels in (a[-1], b[-2]):
            units.need(labels, "MatMul sums over it with what is computed or no matrix")
        units.give(at.y, [*units.broadcast([a[:-2], b[:-2]]), a[-2], b[-1]])
        return None
    return _product(units, at, a, b[::-1], None, lambda array: array.T[..., None])


def _gemm(units: Units, at: At) -> str | None:
    x, weight = (units.of(at.operand(i)) or [] for i in (0, 1))
    scaled = any(at.given.get(factor, 1.0) != 1.0 for factor in ("alpha", "beta"))
    if not _weight(at, range(2, 3)) or at.given.get("transA") or scaled:
        return "Gemm is not of the form x W^T + bias"
    turned = not at.given.get("transB")
    rows = weight[1 if turned else 0]
    if at.has(2):
        bias = at.constant(2)
        if bias is None or rows is None or bias.shape != (len(rows),):
            return "Gemm adds something else than a constant vector"
    return _product(units, at, x, weight[::-1] if turned else weight, 2, lambda a: (a.T if turned else a)[..., None])


def _product(
    units: Units, at: At, x: Axes, weight: Axes, bias: int | None, as_matrix: Callable[[Array], Array]
) -> str | None:
    rows, cols = weight
    assert rows is not None and cols is not None
    if x[-1] is None:
        return f"{at.node.op_type} sums over an axis of no fixed size"
    units.tie(x[-1], cols)
    if bias is not None and at.has(bias):
        _tie_bias(units, at, rows, bias)
    units.linears.append(Linear(at, rows, cols, len(x) - 1, as_matrix, bias, True))
    units.give(at.y, [*x[:-1], rows])
    return None


def _tie_bias(units: Units, at: At, rows: Array, bias: int) -> None:
    (labels,) = units.of(at.operand(bias)) or [None]
    assert labels is not None
    units.tie(rows, labels)


def _conv(units: Units, at: At) -> str | None:
    kind, transposed = at.node.op_type, at.node.op_type == "ConvTranspose"
    if not _weight(at, range(3, 6)) or (at.has(2) and at.constant(2) is None):
        return f"the weight or the bias of {kind} is computed"
    x, weight = (units.of(at.operand(i)) or [] for i in (0, 1))
    groups, size = at.given.get("group", 1), len(weight)
    first, second = weight[:2]
    if x[1] is None or first is None or second is None:
        return f"the channels of {kind} are not known"
    for labels in [*x[2:], *weight[2:]]:
        units.need(labels, f"{kind} slides over it")

    def as_matrix(array: Array) -> Array:
        return _ungrouped(array.reshape(*array.shape[:2], -1), groups, transposed)

    # A group goes as a whole, with its inputs and outputs; its labels of the weight's second axis are shared by all.
    if groups == 1:
        rows, cols = (second, first) if transposed else (first, second)
        units.tie(x[1], cols)
    else:
        units.need(second, "it is in every group")
        own = units.fresh(len(second) * groups)  # of the side that the weight does not name
        rows, cols = (own, first) if transposed else (first, own)
        units.tie(x[1], cols)
        for inputs, outputs in zip(np.split(cols, groups), np.split(rows, groups), strict=True):
            units.tie_groups(np.concatenate([inputs, outputs]), len(inputs) + len(outputs))
    if at.has(2):
        _tie_bias(units, at, rows, 2)
    padded = any(at.given.get("pads", ())) or at.given.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    units.linears.append(Linear(at, rows, cols, 1, as_matrix, 2, not padded and not transposed))
    units.give(at.y, [x[0], rows, *[None] * (size - 2)])
    return None


def _ungrouped(array: Array, groups: int, transposed: bool) -> Array:
    """[out, in / groups, k], or [in, out / groups, k] if transposed, to [out, in, k]."""
    parts = [part.swapaxes(0, 1) if transposed else part for part in np.split(array, groups)]
    if groups == 1:
        return parts[0]
    out, into, k = parts[0].shape
    full = np.zeros((groups, out, groups, into, k), array.dtype)
    for i, part in enumerate(parts):
        full[i, :, i] = part
    return full.reshape(groups * out, groups * into, k)


LINEAR = {"MatMul": _matmul, "Gemm": _gemm, "Conv": _conv, "ConvTranspose": _conv}
