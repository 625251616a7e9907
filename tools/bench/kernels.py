"""The products of a linear layer against dense ones: one table for a training step, and two more beside it."""

from __future__ import annotations

import argparse
from typing import Any

from rich.table import Table

from topkast.tools.common.arguments import add_device
from topkast.tools.common.pairs import add_timing, bound, geomean_spread
from topkast.tools.common.results import CONSOLE, progress

from .forward_only import forward_table, measure_forward
from .layer import PRODUCTS, block_name, impl_names, measure_layer, random_layer
from .peers import measure_peers, peer_table

SHAPES = [(256, 1024, 4096), (512, 768, 3072), (2048, 1024, 1024), (64, 4096, 4096)]  # M, K, N
SPARSITIES = [(0.8, 0.5), (0.9, 0.8), (0.95, 0.9), (0.98, 0.95)]
BLOCKS = [(1, 1), (4, 1), (8, 1), (16, 1), (16, 16), (32, 32), (64, 64)]
QUICK_SHAPES = [(8, 64, 96), (4, 96, 64)]

Cell = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_timing(parser, repeats=15)
    parser.add_argument("--impl", choices=impl_names(), help="kernel; unset: the first one that fits a product")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="which of the tables")
    add_device(parser)


def run(args: argparse.Namespace) -> dict[str, object]:
    found: dict[str, Any] = {}
    # The kernels of other packages are for the CPU only.
    for name in args.tables if args.device.type == "cpu" else [one for one in args.tables if one in ON_GPU]:
        measure_table, tables = TABLES[name]
        found[name] = measure_table(args)
        if name == "step":
            found["geomean"] = summarise(found[name])
        for table in tables(found[name]):
            CONSOLE.print(table)
    return found


def measure_steps(args: argparse.Namespace) -> list[Cell]:
    """Forward, input gradient and weight gradient of every shape, sparsity and block."""
    shapes, blocks = (QUICK_SHAPES, BLOCKS[::4]) if args.quick else (SHAPES, BLOCKS)
    cells = []
    with progress() as bar:
        task = bar.add_task("steps of a layer", total=len(shapes) * len(SPARSITIES) * len(blocks) * len(args.threads))
        for shape in shapes:
            for fwd, bwd in SPARSITIES:
                for block in blocks:
                    layer = random_layer(shape, block, fwd, bwd, args.device)
                    impls = layer.impls(args.impl)
                    for threads in args.threads:
                        found = measure_layer(layer, impls, args.repeats, threads)
                        cells.append({"shape": shape, "fwd": fwd, "bwd": bwd, "bound": bound(fwd, bwd), **found})
                        bar.update(task, advance=1, description=f"{shape} {fwd}/{bwd} {block_name(block)}")
    return cells


def summarise(cells: list[Cell]) -> list[Cell]:
    """Geometric mean over the shapes, for the step and for each product, each with its bound."""
    groups: dict[tuple, list[Cell]] = {}
    for cell in cells:
        if cell["impl"] is not None:
            groups.setdefault((cell["threads"], cell["fwd"], cell["bwd"], cell["block"]), []).append(cell)
    rows = []
    for (threads, fwd, bwd, block), group in groups.items():
        ratios = {"step": geomean_spread(cell["ratio"] for cell in group)}
        for name in PRODUCTS.values():
            ratios[name] = geomean_spread(cell["products"][name]["ratio"] for cell in group)
        bounds = dict(zip(ratios, [bound(fwd, bwd), 1 - fwd, 1 - fwd, 1 - bwd], strict=True))
        rows.append({"threads": threads, "fwd": fwd, "bwd": bwd, "block": block, "bounds": bounds, "ratios": ratios})
    return rows


def step_tables(cells: list[Cell]) -> list[Table]:
    """One table a number of threads: the step, and below it its products."""
    rows, tables = summarise(cells), []
    for threads in sorted({row["threads"] for row in rows}):
        mine = {(row["fwd"], row["bwd"], row["block"]): row for row in rows if row["threads"] == threads}
        blocks = sorted({block for _, _, block in mine})
        table = Table(title=f"time sparse / dense, {threads} threads, geometric mean of the shapes' medians")
        for head in ("fwd/bwd", "", "bound", *map(block_name, blocks)):
            table.add_column(head, justify="right")
        for fwd, bwd in sorted({key[:2] for key in mine}):
            row = {block: mine[fwd, bwd, block] for block in blocks if (fwd, bwd, block) in mine}
            for what, limit in next(iter(row.values()))["bounds"].items():
                figures = [f"{row[b]['ratios'][what]['median']:.2f}" if b in row else "does not fit" for b in blocks]
                first = what == "step"
                head = f"{fwd}/{bwd}" if first else ""
                table.add_row(head, what, f"{limit:.3f}", *figures, style="bold" if first else "dim")
        tables.append(table)
    return tables


ON_GPU = ("step", "forward")
# name -> how it is measured, and the tables that show it
TABLES = {
    "step": (measure_steps, step_tables),
    "forward": (measure_forward, lambda rows: [forward_table(rows)]),
    "peers": (measure_peers, lambda rows: [peer_table(rows)]),
}
