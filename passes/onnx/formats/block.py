"""Standard operators only: gather the panels of x that each block row reads, then one batched product.

Two forms, by how x lies while it is gathered. With x turned to [in, M] panels are whole rows, and weights stand on the
left; that is the faster one but for many rows of x and large blocks, where turning costs more than it saves.

With int8 weights x is quantised as a whole, panels are uint8, and the product is one of integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from topkast.passes.onnx.blocks import Array, Block, Blocks
from topkast.passes.onnx.constant_products import Product
from topkast.passes.onnx.graph import Builder, shape_of

from .measured import LEAST_WORK, limit
from .record import Format
from .weight import Weight

ROW_MAJOR_FROM = 256  # rows of x from which the form that does not turn it is faster,
ROW_MAJOR_BLOCK = 32  # for blocks of at least this many rows and columns (measured)
SMALLEST = 16  # rows and columns of a block; below, standard operators lose to the dense product (measured)
MAX_GROUPS = 4  # of block rows; each costs a gather and a product
GROUP_COST = 0.05  # what one more group must save, as a share of the blocks
MAX_PADDING = 1.5  # stored blocks to those needed
# Rows or columns of a block, the fewer -> the density up to which standard operators win, padding included.
STANDARD = {32: 0.22}


@dataclass(frozen=True)
class Groups:
    """Block rows sorted into groups, each padded with zero blocks to its longest row.

    Args:
        rows: int64, one array a group: its block rows.
        lengths: blocks in each row of each group.
    """

    rows: list[Array]
    lengths: list[int]

    @property
    def stored(self) -> int:
        """Blocks stored, padding included."""
        return sum(len(rows) * length for rows, length in zip(self.rows, self.lengths, strict=True))


def grouped(weight: Blocks) -> Groups:
    """The block rows of ``weight`` in as few groups as pay."""
    counts = np.diff(weight.row_ptr)
    order = np.argsort(-counts, kind="stable")
    tried = []
    for parts in range(1, MAX_GROUPS + 1):
        rows = [np.sort(part) for part in np.array_split(order, parts) if len(part)]
        tried.append(Groups(rows, [max(1, int(counts[part].max())) for part in rows]))
    return min(tried, key=lambda groups: groups.stored * (1 + GROUP_COST * len(groups.rows)))


NO_CONVOLUTION = "standard operators have no sparse convolution that is faster than a dense one"


def refusal(weight: Blocks) -> str | None:
    """Why ``weight`` cannot be written this way, None if it can."""
    (rows, columns), (r, c) = weight.shape, weight.block
    if min(r, c) < SMALLEST:
        return f"standard operators lose to dense with blocks of {r} x {c}; they need at least {SMALLEST} x {SMALLEST}"
    if rows % r or columns % c:
        return f"{rows} x {columns} is no multiple of its blocks of {r} x {c}"
    if grouped(weight).stored > MAX_PADDING * max(1, len(weight.cols)):
        return "its block rows hold too different numbers of blocks; train with balanced=True"
    return None


def suits(weight: Weight) -> str | None:
    """None if standard operators compute all products with ``weight``, or the reason why not."""
    other = weight.other_use()
    if other is None and weight.conv is not None:
        return NO_CONVOLUTION
    return other or next(filter(None, map(refusal, weight.matrices.values())), None)


def slower(weight: Weight) -> str | None:
    """Why standard operators are not expected to be faster than the dense product, None if they were measured to be."""
    if weight.conv is not None:
        return NO_CONVOLUTION
    matrix = weight.matrix
    if weight.rows * matrix.shape[0] * matrix.shape[1] < LEAST_WORK[False]:  # its nodes are many
        return "the product is too small for standard operators to be faster"
    most = limit(STANDARD, min(matrix.block))
    if refusal(matrix) is None and grouped(matrix).stored > most * matrix.grid[0] * matrix.grid[1]:
        return f"standard operators are faster only up to a density of {most:.0%}, padding included"
    return refusal(matrix)


def keeps_float(weight: Weight) -> str | None:
    """Why standard operators do not take the weight in int8, None if they do."""
    c = weight.matrix.block[1]
    if c % 2:
        return f"in blocks of {c} columns the neighbours differ, of which the products are added in 16 bits"
    return weight.too_long()


def write(weight: Weight) -> tuple[Block, int]:
    """Compute each product by standard operators."""
    return weight.replace_products(lower)


def lower(
    builder: Builder,
    product: Product,
    weight: Blocks,
    label: str,
    dtype: type[np.generic],
    row_count: int | None,
) -> None:
    """Standard operators compute ``product`` from ``weight``, for x of about ``row_count`` rows (None: not known)."""
    # ONNX Runtime multiplies uint8 on the left by int8 on the right, so x stands on the left.
    row_major = weight.scale is not None or (
        (row_count or 1) >= ROW_MAJOR_FROM and min(weight.block) >= ROW_MAJOR_BLOCK
    )
    builder.replace(product.nodes, _Writer(builder, product, weight, label, dtype).write(row_major))


class _Writer:
    def __init__(self, builder: Builder, product: Product, weight: Blocks, label: str, dtype: type[np.generic]) -> None:
        self.builder, self.product, self.weight, self.label, self.dtype = builder, product, weight, label, dtype
        self.quantised_x: tuple[ir.Value, ir.Value] | None = None  # scale and zero point, if x is quantised

    def write(self, row_major: bool) -> ir.Value:
        (out, columns), (_, c), x, node = self.weight.shape, self.weight.block, self.product.x, self.builder.node
        flat = len(shape_of(x) or ()) == 2
        if self.weight.scale is not None:
            x, *scale_and_zero = self.builder.node_of("DynamicQuantizeLinear", x, outputs=3)
            self.quantised_x = scale_and_zero[0], scale_and_zero[1]
        if not flat:
            x = self._reshape(x, -1, columns)
        if row_major:
            panels = self._reshape(x, -1, columns // c, c)
        else:
            panels = self._reshape(node("Transpose", x, perm=[1, 0]), columns // c, c, -1)
        groups = grouped(self.weight)
        parts = [
            self._group(i, panels, rows, length, row_major)
            for i, (rows, length) in enumerate(zip(groups.rows, groups.lengths, strict=True))
        ]
        y = parts[0]
        if len(parts) > 1:
            order = np.argsort(np.concatenate(groups.rows))
            y = node("Concat", *parts, axis=0)
            y = node("Gather", y, self.builder.constant(f"{self.label}.order", order), axis=0)
        if row_major:  # [block rows, M, r] -> [M, out]
            y = self._reshape(node("Transpose", y, perm=[1, 0, 2]), -1, out)
        else:  # [block rows, r, M] -> [M, out]
            y = node("Transpose", self._reshape(y, out, -1), perm=[1, 0])
        if self.product.bias is not None:
            y = node("Add", y, self.product.bias)
        return y if flat else self._shaped_like_x(y, out)

    def _group(self, i: int, panels: ir.Value, rows: Array, length: int, row_major: bool) -> ir.Value:
        """The product of some block rows: [rows, M, r] or [rows, r, M]."""
        (r, c), (cols, values), node = self.weight.block, padded(self.weight, rows, length), self.builder.node
        index = self.builder.constant(f"{self.label}.panels.{i}", cols)
        # Both forms of one weight may stand in one file.
        name = f"{self.label}.values.{'row_major' if row_major else 'turned'}.{i}"
        if row_major:  # panels [M, block columns, c]
            matrix = values.transpose(0, 1, 3, 2).reshape(len(rows), length * c, r)
            taken = self._reshape(node("Gather", panels, index, axis=1), -1, len(rows), length * c)
            taken = node("Transpose", taken, perm=[1, 0, 2])
            if self.quantised_x is not None:
                return self._integer_product(taken, name, matrix, rows)
            return node("MatMul", taken, self._floats(name, matrix))
        matrix = values.transpose(0, 2, 1, 3).reshape(len(rows), r, length * c)
        taken = self._reshape(node("Gather", panels, index, axis=0), len(rows), length * c, -1)
        return node("MatMul", self._floats(name, matrix), taken)

    def _integer_product(self, taken: ir.Value, name: str, matrix: Array, rows: Array) -> ir.Value:
        """uint8 [rows, M, columns] by int8 [rows, columns, r], in float32."""
        assert self.quantised_x is not None and self.weight.scale is not None
        (scale, zero), constant, node = self.quantised_x, self.builder.constant, self.builder.node
        scales = self.weight.scale.reshape(-1, 1, self.weight.block[0])[rows]
        sums = node("MatMulInteger", taken, constant(f"{name}.int8", matrix.astype(np.int8)), zero)
        factor = node("Mul", scale, constant(f"{name}.scale", scales))
        return node("Mul", node("Cast", sums, to=ir.DataType.FLOAT), factor)

    def _shaped_like_x(self, y: ir.Value, out: int) -> ir.Value:
        """[M, out] -> [..., out], with the leading dimensions of x."""
        node = self.builder.node
        leading = node("Slice", node("Shape", self.product.x), self._dims(0), self._dims(-1))
        return node("Reshape", y, node("Concat", leading, self._dims(out), axis=0))

    def _reshape(self, x: ir.Value, *dims: int) -> ir.Value:
        return self.builder.node("Reshape", x, self._dims(*dims))

    def _dims(self, *dims: int) -> ir.Value:
        return self.builder.constant("topkast.dims." + ".".join(map(str, dims)), np.array(dims))

    def _floats(self, name: str, matrix: Array) -> ir.Value:
        return self.builder.floats(name, matrix, self.dtype)


def padded(weight: Blocks, rows: Array, length: int) -> tuple[Array, Array]:
    """Columns [rows, length] and values [rows, length, r, c] of some block rows, filled up with zeros at column 0."""
    starts = weight.row_ptr[rows, None] + np.arange(length)
    real = starts < weight.row_ptr[rows + 1, None]
    cols = np.zeros((len(rows), length), np.int64)
    values = np.zeros((len(rows), length, *weight.block), np.float32)
    cols[real], values[real] = weight.cols[starts[real]], weight.values[starts[real]]
    return cols, values


FORMAT = Format(
    "block",
    "products by standard operators, faster than dense in any ONNX Runtime, for blocks of 16 x 16 or more with about "
    "the same number of blocks in each block row.",
    write,
    suits,
    slower,
    keeps_float=keeps_float,
)
