"""One linear layer in ONNX Runtime, in every format and block, beside the dense file of the very weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

import topkast
from topkast.tools.bench.layer import block_name
from topkast.tools.common.onnx_sessions import runner, session
from topkast.tools.common.pairs import Spread, geomean, measure
from topkast.tools.common.results import progress

from .onnx_files import LayerFile, layer_files

SHAPES = [(4096, 4096), (1024, 4096)]  # N, K of a weight [out, in]
SPARSITIES = [0.8, 0.9, 0.95, 0.98]
# format -> its blocks; those of "block" are balanced
KINDS = {"custom": [(1, 1), (4, 1), (16, 1)], "block": [(16, 16), (32, 32), (64, 64)]}
ROWS = [1, 2, 4, 8, 15, 32, 256]
MEANT = (1, 32, 256)  # rows of x whose mean is asked for; the others must not lose


def measure_layers(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A cell for every shape, sparsity, format, block, number of threads and of rows."""
    shapes = [(64, 96)] if args.quick else SHAPES
    sparsities = args.sparsity[:1] if args.quick else args.sparsity
    kinds = [(format, unit) for format, blocks in KINDS.items() for unit in blocks]
    cells = []
    with progress() as bar:
        task = bar.add_task("layers", total=len(shapes) * len(sparsities) * len(kinds))
        for shape in shapes:
            for sparsity in sparsities:
                for format, unit in kinds:
                    bar.update(task, description=f"{shape} {sparsity} {format} {block_name(unit)}")
                    files = layer_files(folder, shape, unit, sparsity, format)
                    for threads in args.threads:
                        cells += measure_layer(files, args.rows, threads, args.repeats)
                    bar.advance(task)
    return cells


def measure_layer(files: LayerFile, rows: list[int], threads: int, repeats: int) -> list[dict[str, Any]]:
    made = [session(path, threads, topkast.onnx.library_path()) for path in (files.dense, files.sparse)]
    rng = np.random.default_rng(0)
    cells = []
    for m in rows:
        x = rng.standard_normal((m, files.shape[1])).astype(np.float32)
        # Few rows are short work: one run says little, so each side of a pair has some of them.
        count = max(1, 8 // m)
        dense, sparse = ([runner(side, {"x": x})] * count for side in made)
        pairs = measure(dense, sparse, repeats)
        cells.append(
            {
                "shape": files.shape,
                "sparsity": files.sparsity,
                "format": files.format,
                "block": files.block,
                "written as": files.written,
                "m": m,
                "threads": threads,
                "speed": speed(pairs.ratio()),
                "seconds": {side: total / count for side, total in pairs.seconds().items()},
                "bytes": {"dense": files.dense.stat().st_size, "sparse": files.sparse.stat().st_size},
            }
        )
    return cells


def speed(ratio: Spread) -> Spread:
    """dense / sparse from sparse / dense."""
    return {"low": 1 / ratio["high"], "median": 1 / ratio["median"], "high": 1 / ratio["low"]}


def layer_table(cells: list[dict[str, Any]], threads: int) -> Table:
    """Geometric mean over the shapes; then over the rows of x that are asked for, with the worst cell of all rows."""
    mine = [cell for cell in cells if cell["threads"] == threads]
    kinds = list(dict.fromkeys((cell["format"], cell["block"]) for cell in mine))
    table = Table(title=f"dense / sparse time of a layer, {threads} threads, geometric mean of the shapes' medians")
    for head in ("sparsity", "M", *(f"{format} {block_name(unit)}" for format, unit in kinds)):
        table.add_column(head, justify="right")
    for sparsity in sorted({cell["sparsity"] for cell in mine}):
        of = {
            kind: [c for c in mine if (c["format"], c["block"]) == kind and c["sparsity"] == sparsity] for kind in kinds
        }
        rows = sorted({cell["m"] for cell in mine})
        for m in rows:
            figures = [geomean(c["speed"]["median"] for c in of[kind] if c["m"] == m) for kind in kinds]
            table.add_row(str(sparsity), str(m), *(f"{figure:.2f}" for figure in figures))
        meant = [m for m in rows if m in MEANT] or rows
        means = [geomean(c["speed"]["median"] for c in of[kind] if c["m"] in meant) for kind in kinds]
        worst = [min(c["speed"]["median"] for c in of[kind]) for kind in kinds]
        worded = [f"{mean:.2f} ({least:.2f})" for mean, least in zip(means, worst, strict=True)]
        table.add_row("", ", ".join(map(str, meant)) + " (worst)", *worded, style="bold", end_section=True)
    return table
