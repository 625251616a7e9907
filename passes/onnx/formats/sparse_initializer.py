"""ONNX's own sparse constants, for interchange: int64 coordinates, which tools expand to dense when they load."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from topkast.passes.onnx.graph import Graph


def size(nonzeros: int, half: bool) -> int:
    """Bytes of a constant with so many entries."""
    return nonzeros * (8 + (2 if half else 4))


def lower(graph: Graph, name: str, half: bool) -> onnx.SparseTensorProto:
    """The constant ``name`` as the model is to hold it; with ``half``, as float16 that a node widens."""
    array = graph.array(name)
    places = np.flatnonzero(array)
    values = array.reshape(-1)[places]
    stored = name
    if half:
        stored, values = f"{name}.half", values.astype(np.float16)
        graph.compute(name, [helper.make_node("Cast", [stored], [name], stored, to=TensorProto.FLOAT)])
    else:
        del graph.constants[name]
    return helper.make_sparse_tensor(
        numpy_helper.from_array(values, stored),
        numpy_helper.from_array(places.astype(np.int64), f"{name}.places"),
        array.shape,
    )
