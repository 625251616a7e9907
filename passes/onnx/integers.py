"""The record of a file's int8 products and weights; the check of their bits reads the record."""

from __future__ import annotations

from dataclasses import dataclass

from topkast.passes.onnx.blocks import Array

from .constant_products import Convolution
from .quantise import Quantised


@dataclass(frozen=True)
class IntegerProduct:
    """A product that the file computes with an int8 weight.

    Args:
        weight: the weight's name.
        x, y: names of the values that the product reads and gives.
        values: the name of the constant of values of the node of ours that computes the product; None if standard
            operators compute the product.
        matrix: the weight, [out, in].
        bias: float32 [out], or None.
        conv: None for a matrix; otherwise x is [batch, in, ...].
    """

    weight: str
    x: str
    y: str
    values: str | None
    matrix: Quantised
    bias: Array | None
    conv: Convolution | None


@dataclass(frozen=True)
class IntegerWeight:
    """A constant that is stored in int8 and unpacked at load.

    Args:
        weight: the weight's name.
        value: name of the value after unpacking.
        values: int8, of the value's shape.
        scale: float32, of a shape that spreads over the value's.
    """

    weight: str
    value: str
    values: Array
    scale: Array


@dataclass
class Integers:
    """All of them in one file."""

    products: list[IntegerProduct]
    weights: list[IntegerWeight]
