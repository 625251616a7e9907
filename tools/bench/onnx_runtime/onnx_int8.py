"""One linear layer in ONNX Runtime, in float32 and in int8, dense and sparse: the four files of one weight, in turn.

Dense int8 is what ``quantize_dynamic`` makes of the dense file, with a scale for each output. Our operators run in a
session with topkast's library.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from rich.table import Table

import topkast
from topkast.passes.onnx.blocks import encode
from topkast.passes.onnx.formats.custom import DOMAIN
from topkast.tools.bench.layer import block_name
from topkast.tools.common.onnx_sessions import runner, session
from topkast.tools.common.pairs import Pairs, Spread, measure, show, spread
from topkast.tools.common.results import progress

from .onnx_files import layer, layer_files

SHAPE, SPARSITY = (4096, 1024), 0.9  # [out, in] of the weight
BLOCKS = [(16, 1), (32, 32), (4, 1), (1, 1)]
SIDES = (("dense float32", "dense int8"), ("sparse float32", "sparse int8"))


def int8_files(folder: Path, shape: tuple[int, int], block: tuple[int, int]) -> dict[str, Path]:
    """The files, by kind."""
    both = layer_files(folder, shape, block, SPARSITY, "custom")
    dense, sparse = (folder / f"{side}-int8-{block_name(block)}.onnx" for side in ("dense", "sparse"))
    quantize_dynamic(both.dense, dense, weight_type=QuantType.QInt8, per_channel=True)
    (matrix,) = (numpy_helper.to_array(t) for t in onnx.load(both.dense).graph.initializer if t.name == "w")
    onnx.save(int8_layer(matrix, block), sparse)
    return {
        "dense float32": both.dense,
        "dense int8": dense,
        "sparse float32": both.sparse,
        "sparse int8": sparse,
    }


def int8_layer(matrix: np.ndarray, block: tuple[int, int]) -> onnx.ModelProto:
    """One node ``topkast.SparseMatMulInt8``; the largest weight of a row becomes 127."""
    scale = np.maximum(abs(matrix).max(axis=1), np.finfo(np.float32).tiny) / np.float32(127)
    found = encode(np.rint(matrix / scale[:, None]).astype(np.float32), block)
    tensors = {
        "values": found.values.reshape(-1).astype(np.int8),
        "row_ptr": found.row_ptr,
        "cols": found.cols.astype(np.uint16),
        "scale": scale,
        "bias": np.ones(len(matrix), np.float32),
    }
    model = layer(matrix)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
    rows, columns = matrix.shape
    shape: dict[str, Any] = {"rows": rows, "columns": columns, "block": list(block)}
    model.graph.node.append(helper.make_node("SparseMatMulInt8", ["x", *tensors], ["y"], domain=DOMAIN, **shape))
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return model


def measure_int8(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A cell for every block, number of threads and rows of x."""
    cells, shape = [], (64, 96) if args.quick else SHAPE
    with progress() as bar:
        task = bar.add_task("int8", total=len(BLOCKS))
        for block in BLOCKS:
            files = int8_files(folder, shape, block)
            for threads in args.threads:
                made = {kind: session(path, threads, topkast.onnx.library_path()) for kind, path in files.items()}
                for m in args.rows:
                    x = np.random.default_rng(0).standard_normal((m, shape[1])).astype(np.float32)
                    # Few rows are short work: one run says little, so each turn has some of them.
                    count = max(1, 8 // m)
                    dense, sparse = ([repeated(runner(made[kind], {"x": x}), count) for kind in side] for side in SIDES)
                    cells.append({"shape": shape, "sparsity": SPARSITY, "block": block, "m": m, "threads": threads})
                    cells[-1] |= figures(measure(dense, sparse, args.repeats), count)
            bar.advance(task)
    return cells


def repeated(run: Callable[[], object], count: int) -> Callable[[], object]:
    return lambda: [run() for _ in range(count)]


def figures(pairs: Pairs, count: int) -> dict[str, Any]:
    """The ratios of the four files' times, and their median seconds; each turn had ``count`` runs."""
    turns = {
        kind: [turn[i] for turn in getattr(pairs, kind.split()[0])] for side in SIDES for i, kind in enumerate(side)
    }

    def ratio(kind: str, to: str) -> Spread:
        return spread(time / base for time, base in zip(turns[kind], turns[to], strict=True))

    return {
        "int8 of dense int8": ratio("sparse int8", "dense int8"),
        "int8 of dense float32": ratio("sparse int8", "dense float32"),
        "float32 of dense float32": ratio("sparse float32", "dense float32"),
        "seconds": {kind: spread(times)["median"] / count for kind, times in turns.items()},
    }


def int8_table(cells: list[dict[str, Any]], threads: int) -> Table:
    shares = ("int8 of dense int8", "int8 of dense float32", "float32 of dense float32")
    table = Table(title=f"a layer in int8, {threads} threads: sparse / dense time, median [quartiles]")
    for head in ("block", "M", *shares, "dense int8, us"):
        table.add_column(head, justify="right")
    for cell in cells:
        if cell["threads"] == threads:
            us = f"{cell['seconds']['dense int8'] * 1e6:.0f}"
            table.add_row(block_name(cell["block"]), str(cell["m"]), *(show(cell[share]) for share in shares), us)
    return table
