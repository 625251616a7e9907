"""A constant of the graph that is about to be stored in a format, with the products that read it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

import numpy as np
import onnx_ir as ir

from topkast.passes.onnx.blocks import MAX_BLOCK, Array, Block, Blocks, digest, fitting
from topkast.passes.onnx.constant_products import Convolution, Product
from topkast.passes.onnx.graph import Builder, array_of, rows_of

# (new nodes, product to replace by them, matrix, label of its constants, whether as float16, rows of x)
Lower = Callable[[Builder, Product, Blocks, str, bool, int | None], None]


class Weight:
    """One float32 constant.

    Args:
        value: in the graph.
        products: those that read it.
        half: whether to store it as float16, if all its values are such.
        blocks: (rows, columns) of the blocks the model was trained with.
        names: what to call a weight, by :func:`topkast.passes.onnx.blocks.digest` of its [out, in] matrix.
        sizes: dynamic dimensions in the examples, by name.
    """

    def __init__(
        self,
        value: ir.Value,
        products: list[Product],
        half: bool,
        blocks: Iterable[Block],
        names: Mapping[str, str],
        sizes: Mapping[str, int],
    ) -> None:
        assert value.graph is not None and value.name is not None
        self.value, self.name, self.graph, self.products, self.sizes = value, value.name, value.graph, products, sizes
        self.array = array_of(value)
        self.nonzeros = int(np.count_nonzero(self.array))
        self.half = half and bool((self.array.astype(np.float16).astype(np.float32) == self.array).all())
        self._blocks = blocks
        self.label = self.name
        if products:
            self.label = names.get(digest(self._matrix(products[0].transposed)), self.name)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the weight if it is stored dense."""
        return self.array.nbytes // (2 if self.half else 1)

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
        return {turned: self._fitting(turned) for turned in dict.fromkeys(p.transposed for p in self.products)}

    @property
    def matrix(self) -> Blocks:
        """[out, in], as the first product reads the weight."""
        return next(iter(self.matrices.values()))

    @cached_property
    def as_it_lies(self) -> Blocks:
        """The constant as a matrix, not turned."""
        return self._fitting(False)

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

    def replace_products(self, lower: Lower) -> tuple[Block, int]:
        """Compute each product by the nodes of ``lower``; (unit, bytes of the constants they added)."""
        added = 0
        for product in self.products:
            label = self.label if product.transposed == self.products[0].transposed else f"{self.label}.T"
            builder = Builder(self.graph, f"{label}.{product.y.name}")
            lower(builder, product, self.matrices[product.transposed], label, self.half, self._rows_of(product))
            added += builder.added_bytes
        return self.matrix.block, added

    def _rows_of(self, product: Product) -> int | None:
        return rows_of(product.x, self.sizes)

    def _matrix(self, transposed: bool) -> Array:
        """[out, in], the weight of a convolution too."""
        return self.array.T if transposed else self.array.reshape(self.array.shape[0], -1)

    def _fitting(self, transposed: bool) -> Blocks:
        matrix = self._matrix(transposed)
        groups = math.lcm(*(product.conv.group for product in self.products if product.conv is not None))
        within = len(matrix) // groups if groups > 1 else None
        return fitting(matrix, self._blocks, MAX_BLOCK, within)
