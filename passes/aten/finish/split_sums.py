"""Sum over many rows in two steps: groups of rows side by side, then the groups.

before: db = sum(dy, [0])                     dy: [2048, n]
after:  db = sum(sum(view(dy, [256, 8, n]), [1]), [0])

Inductor sums column by column, down all rows: it reads a line of memory from each row in turn, and the processor does
not foresee the next one. A bias' gradient of 2048 x 4096 numbers takes 10.2 ms in float32 and 4.3 in bfloat16; in two
steps 2.1 and 1.4. Tiles of 32 or 64 rows are summed one by one first: 1.9 ms for 5.2 and 2.8. All steps sum in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from topkast.passes.aten.base import Pass
from topkast.passes.aten.nodes import aten, emit
from topkast.passes.aten.tile_layouts import matrix_shape, sums_rows

GROUP = 8  # rows of a group
_LEAST = 1 << 17  # numbers: the sum of fewer stays in the second-level cache


class SplitSums(Pass):
    def rewrite(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.target is not aten.sum.dim_IntList:
                continue
            args: Any = node.args
            rows, value = args[0], args[0].meta["val"]
            if value.device.type != "cpu" or not value.is_floating_point() or (shape := matrix_shape(rows)) is None:
                continue
            if shape[0] * shape[1] < _LEAST:
                continue
            if sums_rows(node):
                if shape[0] % GROUP == 0 and shape[0] >= GROUP**2:
                    self._split(graph, node, rows, [shape[0] // GROUP, GROUP, shape[1]], 1)
            elif value.dim() == 3 and list(args[1]) == [0, 2] and len(args) == 2:  # the rows of tiles
                self._split(graph, node, rows, list(value.shape), 2)

    def _split(self, graph: fx.Graph, node: fx.Node, rows: fx.Node, shape: list[int], first: int) -> None:
        """Sum ``rows``, seen in three dimensions, over the dimension ``first`` and then over the outermost."""
        dtype = node.meta["val"].dtype
        wide = torch.promote_types(dtype, torch.float32)
        with graph.inserting_before(node):
            groups = emit(graph, aten.view.default, rows, shape, like=node)
            parts = emit(graph, aten.sum.dim_IntList, groups, [first], like=node, dtype=wide)
            total = emit(graph, aten.sum.dim_IntList, parts, [0], like=node)
            if dtype != wide:
                total = emit(graph, torch.ops.prims.convert_element_type.default, total, dtype, like=node)
            new = emit(graph, aten.view.default, total, list(node.meta["val"].shape), like=node)
        self.replace(node, new, "sum over rows")
