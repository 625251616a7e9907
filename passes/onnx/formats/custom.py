"""Nodes ``topkast.SparseMatMul`` and ``topkast.SparseConv``: our kernels where the library is registered, any ONNX
Runtime's own operators elsewhere.

The model carries a function of each operator's name that computes it by standard operators. A runtime that knows the
operator takes its kernel; one that does not puts the function in its place, folds the dense weight while it loads, and
multiplies as ever.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import parser

from topkast.passes.onnx.blocks import Block, Blocks
from topkast.passes.onnx.constant_products import Product
from topkast.passes.onnx.graph import Builder

from . import custom_speed, int8_functions
from .record import Format
from .weight import Weight

DOMAIN = "topkast"

# The weight's block rows by a running sum over marks where rows end: comparing slots with row_ptr would be folded to a
# constant of slots x rows. Blocks are scattered into [block rows, block columns, r, c] and laid out as W, or as W^T.
WEIGHT = """
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    order = Constant <value_ints = {order}> ()
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
    none = ConstantOfShape <value = int64[1] {{0}}> (length)
    end_count = Shape (ends)
    ones = ConstantOfShape <value = int64[1] {{1}}> (end_count)
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
    turned = Transpose <perm = {perm}> (blocks)
    padded = Mul (grid, rc)
    padded_o = Gather <axis = 0> (padded, order)
    matrix = Reshape (turned, padded_o)
    size_o = Gather <axis = 0> (size, order)
    start = Constant <value_ints = [0, 0]> ()
    weight = Slice (matrix, start, size_o, axes)
"""
# The matrix as a convolution's weight.
FILTERS = """
    kernel = Constant <value_ints: ints = @kernel_shape> ()
    rest = Constant <value_ints = [-1]> ()
    shape = Concat <axis = 0> (rows_1, rest, kernel)
    filters = Reshape (weight, shape)
"""
# Operator -> its attributes, and its body after the weight, up to what the activation takes.
BODIES = {
    "SparseMatMul": (
        "rows, columns, block",
        WEIGHT.format(order=[1, 0], perm=[1, 3, 0, 2]),
        """
    product = MatMul (x, weight)
    h = Add (product, bias)
""",
    ),
    "SparseConv": (
        "rows, columns, block, kernel_shape, strides, pads, dilations, group",
        WEIGHT.format(order=[0, 1], perm=[0, 2, 1, 3]),
        FILTERS
        + """
    h = Conv <kernel_shape: ints = @kernel_shape, strides: ints = @strides, pads: ints = @pads,
              dilations: ints = @dilations, group: int = @group> (x, filters, bias)
