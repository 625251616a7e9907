"""Standard operators that unpack a weight from the gaps between its entries: the smallest file, at dense speed.

ONNX Runtime folds them while it loads, so what runs is the dense graph. Positions are running sums of gaps of one byte;
where a gap is wider, entries that are zero stand in between.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from topkast.passes.onnx.blocks import Array, Block, Blocks
from topkast.passes.onnx.graph import Builder

from .record import Format
from .weight import Weight

WIDEST = 255  # what a byte holds


def pack(weight: Blocks) -> tuple[Array, Array]:
    """(gaps uint8 [entries], values float32 [entries, r * c]): the first gap is the first position in the grid."""
    positions = weight.rows_of_slots() * weight.grid[1] + weight.cols
    gaps = np.diff(positions, prepend=0)
    fillers = np.maximum(gaps - 1, 0) // WIDEST  # before each entry
    at = np.cumsum(fillers + 1) - 1
    packed = np.full(len(gaps) + int(fillers.sum()), WIDEST, np.uint8)
    packed[at] = gaps - fillers * WIDEST
    unit = weight.block[0] * weight.block[1]
    values = np.zeros((len(packed), unit), np.float32)
    values[at] = weight.values.reshape(len(gaps), unit)
    return packed, values


def unpack(builder: Builder, weight: Blocks, name: str, shape: list[int], dtype: type[np.generic]) -> ir.Value:
    """Unpack the constant ``name``, of this shape, whose matrix is ``weight``."""
    (rows, columns), (r, c), (grid_rows, grid_cols) = weight.shape, weight.block, weight.grid
    gaps, values = pack(weight)

    def ints(*array: int) -> ir.Value:
        return builder.constant("topkast.ints." + ".".join(map(str, array)), np.array(array, np.int64))

    wide = builder.node("Cast", builder.constant(f"{name}.gaps", gaps), to=ir.DataType.INT64)
    axis = builder.constant("topkast.axis", np.array(0, np.int64))
    place = builder.node("Unsqueeze", builder.node("CumSum", wide, axis), ints(1))
    empty = builder.node("ConstantOfShape", ints(grid_rows * grid_cols, r * c))
    units = builder.node("ScatterND", empty, place, builder.floats(f"{name}.values", values, dtype))
    if r * c > 1:
        grid = builder.node("Reshape", units, ints(grid_rows, grid_cols, r, c))
        units = builder.node("Transpose", grid, perm=[0, 2, 1, 3])
    if (rows, columns) != (grid_rows * r, grid_cols * c):
        matrix = builder.node("Reshape", units, ints(grid_rows * r, grid_cols * c))
        units = builder.node("Slice", matrix, ints(0, 0), ints(rows, columns))
    return builder.node("Reshape", units, ints(*shape))


def cost(weight: Weight) -> int:
    """Bytes of the packed weight."""
    gaps, values = pack(weight.as_it_lies)
    scales = 0 if weight.scale is None else weight.scale.nbytes
    return gaps.nbytes + values.size * np.dtype(weight.dtype).itemsize + scales


def write(weight: Weight) -> tuple[Block, int]:
    """Let nodes unpack the constant."""
    builder, shape = Builder(weight.graph, f"{weight.name}.unpack"), list(weight.array.shape)
    units = unpack(builder, weight.as_it_lies, weight.name, shape, weight.dtype)
    builder.compute(weight.value, builder.scaled(units, weight.name, weight.scale))
    weight.unpacked()
    return weight.as_it_lies.block, cost(weight)


FORMAT = Format(
    "compact",
    "the smallest file. The weights are unpacked when the file is loaded; runs at dense speed.",
    write,
    cost=cost,
)
