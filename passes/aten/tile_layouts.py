"""Which activations of a graph lie as rows and which as tiles: the assignment with the fewest conversions.

Every result of a native product, and of an elementwise op on such results, can be either. The assignment is a minimum
cut: the capacity between two layouts is the number of elements that a conversion moves. A product converts its own
operands and result while a tile is in the cache (counted once); a conversion elsewhere is a pass over memory (counted
twice), made once for all its readers. Rows win a tie.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import networkx
import torch
from torch import Tensor, fx

from .moves import RESHAPES
from .nodes import aten, topkast
from .weight_call import WeightCall

TILE_PRODUCTS = {topkast.spmm.default, topkast.spmm_t.default, topkast.sddmm.default}
KEEPS_ORDER = {*RESHAPES, aten.alias.default, aten.detach.default}  # ops that leave each element at its place in memory
_RANDOM = {aten.rand.default, aten.native_dropout.default}

Slot = tuple[fx.Node, int]  # a product and the position of one of its activations


def value_of(node: fx.Node) -> Tensor | None:
    """The value of a node, or of its first output if it has several."""
    value = node.meta.get("val")
    value = value[0] if isinstance(value, (tuple, list)) and value else value
    return value if isinstance(value, Tensor) else None


def matrix_shape(node: fx.Node) -> tuple[int, int] | None:
    """(m, n) of activations [..., n] of known size whose rows lie one after the other."""
    value = value_of(node)
    if value is None or value.dim() < 2 or not all(isinstance(size, int) for size in value.shape):
        return None
    if not value.is_contiguous() or value.numel() == 0:
        return None
    return value.numel() // value.shape[-1], value.shape[-1]


def is_by_column(node: fx.Node, n: int) -> bool:
    """Whether a value is one number, or one for every column."""
    value = value_of(node)
    if value is None or not value.is_contiguous():
        return False
    return value.numel() == 1 or (value.dim() > 0 and value.shape[-1] == n == value.numel())


def activations_read(node: fx.Node, random: bool) -> list[fx.Node] | None:
    """The activations that an op reads, if it does the same to each element wherever that lies; else None.

    Args:
        node: any node.
        random: whether random ops may draw in another order.
    """
    shape = matrix_shape(node)
    if node.op != "call_function" or shape is None:
        return None
    read, target = node.all_input_nodes, node.target
    if target in KEEPS_ORDER or (target is operator.getitem and read[0].target is aten.native_dropout.default):
        return read if matrix_shape(read[0]) == shape else None
    if target in _RANDOM:
        allowed = random and (target is aten.rand.default or node.args[2] is True)
        return read if allowed and all(matrix_shape(other) == shape for other in read) else None
    if torch.Tag.pointwise not in getattr(target, "tags", ()) or isinstance(node.meta["val"], (tuple, list)):
        return None
    alike = [other for other in read if (t := value_of(other)) is not None and t.shape == node.meta["val"].shape]
    rest = [other for other in read if other not in alike]
    fits = all(matrix_shape(other) == shape for other in alike) and all(is_by_column(o, shape[1]) for o in rest)
    return alike if alike and fits else None


def sums_rows(node: fx.Node) -> bool:
    """Whether a node sums activations over all their rows, as a bias' gradient does."""
    if node.target is not aten.sum.dim_IntList:
        return False
    args: Any = node.args
    summed, dims, *_ = args
    if matrix_shape(summed) is None:
        return False
    count = summed.meta["val"].dim()
    return sorted(d % count for d in dims) == list(range(count - 1))