""",
    ),
}
INT8_BODIES = {
    "SparseMatMulInt8": (
        BODIES["SparseMatMul"][0],
        BODIES["SparseMatMul"][1],
        int8_functions.PRODUCT.format(x="x", h="h"),
    ),
    "SparseConvInt8": (
        BODIES["SparseConv"][0],
        BODIES["SparseMatMul"][1],
        int8_functions.BEFORE_CONV + int8_functions.PRODUCT.format(x="pixels", h="flat") + int8_functions.AFTER_CONV,
    ),
    "SparseConvPerImageInt8": (*BODIES["SparseConv"][:2], FILTERS + int8_functions.CONV_PER_IMAGE),
}
# A function cannot branch, so each activation has an operator of its own, which ends in its name.
ENDINGS = {
    "": "y = Identity (h)",
    "Relu": "y = Relu (h)",
    "Relu6": """
    low = Constant <value_float = 0.0> ()
    high = Constant <value_float = 6.0> ()
    y = Clip (h, low, high)""",
    "Silu": """
    gate = Sigmoid (h)
    y = Mul (h, gate)""",
    "Gelu": """
    root = Constant <value_float = 1.4142135381698608> ()
    unity = Constant <value_float = 1.0> ()
    half = Constant <value_float = 0.5> ()
    scaled = Div (h, root)
    erf = Erf (scaled)
    sum = Add (erf, unity)
    part = Mul (half, sum)
    y = Mul (h, part)""",
    "GeluTanh": """
    three = Constant <value_float = 3.0> ()
    cubic = Constant <value_float = 0.044714998453855515> ()
    root = Constant <value_float = 0.7978845834732056> ()
    unity = Constant <value_float = 1.0> ()
    half = Constant <value_float = 0.5> ()
    cube = Pow (h, three)
    bent = Mul (cubic, cube)
    inner = Add (h, bent)
    scaled = Mul (root, inner)
    tanh = Tanh (scaled)
    sum = Add (tanh, unity)
    part = Mul (half, sum)
    y = Mul (h, part)""",
}


def function(kind: str, opset: int = 18) -> onnx.FunctionProto:
    """The function of an operator of ours, by the operator's name and the model's version of standard operators."""
    base = base_of(kind)
    inputs = "x, values, row_ptr, cols, bias" if base in BODIES else "x, values, row_ptr, cols, scale, bias"
    attributes, weight, body = (BODIES | INT8_BODIES)[base]
    return parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]> {kind} <{attributes}> ({inputs}) => (y)'
        f"{{{weight}{body}{ENDINGS[kind.removeprefix(base)]}}}"
    )


def base_of(kind: str) -> str:
    """The name of an operator of ours, without the activation in which it ends."""
    return max((base for base in BODIES | INT8_BODIES if kind.startswith(base)), key=len)


def register(model: ir.Model) -> None:
    """Let ``model`` hold the functions that its nodes need."""
    for kind in sorted({node.op_type for node in model.graph.all_nodes() if node.domain == DOMAIN}):
        made = ir.serde.deserialize_function(function(kind, model.opset_imports[""]))
        model.functions[made.identifier()] = made
    model.opset_imports[DOMAIN] = 1


def suits(weight: Weight) -> str | None:
    """None if our kernels compute all products with ``weight``, or the reason why not."""
    return weight.other_use() or _depthwise(weight)


def slower(weight: Weight) -> str | None:
    """Why our kernels are not expected to be faster than dense ones, None if they were measured to be."""
    by_speed = custom_speed.slower_product if weight.conv is None else custom_speed.slower_convolution
    return _depthwise(weight) or by_speed(weight)


def _depthwise(weight: Weight) -> str | None:
    convs = [product.conv for product in weight.products if product.conv is not None]
    if any(conv.channels == 1 and conv.group > 1 for conv in convs):
        return "it is depthwise: each output reads one channel, which a dense kernel keeps in registers"
    return None


def write(weight: Weight) -> tuple[Block, int]:
    """Compute each product by one node of ours."""
    return weight.replace_products(lower)


def keeps_float(weight: Weight) -> str | None:
    """Why our kernels do not take the weight in int8, None if they do."""
    return weight.too_long()


def lower(
    builder: Builder,
    product: Product,
    weight: Blocks,
    label: str,
    dtype: type[np.generic],
    row_count: int | None = None,
) -> None:
    """One node computes ``product`` from ``weight``."""
    (rows, columns), index = weight.shape, np.uint16 if weight.grid[1] <= 2**16 else np.int32
    scale = [] if weight.scale is None else [builder.constant(f"{label}.scale", weight.scale)]
    inputs = [
        product.x,
        builder.constant(f"{label}.values", weight.values.reshape(-1).astype(dtype)),
        builder.constant(f"{label}.row_ptr", weight.row_ptr),
        builder.constant(f"{label}.cols", weight.cols.astype(index)),
        *scale,
        # The function cannot ask whether a bias was given.
        product.bias or builder.constant(f"{DOMAIN}.no_bias.{rows}", np.zeros(rows, np.float32)),
    ]
    shape: dict[str, Any] = {"rows": rows, "columns": columns, "block": list(weight.block)}
    kind = "SparseMatMul"
    if product.conv is not None:
        kind, shape = "SparseConv", shape | product.conv.attributes
        kind += "PerImage" if scale and not product.conv.is_pixelwise else ""
    kind += "Int8" if scale else ""
    y = builder.op(kind, inputs, shape, domain=DOMAIN, name=f"{label}.product.{product.y.name}")
    builder.replace(product.nodes, y)


FORMAT = Format(
    "custom",
    "products as nodes ``topkast.SparseMatMul``, which topkast's kernels run in a session of "
    ":func:`topkast.onnx.session`. ONNX Runtime 1.17 and later also load the file without topkast and run the model at "
    "dense speed.",
    write,
    suits,
    slower,
    needs_library=True,
    keeps_float=keeps_float,
)
