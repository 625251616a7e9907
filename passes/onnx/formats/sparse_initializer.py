"""ONNX's own sparse constants, for interchange: int64 coordinates, which tools expand to dense when they load."""

from __future__ import annotations

from topkast.passes.onnx.blocks import Block
from topkast.passes.onnx.graph import SPARSE, Builder

from .record import Format
from .weight import Weight


def cost(weight: Weight) -> int:
    """Bytes of the coordinates and the values."""
    return weight.nonzeros * (8 + (2 if weight.half else 4))


def write(weight: Weight) -> tuple[Block, int]:
    """Make the constant sparse; with ``weight.half``, as float16 that a node widens."""
    stored = weight.value
    if weight.half:
        builder = Builder(weight.graph, weight.name)
        wide = builder.floats(weight.name, weight.array, True)
        builder.compute(weight.value, wide)
        stored = weight.graph.initializers[f"{weight.name}.half"]
    stored.meta[SPARSE] = True
    return (1, 1), cost(weight)


FORMAT = Format(
    "sparse_initializer", "ONNX's own sparse constants, for other tools; runs at dense speed.", write, cost=cost
)
