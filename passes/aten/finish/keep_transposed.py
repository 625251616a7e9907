"""Keep activations between native products as the tiles that these compute on, in forward and backward.

    before: h = spmm(x, ...); y = relu(h); z = spmm(y, ...)
    after:  h = spmm(x, ..., widths=[0, 16]); y = relu(h); z = spmm(y, ..., widths=[16, 0])

The native kernels have the batch as the vector axis: each product turns its operand from rows [M, n] into tiles
[M / width, n, width], and its result back. Elementwise ops do the same to each element wherever the element lies, so
between products (c_fc, gelu, c_proj; a gradient on its way back through them; what is saved for it) both conversions
can go. Sums over rows (a bias' gradient) read tiles too, in another order; random ops draw the same numbers for other
elements. All else is bit for bit the same. A minimum cut proposes which values are tiles, see :mod:`.tile_layouts`; a
proposal is followed if it measures faster, see :mod:`topkast.runtime.planner.tiles`.

Tensors that come as rows are left to the products, which pack them tile by tile in the cache: an op that packs a tensor
for all its readers is a pass over memory, as slow as packing twice (measured).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from topkast.passes.aten.base import Pass
from topkast.passes.aten.nodes import aten, emit, topkast
from topkast.passes.aten.tile_layouts import KEEPS_ORDER, TILE_PRODUCTS, Layouts, assign, matrix_shape, sums_rows
from topkast.passes.aten.weight_call import WeightCall
from topkast.runtime.kernels.tiled_products import width
from topkast.runtime.planner import tiles

from .choose_kernel import problem


class KeepTransposed(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        products = {node for node in graph.nodes if node.target in TILE_PRODUCTS and self._takes_tiles(node)}
        if not products:
            return
        found = assign(graph, products, random=not torch._inductor.config.fallback_random)
        for region in found.regions():
            if self._pays(region):
                _Rewrite(graph, region).run()
                self.matches["values"] += len(region.values)
                self.matches["conversions saved"] += region.saved()

    def _takes_tiles(self, node: fx.Node) -> bool:
        """Whether a product can read and write tiles."""
        call = WeightCall.of(node)
        if call.options["impl"] != "native":
            return False  # choose_kernel says what runs, and why
        bias = call.options.get("bias")
        shapes = [matrix_shape(activation) for activation in call.activations]
        values = [activation.meta["val"] for activation in call.activations]
        why: str | None
        if None in shapes or any(value.dim() != 2 for value in values):
            why = "its activations are batched, strided or of symbolic size"
        elif values[0].dtype != torch.float32:
            why = f"its activations are {values[0].dtype}"
        elif bias is not None and bias.meta["val"].dim() != 1:
            why = "its bias is not one number a column"
        else:
            why = tiles.refusal(call.geometry, shapes[0][0])  # type: ignore[index]
        if why:
            self.refused(why, node)
        return not why

    def _pays(self, region: Layouts) -> bool:
        products = region.products()
        widths = {_width(node) for node in products}
        if len(widths) > 1:
            self.refused("the products around it take tiles of different widths", products[0])
            return False
        (width,) = widths
        problems = [replace(problem(node), widths=region.widths(node, width)) for node in products]
        conversions = [(*matrix_shape(node), width) for node in region.packed | region.unpacked]  # type: ignore[misc]
        if not tiles.pay(problems, conversions):
            self.refused("rows are faster there", products[0])
            return False
        return True


def _width(product: fx.Node) -> int:
    """How many rows of activations a tile of a product holds."""
    return width(WeightCall.of(product).geometry)


class _Rewrite:
    """Writes the nodes of a region again, on tiles."""

    def __init__(self, graph: fx.Graph, region: Layouts):
        self.graph, self.region = graph, region
        self.tiles: dict[fx.Node, fx.Node] = {}  # old node -> its value as tiles
        self.rows: dict[fx.Node, fx.Node] = {}  # old node -> its value as rows
        self.width = _width(region.products()[0])

    def run(self) -> None:
        old = self.region.values | {node for node, _ in self.region.slots}
        for node in [node for node in self.graph.nodes if node in old or node in self.region.packed]:
            if node in old:
                with self.graph.inserting_before(node):
                    self._node(node)
            if node in self.region.packed:
                self._pack(node)
        # Only now, because the loop above looks its nodes up by the old ones.
        for node, rows in self.rows.items():
            node.replace_all_uses_with(rows)
        # Dead code elimination would keep random ops.
        for node in reversed([node for node in self.graph.nodes if node in old]):
            self.graph.erase_node(node)

    def _node(self, node: fx.Node) -> None:
        new = self._on_tiles(node)
        if node not in self.region.values or sums_rows(node):
            self.rows[node] = new
            return
        self.tiles[node] = new
        if node in self.region.unpacked:
            rows = emit(self.graph, topkast.unpack.default, new, like=node)
            self.rows[node] = emit(self.graph, aten.view.default, rows, list(node.meta["val"].shape), like=node)

    def _pack(self, node: fx.Node) -> None:
        with self.graph.inserting_after(node):
            rows = emit(self.graph, aten.view.default, node, list(matrix_shape(node)), like=node)  # type: ignore[arg-type]
        with self.graph.inserting_after(rows):
            self.tiles[node] = emit(self.graph, topkast.pack.default, rows, self.width, like=node)

    def _on_tiles(self, node: fx.Node) -> fx.Node:
        """A node that computes on tiles what ``node`` computes on rows."""
        if node.target in TILE_PRODUCTS:
            return self._product(node)
        args: Any = node.args
        if node.target in KEEPS_ORDER:
            rows, *_ = args
            return self.tiles[rows]
        if sums_rows(node):
            rows, *_ = args
            total = emit(self.graph, node.target, self.tiles[rows], [0, 2], like=node, **node.kwargs)  # type: ignore[arg-type]
            return emit(self.graph, aten.view.default, total, list(node.meta["val"].shape), like=node)
        kwargs: Any = node.kwargs
        if node.target is aten.rand.default:
            m, n = matrix_shape(node)  # type: ignore[misc]
            args = ([m // self.width, n, self.width],)
        else:
            args, kwargs = fx.map_arg((args, dict(kwargs)), self._operand)
        return emit(self.graph, node.target, *args, like=node, **kwargs)  # type: ignore[arg-type]

    def _product(self, node: fx.Node) -> fx.Node:
        call, slots = WeightCall.of(node), self.region.slots
        operands = {
            name: self.tiles[operand] if (node, at) in slots else operand
            for at, (name, operand) in enumerate(call.operands.items())
        }
        options = {**call.options, "widths": list(self.region.widths(node, self.width))}
        return replace(call, operands=operands, options=options).write(self.graph, node)

    def _operand(self, node: fx.Node) -> fx.Node:
        """An operand of an elementwise op: tiles, or one number, or a number for every column."""
        if node in self.tiles:
            return self.tiles[node]
        value = node.meta["val"]
        shape = [value.numel(), 1] if value.numel() > 1 else [1] * min(value.dim(), 1)
        return emit(self.graph, aten.view.default, node, shape, like=node)
