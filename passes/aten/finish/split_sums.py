"""Sum over many rows in two steps: groups of rows side by side, then the groups.

before: db = sum(dy, [0])                     dy: [2048, n]
after:  db = sum(sum(view(dy, [256, 8, n]), [1]), [0])

Inductor sums column by column, down all rows: it reads a line of memory from each row in turn, and the processor does
not foresee the next one. A bias' gradient of 2048 x 4096 numbers takes 10.2 ms in float32 and 4.3 in bfloat16; in two
steps 2.1 and 1.4. Both steps sum in float32.
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
            if not sums_rows(node):
                continue
            args: Any = node.args
            rows = args[0]
            m, n = matrix_shape(rows) or (0, 0)
            value = rows.meta["val"]
            if value.device.type != "cpu" or not value.is_floating_point():
                continue
            if m * n < _LEAST or m % GROUP or m < GROUP**2:
                continue
            wide = torch.promote_types(value.dtype, torch.float32)
            with graph.inserting_before(node):
                groups = emit(graph, aten.view.default, rows, [m // GROUP, GROUP, n], like=node)
                parts = emit(graph, aten.sum.dim_IntList, groups, [1], like=node, dtype=wide)
                total = emit(graph, aten.sum.dim_IntList, parts, [0], like=node)
                if (dtype := node.meta["val"].dtype) != wide:
                    total = emit(graph, torch.ops.prims.convert_element_type.default, total, dtype, like=node)
                new = emit(graph, aten.view.default, total, list(node.meta["val"].shape), like=node)
            self.replace(node, new, "sum over rows")
