"""Zeros stored like any number: for weights that no other format suits."""

from __future__ import annotations

from .record import Format
from .weight import Weight


def write(weight: Weight) -> tuple[None, int]:
    """Leave the constant as it lies; with ``weight.half``, as float16 that a node widens."""
    if weight.half:
        weight.graph.compute(weight.name, [])
        weight.graph.add_floats(weight.name, weight.array, True)
    return None, weight.dense_bytes


FORMAT = Format("dense", "zeros are stored like any other number.", write)
