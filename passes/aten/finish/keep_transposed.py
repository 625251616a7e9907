"""Keep activations between native products as the tiles that these compute on, in forward and backward.

The native kernels have the batch as the vector axis: each product turns its operand from rows [M, n] into tiles
[M / width, n, width], and its result back. Elementwise ops do not care, so between products (c_fc, gelu, c_proj; a
gradient on its way back through them; what is saved for it) both conversions can go. Sums over rows (a bias' gradient)
read tiles too, in another order; random ops draw the same numbers for other elements. All else is bit for bit the
same. Which values are tiles is a minimum cut, see :mod:`.layouts`; what it proposes is taken where it measures faster,
see :mod:`topkast.runtime.planner.tiles`.

Tensors that come as rows are left to the products, which pack them tile by tile in the cache: an op that packs one for
all its readers is a pass over memory, as slow as packing twice (measured).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from topkast.passes.aten.base import Pass
from topkast.passes.aten.nodes import aten, emit, geometry_of, named, topkast
from topkast.passes.aten.tile_layouts import PRODUCTS, SAME, Layouts, assign, matrix, sums_rows
from topkast.runtime.native import products as native
from topkast.runtime.planner import tiles

from .choose_kernel import problem


class KeepTransposed(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        products = {node for node in graph.nodes if node.target in PRODUCTS and self._can(node)}
        if not products:
            return
        found = assign(graph, products, random=not torch._inductor.config.fallback_random)
        for region in found.regions():
            if self._pays(region):
                _Rewrite(graph, region).run()
                self.matches["values"] += len(region.values)
                self.matches["conversions saved"] += region.saved()

    def _can(self, node: fx.Node) -> bool:
        """Whether a product can take and give tiles."""
        found = named(node)
        if found["impl"] != "native":
            return False  # choose_kernel says what runs, and why
        operands, bias = node.args[: PRODUCTS[node.target]], found.get("bias")
        shapes = [matrix(one) for one in operands]  # type: ignore[arg-type]
        values = [one.meta["val"] for one in operands]  # type: ignore[union-attr]
        why: str | None
        if None in shapes or any(value.dim() != 2 for value in values):
            why = "its activations are batched, strided or of symbolic size"
        elif values[0].dtype != torch.float32:
            why = f"its activations are {values[0].dtype}"
        elif bias is not None and bias.meta["val"].dim() != 1:
            why = "its bias is not one number a column"
        else:
            why = tiles.refusal(geometry_of(node), shapes[0][0])  # type: ignore[index]
        if why:
            self.refused(why, node)
        return not why

    def _pays(self, region: Layouts) -> bool:
        products = region.products()
        widths = {native.width(geometry_of(node)) for node in products}
        if len(widths) > 1:
            self.refused("the products around it take tiles of different widths", products[0])
            return False
        (width,) = widths
        problems = [replace(problem(node), widths=region.widths(node, width)) for node in products]
        conversions = [(*matrix(node), width) for node in region.packed | region.unpacked]  # type: ignore[misc]
        if not tiles.pay(problems, conversions):
            self.refused("rows are faster there", products[0])
            return False
        return True


class _Rewrite:
    """Makes a region's nodes anew, on tiles."""

    def __init__(self, graph: fx.Graph, region: Layouts):
        self.graph, self.region = graph, region
        self.tiles: dict[fx.Node, fx.Node] = {}  # old node -> its value as tiles
        self.rows: dict[fx.Node, fx.Node] = {}  # old node -> its value as rows
        self.width = native.width(geometry_of(region.products()[0]))

    def run(self) -> None:
        old = self.region.values | {node for node, _ in self.region.slots}
        for node in [node for node in self.graph.nodes if node in old or node in self.region.packed]:
            if node in old:
                with self.graph.inserting_before(node):
                    self._node(node)
            if node in self.region.packed:
                self._pack(node)
        # Only now, as what was made above is looked up by the old nodes.
        for node, rows in self.rows.items():
            node.replace_all_uses_with(rows)
        # Not left to the removal of dead code, which spares random ops.
        for node in reversed([node for node in self.graph.nodes if node in old]):
            self.graph.erase_node(node)

    def _node(self, node: fx.Node) -> None:
        new = self._again(node)
        if node not in self.region.values or sums_rows(node):
            self.rows[node] = new
            return
        self.tiles[node] = new
        if node in self.region.unpacked:
            rows = emit(self.graph, topkast.unpack.default, new, like=node)
            self.rows[node] = emit(self.graph, aten.view.default, rows, list(node.meta["val"].shape), like=node)

    def _pack(self, node: fx.Node) -> None:
        with self.graph.inserting_after(node):
            rows = emit(self.graph, aten.view.default, node, list(matrix(node)), like=node)  # type: ignore[arg-type]
        with self.graph.inserting_after(rows):
            self.tiles[node] = emit(self.graph, topkast.pack.default, rows, self.width, like=node)

    def _again(self, node: fx.Node) -> fx.Node:
        target, kwargs = node.target, dict(node.kwargs)
        args: tuple[object, ...]
        if target in PRODUCTS:
            slots = self.region.slots
            args = tuple(self.tiles[one] if (node, at) in slots else one for at, one in enumerate(node.args))  # type: ignore[index]
            kwargs["widths"] = list(self.region.widths(node, self.width))
        elif target in SAME:
            return self.tiles[node.args[0]]  # type: ignore[index]
        elif sums_rows(node):
            total = emit(self.graph, target, self.tiles[node.args[0]], [0, 2], like=node, **kwargs)  # type: ignore[arg-type, index]
            return emit(self.graph, aten.view.default, total, list(node.meta["val"].shape), like=node)
        elif target is aten.rand.default:
            m, n = matrix(node)  # type: ignore[misc]
            args = ([m // self.width, n, self.width],)
        else:
            args = fx.map_arg(node.args, self._operand)
            kwargs = fx.map_arg(kwargs, self._operand)
        return emit(self.graph, target, *args, like=node, **kwargs)  # type: ignore[arg-type]

    def _operand(self, node: fx.Node) -> fx.Node:
        """Of an elementwise op: tiles, or one number, or one for every column."""
        if node in self.tiles:
            return self.tiles[node]
        value = node.meta["val"]
        shape = [value.numel(), 1] if value.numel() > 1 else [1] * min(value.dim(), 1)
        return emit(self.graph, aten.view.default, node, shape, like=node)
