"""Nodes ``topkast.SparseMatMul``: our kernels where the library is registered, any ONNX Runtime's own ops elsewhere.

The model carries a function of the operator's name that computes it by standard operators. A runtime that knows the
operator takes its kernel; one that does not puts the function in its place, folds the dense weight while it loads, and
multiplies as ever.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, parser

from .blocks import Blocks
from .graph import Graph
from .products import Product

DOMAIN = "topkast"
MAX_BLOCK = 64  # rows and columns of a block, as the kernels take them

# The weight's block rows by a running sum over marks where rows end: comparing slots with row_ptr would be folded to a
# constant of slots x rows. Blocks are scattered into [block rows, block columns, r, c] and laid out as W^T.
SPARSE_MATMUL = """
<domain: "topkast", opset_import: ["" : 18]>
SparseMatMul <rows, columns, block> (x, values, row_ptr, cols, bias) => (y)
{
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    swap = Constant <value_ints = [1, 0]> ()
    axes = Constant <value_ints = [0, 1]> ()
    last = Constant <value_ints = [9223372036854775807]> ()
    rc = Constant <value_ints: ints = @block> ()
    n = Constant <value_int: int = @rows> ()
    k = Constant <value_int: int = @columns> ()
    rows_1 = Reshape (n, one)
    columns_1 = Reshape (k, one)
    size = Concat <axis = 0> (rows_1, columns_1)
    above = Add (size, rc)
    most = Sub (above, one)
    grid = Div (most, rc)
    slots = Shape (cols)
    ends = Slice (row_ptr, one, last)
    length = Add (slots, one)
    none = ConstantOfShape <value = int64[1] {0}> (length)
    end_count = Shape (ends)
    ones = ConstantOfShape <value = int64[1] {1}> (end_count)
    marks = ScatterElements <axis = 0, reduction = "add"> (none, ends, ones)
    axis = Constant <value_int = 0> ()
    sums = CumSum (marks, axis)
    row = Slice (sums, zero, slots)
    col = Cast <to = 7> (cols)
    row_2 = Unsqueeze (row, one)
    col_2 = Unsqueeze (col, one)
    place = Concat <axis = 1> (row_2, col_2)
    wide = Cast <to = 1> (values)
    unit = Concat <axis = 0> (slots, rc)
    units = Reshape <allowzero = 1> (wide, unit)
    blocked = Concat <axis = 0> (grid, rc)
    empty = ConstantOfShape (blocked)
    blocks = ScatterND (empty, place, units)
    turned = Transpose <perm = [1, 3, 0, 2]> (blocks)
    padded = Mul (grid, rc)
    padded_t = Gather <axis = 0> (padded, swap)
    matrix = Reshape (turned, padded_t)
    size_t = Gather <axis = 0> (size, swap)
    start = Constant <value_ints = [0, 0]> ()
    weight = Slice (matrix, start, size_t, axes)
    product = MatMul (x, weight)
    y = Add (product, bias)
}
"""


def register(model: onnx.ModelProto) -> None:
    """Let ``model`` hold the function that its nodes need."""
    model.functions.append(parser.parse_function(SPARSE_MATMUL))
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def lower(graph: Graph, product: Product, weight: Blocks, label: str, half: bool) -> list[NodeProto]:
    """The nodes that compute ``product`` from ``weight``, whose constants are named after ``label``."""
    (rows, columns), dtype = weight.shape, np.uint16 if weight.grid[1] <= 2**16 else np.int32
    values = weight.values.reshape(-1).astype(np.float16 if half else np.float32)
    inputs = [
        product.x,
        graph.add(f"{label}.values", values),
        graph.add(f"{label}.row_ptr", weight.row_ptr),
        graph.add(f"{label}.cols", weight.cols.astype(dtype)),
        # The function cannot ask whether a bias was given.
        product.bias or graph.add(f"{DOMAIN}.no_bias.{rows}", np.zeros(rows, np.float32)),
    ]
    shape: dict[str, Any] = {"rows": rows, "columns": columns, "block": list(weight.block)}
    return [
        helper.make_node("SparseMatMul", inputs, [product.y], f"{label}.product.{product.y}", domain=DOMAIN, **shape)
    ]
