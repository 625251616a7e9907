"""A constant of the graph that is about to be stored in a format, with the products that read it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

import numpy as np
import onnx_ir as ir

from topkast.passes.onnx.blocks import MAX_BLOCK, Array, Block, Blocks, digest, fitting
from topkast.passes.onnx.constant_products import Convolution, Product
from topkast.passes.onnx.graph import Builder, array_of, rows_of
from topkast.passes.onnx.integers import IntegerProduct, Integers, IntegerWeight
from topkast.passes.onnx.quantise import LONGEST, STORED, Quantised, quantise

FULL = 0.999  # a weight with fewer zeros than this leaves has none to speak of
# (new nodes, product, label of its constants) -> None: replaces the product
Replace = Callable[[Builder, Product, str], None]
# (new nodes, product to replace by them, matrix, label of its constants, type of its values in the file, rows of x)
Lower = Callable[[Builder, Product, Blocks, str, type[np.generic], int | None], None]


class Weight:
    """One float32 constant.

    Args:
        value: in the graph.
        products: those that read it.
        precision: of its values in the file: "fp32", "fp16" (if all its values are such), or "int8".
        blocks: (rows, columns) of the blocks the model was trained with.
        names: what to call a weight, by :func:`topkast.passes.onnx.blocks.digest` of its [out, in] matrix.
        sizes: dynamic dimensions in the examples, by name.
    """

    def __init__(
        self,
        value: ir.Value,
        products: list[Product],
        precision: str,
        blocks: Iterable[Block],
        names: Mapping[str, str],
        sizes: Mapping[str, int],
    ) -> None:
        assert value.graph is not None and value.name is not None
        self.value, self.name, self.graph, self.products, self.sizes = value, value.name, value.graph, products, sizes
        self.array = array_of(value)
        self.nonzeros = int(np.count_nonzero(self.array))
        if precision == "fp16" and not (self.array.astype(np.float16).astype(np.float32) == self.array).all():
            precision = "fp32"
        self.precision, self.dtype = precision, STORED[precision]
        self.times = dict[str, float]()  # format -> its share of the dense time, if it was timed
        self.integers = Integers([], [])  # what was stored in int8
        self._blocks, self._names = blocks, names
        self.label = self.name
        if products:
            self.label = names.get(digest(self._matrix(products[0].transposed)), self.name)

    @property
    def is_full(self) -> bool:
        """Whether the weight has no zeros to speak of; an empty weight has none."""
        return self.nonzeros >= FULL * self.array.size

    @property
    def dense_bytes(self) -> int:
        """Bytes of the weight if it is stored dense."""
        return self.array.size * np.dtype(self.dtype).itemsize + (0 if self.scale is None else self.scale.nbytes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a matrix [out, in]."""
        dims = tuple(self.array.shape)
        return dims[::-1] if self.products and self.products[0].transposed else dims

    @property
    def conv(self) -> Convolution | None:
        """The convolution that reads the weight, None if that is a matrix product."""
        return self.products[0].conv

    @cached_property
    def matrices(self) -> dict[bool, Blocks]:
        """Whether the constant is read as [in, out] -> its matrix [out, in]; a tied weight may be read both ways."""
        if self.precision != "int8":
            return {turned: self._fitting_of(self._matrix(turned)) for turned in self.matrices_read}
        return {
            turned: dataclasses.replace(self._fitting_of(found.values.astype(np.float32)), scale=found.scale)
            for turned, found in self.quantised.items()
        }

    @property
    def matrices_read(self) -> list[bool]:
        """The ways in which products read the constant: whether as [in, out]."""
        return list(dict.fromkeys(product.transposed for product in self.products))

    @property
    def matrix(self) -> Blocks:
        """[out, in], as the first product reads the weight."""
        return next(iter(self.matrices.values()))

    @cached_property
    def as_it_lies(self) -> Blocks:
        """The constant as a matrix, not turned; with int8 its integers, to be multiplied by :attr:`scale`."""
        return self._fitting_of(self.values.reshape(len(self.array), -1))

    @property
    def values(self) -> Array:
        """float32, of the constant's shape: its numbers; with int8 its integers, to be multiplied by ``scale``."""
        if self.precision != "int8":
            return self.array
        values = self.quantised[self.products[0].transposed].values.astype(np.float32)
        return np.ascontiguousarray(values.T if self.products[0].transposed else values).reshape(self.array.shape)

    @property
    def scale(self) -> Array | None:
        """With int8 the scale of each output, of a shape that spreads over the constant's; otherwise None."""
        if self.precision != "int8":
            return None
        scale, dims = self.quantised[self.products[0].transposed].scale, self.array.ndim
        return scale if self.products[0].transposed else scale.reshape(-1, *[1] * (dims - 1))

    @cached_property
    def quantised(self) -> dict[bool, Quantised]:
        """Whether the constant is read as [in, out] -> its matrix [out, in] in int8."""
        return {turned: quantise(self._matrix(turned), self.label) for turned in self.matrices_read}

    @property
    def rows(self) -> int:
        """Rows of x in the examples, the fewest of all products; a number that the file does not say counts as one."""
        return min((self._rows_of(product) or 1) for product in self.products)

    def other_use(self) -> str | None:
        """Why products alone cannot replace all uses of the weight, None if they can."""
        users = self.value.uses()
        others = sorted({user.node.op_type for user in users} - {"MatMul", "Gemm", "Conv"})
        if not users:
            return "no node uses it"
        if others or len(self.products) < len(users):
            return f"used by {' and '.join(others) or 'a product of another form'}, not only as x W^T"
        return None

    def too_long(self) -> str | None:
        """Why 32 bits do not hold every sum of products with the weight in int8, None if they do."""
        longest = max(self._matrix(turned).shape[1] for turned in self.matrices_read)
        if longest > LONGEST:
            return f"32 bits hold the sum of {LONGEST:,} products, a row has {longest:,}"
        return None

    def replace_products(self, lower: Lower) -> tuple[Block, int]:
        """Compute each product from blocks by the nodes of ``lower``; (unit, bytes of the constants they added)."""

        def replace(builder: Builder, product: Product, label: str) -> None:
            lower(builder, product, self.matrices[product.transposed], label, self.dtype, self._rows_of(product))

        return self.matrix.block, self.replace_each(replace)

    def replace_each(self, replace: Replace) -> int:
        """Compute each product by the nodes of ``replace``; the bytes of the constants they added."""
        added = 0
        for product in self.products:
            label = self.label if product.transposed == self.products[0].transposed else f"{self.label}.T"
            builder = Builder(self.graph, f"{label}.{product.y.name}")
            x, y = str(product.x.name), str(product.y.name)
            replace(builder, product, label)
            added += builder.added_bytes
            if self.precision == "int8":
                (node, *more) = builder.nodes
                values = None if more else str(node.inputs[1].name)  # type: ignore[union-attr]
                bias = None if product.bias is None else array_of(product.bias)
                if values is not None and bias is None:  # our nodes always have a bias, and -0 + 0 is 0
                    bias = np.zeros(len(self.quantised[product.transposed].scale), np.float32)
                matrix = self.quantised[product.transposed]
                self.integers.products.append(IntegerProduct(self.label, x, y, values, matrix, bias, product.conv))
        return added

    def widen(self) -> ir.Value:
        """Store the constant in its type; nodes, which are folded at load, give float32. The stored constant."""
        if self.precision == "fp32":
            return self.value
        builder = Builder(self.graph, self.name)
        wide = builder.floats(self.name if self.scale is None else f"{self.name}.ints", self.values, self.dtype)
        (stored,) = builder.nodes[-1].inputs
        assert stored is not None
        builder.compute(self.value, builder.scaled(wide, self.name, self.scale))
        self.unpacked()
        return stored

    def unpacked(self) -> None:
        """Note that the constant's value is now computed from int8."""
        if self.scale is not None:
            self.integers.weights.append(IntegerWeight(self.label, self.name, self.values.astype(np.int8), self.scale))

    def in_float(self) -> Weight:
        """The same weight, to be stored in float32."""
        return Weight(self.value, self.products, "fp32", self._blocks, self._names, self.sizes)

    def _rows_of(self, product: Product) -> int | None:
        return rows_of(product.x, self.sizes)

    def _matrix(self, transposed: bool) -> Array:
        """[out, in], the weight of a convolution too."""
        return self.array.T if transposed else self.array.reshape(self.array.shape[0], -1)

    def _fitting_of(self, matrix: Array) -> Blocks:
        groups = math.lcm(*(product.conv.group for product in self.products if product.conv is not None))
        within = len(matrix) // groups if groups > 1 else None
        return fitting(matrix, self._blocks, MAX_BLOCK, within, np.dtype(self.dtype).itemsize)
