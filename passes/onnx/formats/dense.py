"""Zeros stored like any number: for weights that no other format suits."""

from __future__ import annotations

from .record import Format
from .weight import Weight


def write(weight: Weight) -> tuple[None, int]:
    """Leave the constant as it lies; in another type than float32, nodes widen it."""
    weight.widen()
    return None, weight.dense_bytes


FORMAT = Format("dense", "zeros are stored like any other number.", write)
