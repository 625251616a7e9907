"""Exported files in ONNX Runtime: latency, size and load time beside the dense export of the same weights.

Two tables: one linear layer, and whole models. Ratios are dense / sparse, so above 1 is faster or smaller.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from _arguments import positive
from _layer import block_name
from _onnx_files import LayerFile, layer_files
from _onnx_models import MODELS, export_both
from _pairs import Spread, add_timing, geomean, measure, show
from _results import CONSOLE, progress
from rich.table import Table

import topkast.onnx

SHAPES = [(4096, 4096), (1024, 4096)]  # N, K of a weight [out, in]
SPARSITIES = [0.8, 0.9, 0.95, 0.98]
# format -> its blocks; those of "block" are balanced
KINDS = {"custom": [(1, 1), (4, 1), (16, 1), (32, 32)], "block": [(32, 32), (64, 64)]}
ROWS = [1, 32, 256]
MODEL_KINDS = [("block", (32, 32)), ("custom", (16, 1)), ("custom", (4, 1)), ("custom", (1, 1))]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_timing(parser, repeats=9)
    parser.add_argument("--tables", nargs="+", choices=("layer", "model"), default=["layer", "model"])
    parser.add_argument("--rows", type=positive, nargs="+", default=ROWS, help="rows of x")
    parser.add_argument("--sparsity", type=float, nargs="+", default=SPARSITIES)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))


def run(args: argparse.Namespace) -> dict[str, object]:
    found: dict[str, object] = {"onnxruntime": onnxruntime.__version__}
    with tempfile.TemporaryDirectory() as folder:
        if "layer" in args.tables:
            found["layer"] = cells = measure_layers(args, Path(folder))
            for threads in args.threads:
                CONSOLE.print(layer_table(cells, threads))
        if "model" in args.tables:
            found["model"] = rows = measure_models(args, Path(folder))
            CONSOLE.print(model_table(rows))
    return found


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """A session with our library that does not spin while another one runs."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return topkast.onnx.session(path, sess_options=options)


def runner(made: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> Callable[[], object]:
    return lambda: made.run(None, feeds)


def measure_layers(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Every shape, sparsity, format and block; dense beside it with the very weights."""
    shapes = [(64, 96)] if args.quick else SHAPES
    sparsities = args.sparsity[:1] if args.quick else args.sparsity
    cells = []
    with progress() as bar:
        task = bar.add_task("layers", total=len(shapes) * len(sparsities) * sum(map(len, KINDS.values())))
        for shape in shapes:
            for sparsity in sparsities:
                for format, blocks in KINDS.items():
                    for unit in blocks:
                        files = layer_files(folder, shape, unit, sparsity, format)
                        cells += [measure_layer(args, files, m, threads) for m in args.rows for threads in args.threads]
                        bar.update(task, advance=1, description=f"{shape} {sparsity} {format} {block_name(unit)}")
    return cells


def measure_layer(args: argparse.Namespace, files: LayerFile, m: int, threads: int) -> dict[str, Any]:
    x = np.random.default_rng(0).standard_normal((m, files.shape[1])).astype(np.float32)
    sides = [runner(session(path, threads), {"x": x}) for path in (files.dense, files.sparse)]
    # Few rows are short work: one pair says little, so each side of a pair runs some of them.
    count = max(1, 32 // m)
    pairs = measure([sides[0]] * count, [sides[1]] * count, args.repeats)
    return {
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


def speed(ratio: Spread) -> Spread:
    """dense / sparse from sparse / dense."""
    return {"low": 1 / ratio["high"], "median": 1 / ratio["median"], "high": 1 / ratio["low"]}


def layer_table(cells: list[dict[str, Any]], threads: int) -> Table:
    """Geometric mean over the shapes; the last line of each sparsity over the rows of x too, and the worst cell."""
    mine = [cell for cell in cells if cell["threads"] == threads]
    kinds = sorted({(cell["format"], cell["block"]) for cell in mine}, reverse=True)
    table = Table(title=f"dense / sparse time of a layer, {threads} threads, geometric mean of the shapes' medians")
    for head in ("sparsity", "M", *(f"{format} {block_name(unit)}" for format, unit in kinds)):
        table.add_column(head, justify="right")
    for sparsity in sorted({cell["sparsity"] for cell in mine}):
        of = {
            kind: [c for c in mine if (c["format"], c["block"]) == kind and c["sparsity"] == sparsity] for kind in kinds
        }
        for m in sorted({cell["m"] for cell in mine}):
            figures = [geomean(c["speed"]["median"] for c in of[kind] if c["m"] == m) for kind in kinds]
            table.add_row(str(sparsity), str(m), *(f"{figure:.2f}" for figure in figures))
        means = [geomean(c["speed"]["median"] for c in of[kind]) for kind in kinds]
        worst = [min(c["speed"]["median"] for c in of[kind]) for kind in kinds]
        figures = [f"{mean:.2f} ({least:.2f})" for mean, least in zip(means, worst, strict=True)]
        table.add_row("", "all (worst)", *figures, style="bold")
    return table


def measure_models(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Every model at 0.9, its custom and its block files beside the dense one."""
    rows = []
    for name in args.model:
        for format, unit in MODEL_KINDS[:2] if args.quick else MODEL_KINDS:
            CONSOLE.print(f"exporting {name}, {format} {block_name(unit)}", highlight=False)
            both = export_both(name, folder, unit, format, args.quick)
            for threads in args.threads:
                sides = [session(path, threads) for path in (both.dense, both.sparse)]
                pairs = measure(*([runner(side, both.feeds)] for side in sides), args.repeats)
                opened = [partial(session, path, threads) for path in (both.dense, both.sparse)]
                loads = measure(opened[:1], opened[1:], repeats=3, warmup=1)
                rows.append(
                    {
                        "model": name,
                        "says": both.says,
                        "format": format,
                        "block": unit,
                        "threads": threads,
                        "latency": pairs.ratio(),
                        "seconds": pairs.seconds(),
                        "load": loads.ratio(),
                        "load seconds": loads.seconds(),
                        "bytes": {"dense": both.dense.stat().st_size, "sparse": both.sparse.stat().st_size},
                        "max error": both.max_error,
                    }
                )
    return rows


def model_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="whole models at 0.9: sparse / dense")
    for head in ("model", "format", "threads", "latency", "dense ms", "file", "load"):
        table.add_column(head, justify="left" if head in ("model", "format") else "right")
    for row in rows:
        table.add_row(
            row["says"],
            f"{row['format']} {block_name(row['block'])}",
            str(row["threads"]),
            show(row["latency"]),
            f"{row['seconds']['dense'] * 1e3:.1f}",
            f"{row['bytes']['sparse'] / row['bytes']['dense']:.2f}",
            show(row["load"]),
        )
    return table
