"""Standard operators that unpack a weight from the gaps between its entries: the smallest file, at dense speed.

ONNX Runtime folds them while it loads, so what runs is the dense graph. Positions are running sums of gaps of one byte;
where a gap is wider, entries that are zero stand in between.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from topkast.passes.onnx.blocks import Array, Block, Blocks
from topkast.passes.onnx.graph import Graph

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


def size(weight: Blocks, half: bool) -> int:
    """Bytes of the packed weight."""
    gaps, values = pack(weight)
    return gaps.nbytes + values.nbytes // (2 if half else 1)


def lower(graph: Graph, name: str, weight: Blocks, half: bool) -> None:
    """Let nodes unpack the constant ``name``, whose matrix is ``weight``."""
    (rows, columns), (r, c), (grid_rows, grid_cols) = weight.shape, weight.block, weight.grid
    shape = list(graph.constants[name].dims)
    gaps, values = pack(weight)
    nodes: list[NodeProto] = []

    def constant(array: list[int]) -> str:
        return graph.add("topkast.ints." + ".".join(map(str, array)), np.array(array, np.int64))

    def node(kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        out = out or f"{name}.unpack.{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [out], out, **attributes))
        return out

    wide = node("Cast", graph.add(f"{name}.gaps", gaps), to=TensorProto.INT64)
    axis = graph.add("topkast.axis", np.array(0, np.int64))
    place = node("Unsqueeze", node("CumSum", wide, axis), constant([1]))
    empty = node("ConstantOfShape", constant([grid_rows * grid_cols, r * c]))
    units = node("ScatterND", empty, place, graph.add_floats(f"{name}.values", values, half))
    if r * c > 1:
        grid = node("Reshape", units, constant([grid_rows, grid_cols, r, c]))
        units = node("Transpose", grid, perm=[0, 2, 1, 3])
    if (rows, columns) != (grid_rows * r, grid_cols * c):
        matrix = node("Reshape", units, constant([grid_rows * r, grid_cols * c]))
        units = node("Slice", matrix, constant([0, 0]), constant([rows, columns]))
    node("Reshape", units, constant(shape), out=name)
    graph.compute(name, nodes)


def cost(weight: Weight) -> int:
    """Bytes of the packed weight."""
    return size(weight.as_it_lies, weight.half)


def write(weight: Weight) -> tuple[Block, int]:
    """Let nodes unpack the constant."""
    lower(weight.graph, weight.name, weight.as_it_lies, weight.half)
    return weight.as_it_lies.block, cost(weight)


FORMAT = Format(
    "compact",
    "the smallest file. The weights are unpacked when the file is loaded; runs at dense speed.",
    write,
    cost=cost,
)
