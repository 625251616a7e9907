"""Zeros stored like any number: for weights that no other format suits.

With int8 the products of a matrix are products of integers by standard operators, with one scale for all of x: what
ONNX Runtime's own ``quantize_dynamic`` writes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from topkast.passes.onnx.constant_products import Product
from topkast.passes.onnx.graph import Builder

from .record import Format
from .weight import Weight


def write(weight: Weight) -> tuple[None, int]:
    """Leave the constant as it lies; in another type than float32, nodes widen it or multiply integers."""
    if weight.precision != "int8" or not multiplies_integers(weight):
        weight.widen()
        return None, weight.dense_bytes

    def replace(builder: Builder, product: Product, label: str) -> None:
        builder.replace(product.nodes, integer_product(builder, product, weight, label))

    added = weight.replace_each(replace)
    return None, added + (weight.array.nbytes if weight.value.uses() else 0)


def multiplies_integers(weight: Weight) -> bool:
    """Whether products of the weight in int8 multiply integers, and do not unpack the weight. A weight without zeros
    may have other uses, such as an embedding that a head is tied to; these keep float32."""
    is_matrix = bool(weight.products) and weight.conv is None and weight.array.size > 0
    return is_matrix and (weight.is_full or weight.other_use() is None)


def integer_product(builder: Builder, product: Product, weight: Weight, label: str) -> ir.Value:
    """The result of ``product`` by standard operators, from the weight in int8."""
    node, constant = builder.node, builder.constant
    matrix = weight.quantised[product.transposed]
    x, scale, zero = builder.node_of("DynamicQuantizeLinear", product.x, outputs=3)
    values = constant(f"{label}.int8", np.ascontiguousarray(matrix.values.T))
    sums = node("Cast", node("MatMulInteger", x, values, zero), to=ir.DataType.FLOAT)
    y = node("Mul", sums, node("Mul", scale, constant(f"{label}.scale", matrix.scale)))
    return y if product.bias is None else node("Add", y, product.bias)


def keeps_float(weight: Weight) -> str | None:
    """Why 32 bits do not hold the sums of integer products, None if they do or if the weight is unpacked."""
    return weight.too_long() if multiplies_integers(weight) else None


def slower(weight: Weight) -> str | None:
    """None if products are of integers, which are faster than those of float32."""
    return None if weight.precision == "int8" and multiplies_integers(weight) else "it runs at dense speed"


FORMAT = Format("dense", "zeros are stored like any other number.", write, slower=slower, keeps_float=keeps_float)
