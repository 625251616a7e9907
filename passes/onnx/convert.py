"""A dense ONNX model in, the same model with its weights stored in another format out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto

from topkast.passes.onnx.blocks import Array, Block, Blocks, digest, fitting

from .constant_products import Product, products
from .formats import block, compact, custom, sparse_initializer
from .formats import choose_format as choose
from .graph import Graph
from .metadata import SiteResult

FLOATS = {
    TensorProto.FLOAT: "float32",
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.DOUBLE: "float64",
}
FULL = 0.999  # a weight with fewer zeros than this leaves has none to speak of


@dataclass(frozen=True)
class Wanted:
    """What to write.

    Args:
        format: "dense", "custom", "block", "compact", "sparse_initializer" or "auto".
        half: whether sparse weights are stored as float16; their values must be such.
        blocks: (rows, columns) of the blocks the model was trained with.
        names: what to call a weight, by :func:`topkast.passes.onnx.blocks.digest` of its [out, in] matrix.
        sizes: dynamic dimensions in the examples, by name.
    """

    format: str
    half: bool = False
    blocks: Iterable[Block] = ((1, 1),)
    names: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)


def convert(model: onnx.ModelProto, wanted: Wanted) -> list[SiteResult]:
    """Change ``model``, which holds its weights itself, in place; how each of its weights is stored."""
    graph, sites, sparse = Graph(model), list[SiteResult](), list[onnx.SparseTensorProto]()
    by_weight: dict[str, list[Product]] = {}
    for product in products(graph):
        by_weight.setdefault(product.weight, []).append(product)
    for name, tensor in list(graph.constants.items()):
        if len(tensor.dims) < 2 or tensor.data_type not in FLOATS:
            continue
        if tensor.data_type == TensorProto.FLOAT:
            sites.append(_Weight(graph, wanted, name, by_weight.get(name, []), sparse).store())
        else:
            array, dims = graph.array(name), tuple(tensor.dims)
            density, size = np.count_nonzero(array) / max(1, array.size), array.nbytes
            why = f"it is {FLOATS[tensor.data_type]}; only float32 is stored another way"
            sites.append(SiteResult(name, "dense", why, dims, None, density, size, size))
    graph.finish()
    model.graph.sparse_initializer.extend(sparse)
    if any(site.format == "custom" for site in sites):
        custom.register(model)
    return sites


class _Weight:
    """One constant on its way into the file."""

    def __init__(
        self, graph: Graph, wanted: Wanted, name: str, users: list[Product], sparse: list[onnx.SparseTensorProto]
    ) -> None:
        self.graph, self.wanted, self.name, self.users, self.sparse = graph, wanted, name, users, sparse
        self.array: Array = graph.array(name)
        self.nonzeros = int(np.count_nonzero(self.array))
        self.half = wanted.half and bool((self.array.astype(np.float16).astype(np.float32) == self.array).all())
        self.label = name
        if users:
            self.label = wanted.names.get(digest(self._matrix(users[0].transposed)), name)

    def store(self) -> SiteResult:
        if self.nonzeros >= FULL * self.array.size:  # an empty one too
            return self._dense("it has no zeros")
        if self.wanted.format == "dense":
            return self._dense("as asked")
        if self.wanted.format in ("compact", "sparse_initializer"):
            return self._constant(self.wanted.format, "as asked")
        return self._products()

    def _dense(self, why: str) -> SiteResult:
        if self.half:
            self.graph.compute(self.name, [])
            self.graph.add_floats(self.name, self.array, True)
        return self._result("dense", why, None, self.array.nbytes // (2 if self.half else 1))

    def _constant(self, format: str, why: str) -> SiteResult:
        """Stored another way, but dense again once it is loaded."""
        if format == "sparse_initializer":
            size, unit = sparse_initializer.size(self.nonzeros, self.half), (1, 1)
        else:
            weight = self._fitting(self._matrix(False))
            size, unit = compact.size(weight, self.half), weight.block
        if size >= self.array.nbytes // (2 if self.half else 1):
            return self._dense(f'{why}; as "{format}" it would take {size:,} bytes, no less')
        if format == "sparse_initializer":
            self.sparse.append(sparse_initializer.lower(self.graph, self.name, self.half))
        else:
            compact.lower(self.graph, self.name, weight, self.half)
        return self._result(format, why, unit, size)

    def _products(self) -> SiteResult:
        users = self.graph.users.get(self.name, [])
        others = sorted({user.op_type for user in users} - {"MatMul", "Gemm", "Conv"})
        if not users:
            return self._left("no node uses it")
        if others or len(self.users) < len(users):
            return self._left(f"used by {' and '.join(others) or 'a product of another form'}, not only as x W^T")
        # A tied weight may be used both ways round.
        ways = {
            transposed: self._fitting(self._matrix(transposed))
            for transposed in dict.fromkeys(product.transposed for product in self.users)
        }
        weight = next(iter(ways.values()))
        rows = {product.y: self.graph.rows(product.x, self.wanted.sizes) for product in self.users}
        format, why = self._choice(ways, min((count or 1) for count in rows.values()))
        if format == "dense":
            return self._left(why)
        before = self.graph.added_bytes()
        for product in self.users:
            matrix, turned = ways[product.transposed], product.transposed != self.users[0].transposed
            given = self.graph, product, matrix, f"{self.label}.T" if turned else self.label, self.half
            nodes = custom.lower(*given) if format == "custom" else block.lower(*given, rows[product.y])
            self.graph.replace(product.nodes, nodes)
        return self._result(format, why, weight.block, self.graph.added_bytes() - before)

    def _choice(self, ways: dict[bool, Blocks], rows: int) -> tuple[str, str]:
        """(format, why) of a weight that only products use, whose x has so many rows."""
        format, why, weight = self.wanted.format, "as asked", next(iter(ways.values()))
        conv, refused = self.users[0].conv, next(filter(None, map(custom.refusal, self.users)), None)
        if format == "auto" and conv is not None:
            y = [self.graph.dims(product.y, self.wanted.sizes) for product in self.users]
            format, why = choose.conv_format_of(weight, conv, y)
        elif format == "auto":
            format, why = choose.format_of(weight, rows)
        if format == "block":
            refused = next(filter(None, map(block.refusal, ways.values())), None)
            if conv is not None:
                refused = "standard operators have no sparse convolution that is faster than a dense one"
        return (format, why) if refused is None else ("dense", refused)

    def _left(self, why: str) -> SiteResult:
        """Where no faster way fits: dense, and in "auto" at least small."""
        return self._constant("compact", why) if self.wanted.format == "auto" else self._dense(why)

    def _matrix(self, transposed: bool) -> Array:
        """[out, in], the weight of a convolution too."""
        return self.array.T if transposed else self.array.reshape(self.array.shape[0], -1)

    def _fitting(self, matrix: Array) -> Blocks:
        groups = math.lcm(*(product.conv.group for product in self.users if product.conv is not None))
        within = len(matrix) // groups if groups > 1 else None
        return fitting(matrix, self.wanted.blocks, custom.MAX_BLOCK, within)

    def _result(self, format: str, why: str, unit: Block | None, size: int) -> SiteResult:
        dims = tuple(self.array.shape)
        shape = dims[::-1] if self.users and self.users[0].transposed else dims
        return SiteResult(
            self.label, format, why, shape, unit, self.nonzeros / max(1, self.array.size), size, self.array.nbytes
        )