@dataclass
class Layouts:
    """The activations that lie as tiles.

    Args:
        values: nodes whose result lies as tiles, and sums over rows that read tiles.
        slots: activations that products read as tiles.
        packed, unpacked: values that an op of its own converts to tiles, to rows.
    """

    values: set[fx.Node] = field(default_factory=set)
    slots: set[Slot] = field(default_factory=set)
    packed: set[fx.Node] = field(default_factory=set)
    unpacked: set[fx.Node] = field(default_factory=set)

    def products(self) -> list[fx.Node]:
        """The products with an operand or a result in tiles, in no order."""
        return list({node for node in self.values if node.target in TILE_PRODUCTS} | {node for node, _ in self.slots})

    def widths(self, product: fx.Node, width: int) -> tuple[int, int]:
        """For each of a product's two activations ``width`` if it lies as tiles, else 0."""
        first, second = (product, 0) in self.slots, (product, 1) in self.slots or product in self.values
        return width * first, width * second

    def saved(self) -> int:
        """How many conversions fewer there are than with rows everywhere."""
        results = sum(node.target in TILE_PRODUCTS for node in self.values)
        return len(self.slots) + results - len(self.packed) - len(self.unpacked)

    def regions(self) -> list[Layouts]:
        """The parts that no tile connects."""
        graph = networkx.Graph()
        graph.add_nodes_from([*self.values, *self.packed, *(node for node, _ in self.slots)])
        for node in self.values:
            graph.add_edges_from((read, node) for read in node.all_input_nodes if read in self.values | self.packed)
        graph.add_edges_from((WeightCall.of(node).activations[position], node) for node, position in self.slots)
        return [
            Layouts(
                self.values & part,
                {slot for slot in self.slots if slot[0] in part},
                self.packed & part,
                self.unpacked & part,
            )
            for part in networkx.connected_components(graph)
        ]


def assign(graph: fx.Graph, products: set[fx.Node], random: bool) -> Layouts:
    """Rows or tiles for every activation.

    Args:
        graph: of ATen ops and products.
        products: the products that can run on tiles.
        random: as :func:`activations_read` takes it.
    """
    # The readers of each value: another value, a slot, or "rows" for an op that takes rows only.
    readers: dict[fx.Node, list[fx.Node | Slot | str]] = defaultdict(list)
    cut = networkx.DiGraph()  # an arc costs its capacity if it leads from rows to tiles
    cut.add_nodes_from(["rows", "tiles"])
    values: set[fx.Node] = set()
    for node in graph.nodes:
        if node in products:
            activations = WeightCall.of(node).activations
            for position, activation in enumerate(activations):
                readers[activation].append((node, position))
                cut.add_edge((node, position), "tiles", capacity=_size(activation))
            for other in node.all_input_nodes:
                if other not in activations:
                    readers[other].append("rows")
            if node.target is not topkast.sddmm.default:  # whose result is no activation
                values.add(node)
                cut.add_edge(node, "tiles", capacity=_size(node))
        elif (alike := activations_read(node, random)) is not None:
            values.add(node)
            for other in alike:
                readers[other].append(node)
        else:
            for other in node.all_input_nodes:
                readers[other].append(node if sums_rows(node) else "rows")
    for node, reading in readers.items():
        if all(reader == "rows" for reader in reading) and node not in values:
            continue
        layout: fx.Node | str = node if node in values else "rows"
        value = node.meta.get("val")
        # Ops convert float32 only; masks and the like may be made in either layout, and stay in it.
        price = {"capacity": 2 * _size(node)} if getattr(value, "dtype", None) == torch.float32 else {}
        cut.add_edge(layout, ("pack", node), **price)
        cut.add_edge(("unpack", node), layout, **price)
        for reader in reading:
            cut.add_edge(("pack", node), reader)
            cut.add_edge(reader, ("unpack", node))
    _, (_, tiles) = networkx.minimum_cut(cut, "rows", "tiles")
    slots = {(node, at) for node in products for at, _ in enumerate(WeightCall.of(node).activations)}
    return Layouts(
        {node for node in graph.nodes if node in tiles},
        {slot for slot in slots if slot in tiles},
        {node for node, reading in readers.items() if node not in tiles and any(r in tiles for r in reading)},
        {node for node in values if node in tiles and any(reader not in tiles for reader in readers[node])},
    )


def _size(node: fx.Node) -> int:
    value = value_of(node)
    assert value is not None
    return value.numel()
