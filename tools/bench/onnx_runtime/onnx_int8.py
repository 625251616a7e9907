"""One linear layer in ONNX Runtime, float32 and int8, dense and sparse: all files in one loop.

Dense int8 is what ``quantize_dynamic`` makes of the dense file, with a scale for each output. "library" files run with
topkast's kernels, "stock" files with standard operators alone. Results go to the same memory in every run, as they do
between the layers of a model.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

import topkast
from topkast.tools.bench.layer import block_name
from topkast.tools.common.onnx_sessions import bound_runner, session
from topkast.tools.common.pairs import show, spread
from topkast.tools.common.results import progress
from topkast.tools.common.rotation import measure_rounds, ratios

from .dense_int8 import quantise_dynamically
from .onnx_files import layer_files

SHAPE, SPARSITY = (1024, 4096), 0.9  # inputs and outputs of the layer
KINDS = {
    **{f"library {block_name(block)}": ("custom", block) for block in [(16, 1), (4, 1), (1, 1), (32, 32)]},
    **{f"stock {block_name(block)}": ("block", block) for block in [(32, 32), (64, 64)]},
}
FP32, INT8 = "dense fp32", "dense int8"


def int8_files(folder: Path, inputs: int, outputs: int) -> dict[str, Path]:
    """The files, by kind and precision. The dense weight of all is of the first kind's size, not of its zeros."""
    shape, files = (outputs, inputs), dict[str, Path]()
    for kind, (format, block) in KINDS.items():
        for precision in ("fp32", "int8"):
            both = layer_files(folder, shape, block, SPARSITY, format, precision)
            assert both.written == format
            files[f"{kind}, {precision}"] = both.sparse
            files.setdefault(FP32, both.dense)
    files[INT8] = quantise_dynamically(files[FP32], folder / "dense-int8.onnx")
    return files


def measure_int8(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A cell for every number of threads and rows of x."""
    columns, rows = (192, 128) if args.quick else args.shape
    cells, files = [], int8_files(folder, columns, rows)
    with progress() as bar:
        task = bar.add_task("int8", total=len(args.threads) * len(args.rows))
        for threads in args.threads:
            made = {kind: session(path, threads, topkast.onnx.library_path()) for kind, path in files.items()}
            for m in args.rows:
                x = np.random.default_rng(0).standard_normal((m, columns)).astype(np.float32)
                # Few rows are short work: one run says little, so each turn has some of them.
                count = max(1, 8 // m)
                sides = {kind: repeated(bound_runner(one, {"x": x}), count) for kind, one in made.items()}
                times = measure_rounds(sides, args.repeats)
                cells.append(
                    {
                        "m": m,
                        "shape": [columns, rows],
                        "threads": threads,
                        "sparsity": SPARSITY,
                        "of dense fp32": ratios(times, FP32),
                        "of dense int8": ratios(times, INT8),
                        "seconds": {kind: spread(own)["median"] / count for kind, own in times.items()},
                    }
                )
                bar.advance(task)
    return cells


def repeated(run: Callable[[], object], count: int) -> Callable[[], object]:
    return lambda: [run() for _ in range(count)]


def int8_table(cells: list[dict[str, Any]], threads: int) -> Table:
    mine = [cell for cell in cells if cell["threads"] == threads]
    layer = " > ".join(map(str, mine[0]["shape"])) if mine else ""
    table = Table(title=f"layer {layer}, {threads} threads: time / dense fp32; time / dense int8, median [quartiles]")
    table.add_column("file")
    for cell in mine:
        table.add_column(f"M = {cell['m']}", justify="right")
    for kind in mine[0]["of dense fp32"] if mine else ():
        shares = (f"{show(cell['of dense fp32'][kind])}; {show(cell['of dense int8'][kind])}" for cell in mine)
        table.add_row(kind, *shares)
    return table
