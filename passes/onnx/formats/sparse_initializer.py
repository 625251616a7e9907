"""ONNX's own sparse constants, for interchange: int64 coordinates, which tools expand to dense when they load."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from topkast.passes.onnx.blocks import Block

from .record import Format
from .weight import Weight


def cost(weight: Weight) -> int:
    """Bytes of the coordinates and the values."""
    return weight.nonzeros * (8 + (2 if weight.half else 4))


def write(weight: Weight) -> tuple[Block, int]:
    """Make the constant sparse; with ``weight.half``, as float16 that a node widens."""
    graph, name, bytes = weight.graph, weight.name, cost(weight)
    places = np.flatnonzero(weight.array)
    values = weight.array.reshape(-1)[places]
    stored = name
    if weight.half:
        stored, values = f"{name}.half", values.astype(np.float16)
        graph.compute(name, [helper.make_node("Cast", [stored], [name], stored, to=TensorProto.FLOAT)])
    else:
        graph.compute(name, [])
    graph.sparse.append(
        helper.make_sparse_tensor(
            numpy_helper.from_array(values, stored),
            numpy_helper.from_array(places.astype(np.int64), f"{name}.places"),
            weight.array.shape,
        )
    )
    return (1, 1), bytes


FORMAT = Format(
    "sparse_initializer", "ONNX's own sparse constants, for other tools; runs at dense speed.", write, cost=cost
)
