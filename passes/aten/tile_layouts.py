"""Which activations of a graph lie as rows and which as tiles: the assignment with the fewest conversions.

Every value that native products make, and every elementwise op on such, can be either. It is a minimum cut: what a
conversion moves is the capacity between two layouts. A product converts its own operands and result while a tile is in
the cache (counted once); a conversion elsewhere is a pass over memory (counted twice), made once for all its readers.
Rows win a tie.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from dataclasses import dataclass, field

import networkx
import torch
from torch import Tensor, fx

from .nodes import RESHAPES, aten, topkast

# A product's activations: positions of those it reads; whether its result is one.
PRODUCTS: dict[object, int] = {topkast.spmm.default: 1, topkast.spmm_t.default: 1, topkast.sddmm.default: 2}
SAME = {*RESHAPES, aten.alias.default, aten.detach.default}
_RANDOM = {aten.rand.default, aten.native_dropout.default}

Slot = tuple[fx.Node, int]  # a product and the position of an operand


def tensor(node: fx.Node) -> Tensor | None:
    """The value of a node, of the first output where it has several."""
    value = node.meta.get("val")
    value = value[0] if isinstance(value, (tuple, list)) and value else value
    return value if isinstance(value, Tensor) else None


def matrix(node: fx.Node) -> tuple[int, int] | None:
    """(m, n) of activations [..., n] of known size whose rows lie one after the other."""
    value = tensor(node)
    if value is None or value.dim() < 2 or not all(isinstance(size, int) for size in value.shape):
        return None
    if not value.is_contiguous() or value.numel() == 0:
        return None
    return value.numel() // value.shape[-1], value.shape[-1]


def by_column(node: fx.Node, n: int) -> bool:
    """Whether a value is one number, or one for every column."""
    value = tensor(node)
    if value is None or not value.is_contiguous():
        return False
    return value.numel() == 1 or (value.dim() > 0 and value.shape[-1] == n == value.numel())


def operands(node: fx.Node, random: bool) -> list[fx.Node] | None:
    """The activations that an op reads, if it does the same to each element wherever that lies; else None.

    Args:
        node: any node.
        random: whether random ops may draw in another order.
    """
    shape = matrix(node)
    if node.op != "call_function" or shape is None:
        return None
    read, target = node.all_input_nodes, node.target
    if target in SAME or (target is operator.getitem and read[0].target is aten.native_dropout.default):
        return read if matrix(read[0]) == shape else None
    if target in _RANDOM:
        allowed = random and (target is aten.rand.default or node.args[2] is True)
        return read if allowed and all(matrix(one) == shape for one in read) else None
    if torch.Tag.pointwise not in getattr(target, "tags", ()) or isinstance(node.meta["val"], (tuple, list)):
        return None
    alike = [one for one in read if (t := tensor(one)) is not None and t.shape == node.meta["val"].shape]
    rest = [one for one in read if one not in alike]
    fits = all(matrix(one) == shape for one in alike) and all(by_column(one, shape[1]) for one in rest)
    return alike if alike and fits else None


def sums_rows(node: fx.Node) -> bool:
    """Whether a node sums activations over all their rows, as a bias' gradient does."""
    if node.target is not aten.sum.dim_IntList or matrix(node.all_input_nodes[0]) is None:
        return False
    dims = node.all_input_nodes[0].meta["val"].dim()
    return sorted(d % dims for d in node.args[1]) == list(range(dims - 1))  # type: ignore[union-attr]


@dataclass
class Layouts:
    """What lies as tiles.

    Args:
        values: nodes whose result does (sums over rows: which read tiles).
        slots: operands that products read as tiles.
        packed, unpacked: values that are converted to tiles, to rows, by an op of their own.
    """

    values: set[fx.Node] = field(default_factory=set)
    slots: set[Slot] = field(default_factory=set)
    packed: set[fx.Node] = field(default_factory=set)
    unpacked: set[fx.Node] = field(default_factory=set)

    def products(self) -> list[fx.Node]:
        """Those with an operand or a result in tiles, in no order."""
        return list({node for node in self.values if node.target in PRODUCTS} | {node for node, _ in self.slots})

    def widths(self, product: fx.Node, width: int) -> tuple[int, int]:
        """Of a product's two activations: ``width`` where they are tiles, else 0."""
        first, second = (product, 0) in self.slots, (product, 1) in self.slots or product in self.values
        return width * first, width * second

    def saved(self) -> int:
        """How many conversions fewer there are than with rows everywhere."""
        results = sum(node.target in PRODUCTS for node in self.values)
        return len(self.slots) + results - len(self.packed) - len(self.unpacked)

    def regions(self) -> list[Layouts]:
        """The parts that no tile connects."""
        graph = networkx.Graph()
        graph.add_nodes_from([*self.values, *self.packed, *(node for node, _ in self.slots)])
        for node in self.values:
            graph.add_edges_from((one, node) for one in node.all_input_nodes if one in self.values | self.packed)
        graph.add_edges_from((node.args[position], node) for node, position in self.slots)
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
        random: as :func:`operands` takes it.
    """
    # Who reads what: a value, a slot, or what takes rows only.
    readers: dict[fx.Node, list[fx.Node | Slot | str]] = defaultdict(list)
    cut = networkx.DiGraph()  # an arc costs its capacity if it leads from rows to tiles
    cut.add_nodes_from(["rows", "tiles"])
    values: set[fx.Node] = set()
    for node in graph.nodes:
        if node in products:
            count = PRODUCTS[node.target]
            for slot in [(node, position) for position in range(count)]:
                readers[node.args[slot[1]]].append(slot)
                cut.add_edge(slot, "tiles", capacity=_size(node.args[slot[1]]))
            for other in node.all_input_nodes:
                if other not in node.args[:count]:
                    readers[other].append("rows")
            if count == 1:
                values.add(node)
                cut.add_edge(node, "tiles", capacity=_size(node))
        elif (alike := operands(node, random)) is not None:
            values.add(node)
            for one in alike:
                readers[one].append(node)
        else:
            for one in node.all_input_nodes:
                readers[one].append(node if sums_rows(node) else "rows")
    for one, who in readers.items():
        if all(reader == "rows" for reader in who) and one not in values:
            continue
        here: fx.Node | str = one if one in values else "rows"
        value = one.meta.get("val")
        # Ops convert float32 only; masks and the like may be made in either layout, and stay in it.
        price = {"capacity": 2 * _size(one)} if getattr(value, "dtype", None) == torch.float32 else {}
        cut.add_edge(here, ("pack", one), **price)
        cut.add_edge(("unpack", one), here, **price)
        for reader in who:
            cut.add_edge(("pack", one), reader)
            cut.add_edge(reader, ("unpack", one))
    _, (_, tiles) = networkx.minimum_cut(cut, "rows", "tiles")
    return Layouts(
        {node for node in graph.nodes if node in tiles},
        {(node, at) for node in products for at in range(PRODUCTS[node.target]) if (node, at) in tiles},
        {one for one, who in readers.items() if one not in tiles and any(reader in tiles for reader in who)},
        {one for one in values if one in tiles and any(reader not in tiles for reader in readers[one])},
    )


def _size(node: fx.Node) -> int:
    value = tensor(node)
    assert value is not None
    return value.numel()
