"""Convolutions in ONNX Runtime: SparseConv beside Conv, one layer a file, by the times of the nodes themselves.

ONNX Runtime keeps images in a layout of its own between dense convolutions. A file of one layer would pay for turning
them there and back, a whole model does not; so a node's own time, which its profiler notes, is what is compared.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from rich.table import Table

import topkast
from topkast.passes.onnx.convert import Wanted, convert
from topkast.passes.onnx.writer import save
from topkast.tools.bench.layer import block_name
from topkast.tools.common.pairs import add_timing, geomean, show, spread
from topkast.tools.common.results import CONSOLE, progress

from .onnx_files import random_matrix

# (channels in, out, kernel, stride, size of the image) of ResNet-50: those that most of its time goes to.
LAYERS = [
    (3, 64, 7, 2, 224),
    (64, 64, 1, 1, 56),
    (64, 64, 3, 1, 56),
    (64, 256, 1, 1, 56),
    (256, 64, 1, 1, 56),
    (128, 128, 3, 2, 56),
    (128, 128, 3, 1, 28),
    (512, 128, 1, 1, 28),
    (512, 1024, 1, 2, 28),
    (256, 256, 3, 1, 14),
    (256, 1024, 1, 1, 14),
    (512, 512, 3, 1, 7),
    (2048, 512, 1, 1, 7),
]
Layer = tuple[int, int, int, int, int]
BLOCKS = [(1, 1), (4, 1), (16, 1)]
BATCHES = [1, 8, 32]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_timing(parser, repeats=7)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.8, 0.9, 0.95, 0.98])


def run(args: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        cells = measure(args, Path(folder))
    for threads in args.threads:
        show_table(cells, threads)
    return {"onnxruntime": onnxruntime.__version__, "convolutions": cells}


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Every layer, sparsity, block and batch."""
    layers: list[Layer] = [(16, 32, 3, 1, 8)] if args.quick else LAYERS
    cells, batches = [], [1] if args.quick else BATCHES
    with progress() as bar:
        task = bar.add_task("convolutions", total=len(layers) * len(args.sparsity) * len(BLOCKS))
        for layer in layers:
            for sparsity in args.sparsity[:1] if args.quick else args.sparsity:
                for unit in BLOCKS:
                    paths = files(folder, layer, unit, sparsity)
                    for batch in batches:
                        for threads in args.threads:
                            ratio, seconds = _pairs(paths, layer, batch, threads, args.repeats)
                            cells.append(
                                {
                                    "layer": layer,
                                    "sparsity": sparsity,
                                    "block": unit,
                                    "batch": batch,
                                    "threads": threads,
                                    "ratio": ratio,
                                    "seconds": seconds,
                                }
                            )
                    bar.update(task, advance=1, description=f"{layer} {sparsity} {block_name(unit)}")
    return cells


def files(folder: Path, layer: Layer, unit: tuple[int, int], sparsity: float) -> tuple[Path, Path]:
    """The dense and the sparse file of a layer and the ReLU after it, of the same weights."""
    channels, out, kernel, stride, size = layer
    matrix = random_matrix((out, channels * kernel * kernel), unit, sparsity, balanced=False)
    weight, bias = matrix.reshape(out, channels, kernel, kernel), np.linspace(-1, 1, out, dtype=np.float32)
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    shape: dict[str, Any] = {"strides": [stride] * 2, "pads": [kernel // 2] * 4}
    # Behind a node, as in a model: x then lies where ONNX Runtime puts it, not where the caller has it.
    nodes = [
        helper.make_node("Neg", ["x"], ["n"]),
        helper.make_node("Conv", ["n", "w", "b"], ["h"], **shape),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    side = math.ceil(size / stride)
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", count, length, length])
        for name, count, length in (("x", channels, size), ("y", out, side))
    )
    graph = helper.make_graph(nodes, "layer", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    paths = folder / "dense.onnx", folder / "sparse.onnx"
    onnx.save(model, paths[0])
    read = ir.load(paths[0])
    convert(read, Wanted("custom", blocks=[unit]))
    save(read, paths[1])
    return paths


def _pairs(paths: tuple[Path, Path], layer: Layer, batch: int, threads: int, repeats: int) -> tuple[Any, Any]:
    """Quartiles of sparse / dense, and the medians in seconds, of interleaved runs."""
    x = np.random.default_rng(0).standard_normal((batch, layer[0], layer[4], layer[4])).astype(np.float32)
    sides = [_profiled(path, threads) for path in paths]
    for _ in range(2 + repeats):
        for side in sides:
            side.run(None, {"x": x})
    dense, sparse = (_node_seconds(side)[2:] for side in sides)
    medians = {name: spread(times)["median"] for name, times in (("dense", dense), ("sparse", sparse))}
    return spread(s / d for d, s in zip(dense, sparse, strict=True)), medians


def _profiled(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.enable_profiling, options.profile_file_prefix = True, str(path.with_suffix(""))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return topkast.onnx.session(path, sess_options=options)


def _node_seconds(session: onnxruntime.InferenceSession) -> list[float]:
    """Of the convolution, run by run."""
    path = Path(session.end_profiling())
    events = json.loads(path.read_text())
    path.unlink()
    return [
        event["dur"] * 1e-6
        for event in events
        if event["name"].endswith("_kernel_time") and "Conv" in event["args"]["op_name"]
    ]


def show_table(cells: list[dict[str, Any]], threads: int) -> None:
    table = Table(title=f"sparse / dense time of a convolution, {threads} threads, median [quartiles]")
    mine = [cell for cell in cells if cell["threads"] == threads]
    kinds = list(dict.fromkeys((cell["sparsity"], cell["block"], cell["batch"]) for cell in mine))
    table.add_column("sparsity, block, batch")
    layers = list(dict.fromkeys(cell["layer"] for cell in mine))
    for channels, out, kernel, stride, size in layers:
        table.add_column(f"{channels}>{out} {kernel}x{kernel}/{stride} @{size}", justify="right")
    table.add_column("geomean", justify="right")
    for kind in kinds:
        row = [c for c in mine if (c["sparsity"], c["block"], c["batch"]) == kind]
        mean = geomean(cell["ratio"]["median"] for cell in row)
        says = f"{kind[0]} {block_name(kind[1])} {kind[2]}"
        table.add_row(says, *(show(cell["ratio"]) for cell in row), f"{mean:.2f}")
    CONSOLE.print(table)
