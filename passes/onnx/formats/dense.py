"""Zeros stored like any number: for weights that no other format suits."""

from __future__ import annotations

from topkast.passes.onnx.graph import Builder

from .record import Format
from .weight import Weight


def write(weight: Weight) -> tuple[None, int]:
    """Leave the constant as it lies; with ``weight.half``, as float16 that a node widens."""
    if weight.half:
        builder = Builder(weight.graph, weight.name)
        builder.compute(weight.value, builder.floats(weight.name, weight.array, True))
    return None, weight.dense_bytes


FORMAT = Format("dense", "zeros are stored like any other number.", write)
