"""Exported files in ONNX Runtime beside the dense export of the same weights: latency, size, memory and load time.

Three tables: a linear layer (dense / sparse: above 1 is faster); a layer in int8, and whole models (sparse / dense).
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
from rich.table import Table

import topkast
from topkast.tools.bench.layer import block_name
from topkast.tools.common.arguments import positive
from topkast.tools.common.onnx_sessions import memory, runner, session
from topkast.tools.common.pairs import add_timing, measure, show
from topkast.tools.common.results import CONSOLE

from .onnx_int8 import SHAPE, int8_table, measure_int8
from .onnx_layers import ROWS, SPARSITIES, layer_table, measure_layers
from .onnx_models import MODELS, export_both

TABLES = ["layer", "int8", "model"]
KINDS = {
    "custom-16x1": ("custom", (16, 1)),
    "custom-4x1": ("custom", (4, 1)),
    "custom-1x1": ("custom", (1, 1)),
    "block-32x32": ("block", (32, 32)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_timing(parser, repeats=7)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--rows", type=positive, nargs="+", default=ROWS, help="rows of x of a layer")
    parser.add_argument("--sparsity", type=float, nargs="+", default=SPARSITIES, help="of a layer")
    parser.add_argument(
        "--shape", type=positive, nargs=2, default=SHAPE, metavar=("INPUTS", "OUTPUTS"), help="of the layer in int8"
    )
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS), help="format and block of a model")


def run(args: argparse.Namespace) -> dict[str, object]:
    found: dict[str, object] = {"onnxruntime": onnxruntime.__version__}
    with tempfile.TemporaryDirectory() as folder:
        if "layer" in args.tables:
            found["layer"] = cells = measure_layers(args, Path(folder))
            for threads in args.threads:
                CONSOLE.print(layer_table(cells, threads))
        if "int8" in args.tables:
            found["int8"] = cells = measure_int8(args, Path(folder))
            for threads in args.threads:
                CONSOLE.print(int8_table(cells, threads))
        if "model" in args.tables:
            found["model"] = rows = measure_models(args, Path(folder))
            CONSOLE.print(model_table(rows))
    return found


def measure_models(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Every model at 0.9 in every kind, and the dense file of the very weights."""
    library, rows = topkast.onnx.library_path(), []
    for name in args.model:
        for format, unit in map(KINDS.__getitem__, args.kind):
            CONSOLE.print(f"exporting {name}, {format} {block_name(unit)}", highlight=False)
            both = export_both(name, folder, unit, format, args.quick)
            files = {"dense": both.dense, "sparse": both.sparse}
            for threads in args.threads:
                dense, sparse = ([runner(session(path, threads, library), both.feeds)] for path in files.values())
                pairs = measure(dense, sparse, args.repeats)
                opened, opened_sparse = ([partial(session, path, threads, library)] for path in files.values())
                loads = measure(opened, opened_sparse, repeats=3, warmup=1)
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
                        "bytes": {side: path.stat().st_size for side, path in files.items()},
                        "memory": {side: memory(path, both.feeds, threads, library) for side, path in files.items()},
                        "max error": both.max_error,
                    }
                )
    return rows


def model_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="whole models at 0.9: sparse / dense")
    for head in ("model", "format", "threads", "latency", "dense ms", "file", "resident", "held", "load"):
        table.add_column(head, justify="left" if head in ("model", "format") else "right")
    for row in rows:
        share = {key: row["memory"]["sparse"][key] / row["memory"]["dense"][key] for key in ("resident", "held")}
        table.add_row(
            row["says"],
            f"{row['format']} {block_name(row['block'])}",
            str(row["threads"]),
            show(row["latency"]),
            f"{row['seconds']['dense'] * 1e3:.1f}",
            f"{row['bytes']['sparse'] / row['bytes']['dense']:.2f}",
            f"{share['resident']:.2f}",
            f"{share['held']:.2f}",
            show(row["load"]),
        )
    return table
