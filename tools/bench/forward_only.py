"""The forward product alone, of one row to many: what inference pays."""

from __future__ import annotations

import argparse
from typing import Any

from rich.table import Table

from topkast.tools.common.pairs import show
from topkast.tools.common.results import progress

from .layer import block_name, measure_layer, random_layer

SIZE, SPARSITY = 4096, 0.9
ROWS = [1, 8, 32, 256]
BLOCKS = [(1, 1), (4, 1), (16, 1), (32, 32)]


def measure_forward(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Y = X W^T with W [4096, 4096] at 90 %."""
    size, rows = (64, ROWS[:2]) if args.quick else (SIZE, ROWS)
    cells = []
    with progress() as bar:
        task = bar.add_task("forward only", total=len(rows) * len(BLOCKS) * len(args.threads))
        for m in rows:
            for block in BLOCKS:
                layer = random_layer((m, size, size), block, SPARSITY, SPARSITY, args.device)
                impls = layer.impls(args.impl)
                forward = {"spmm": impls["spmm"]} if impls else None
                repeats = args.repeats * max(1, 32 // m)  # few rows are short work: one pair says little
                for threads in args.threads:
                    found = measure_layer(layer, forward, repeats, threads)
                    cells.append({"shape": (m, size, size), "sparsity": SPARSITY, "bound": 1 - SPARSITY, **found})
                    bar.update(task, advance=1, description=f"forward only, M={m} {block_name(block)}")
    return cells


def forward_table(cells: list[dict[str, Any]]) -> Table:
    table = Table(title=f"forward only at {SPARSITY:.0%}, time sparse / dense, median and quartiles")
    for head in ("threads", "M, K, N", "bound", *map(block_name, BLOCKS)):
        table.add_column(head, justify="right")
    for threads, shape in sorted({(cell["threads"], cell["shape"]) for cell in cells}):
        row = [cell for cell in cells if (cell["threads"], cell["shape"]) == (threads, shape)]
        figures = [show(cell["ratio"]) if cell["impl"] else "does not fit" for cell in row]
        table.add_row(str(threads), ", ".join(map(str, shape)), f"{row[0]['bound']:.2f}", *figures)
    return table
