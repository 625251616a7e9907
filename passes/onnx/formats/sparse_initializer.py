"""ONNX's own sparse constants, for interchange: int64 coordinates, which tools expand to dense when they load."""

from __future__ import annotations

import numpy as np

from topkast.passes.onnx.blocks import Block
from topkast.passes.onnx.graph import SPARSE

from .record import Format
from .weight import Weight


def cost(weight: Weight) -> int:
    """Bytes of the coordinates and the values."""
    scales = 0 if weight.scale is None else weight.scale.nbytes
    return int(np.count_nonzero(weight.values)) * (8 + np.dtype(weight.dtype).itemsize) + scales


def write(weight: Weight) -> tuple[Block, int]:
    """Make the constant sparse; in another type than float32, nodes widen it."""
    weight.widen().meta[SPARSE] = True
    return (1, 1), cost(weight)


FORMAT = Format(
    "sparse_initializer", "ONNX's own sparse constants, for other tools; runs at dense speed.", write, cost=cost
)
