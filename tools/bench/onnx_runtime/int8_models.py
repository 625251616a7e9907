"""Whole models in ONNX Runtime: dense and sparse, float32 and int8, all sides in one loop."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

import topkast
from topkast.passes.onnx.quantise import quantise
from topkast.runtime.errors import ConfigError
from topkast.tools.bench.layer import block_name
from topkast.tools.common.onnx_sessions import Feeds, runner, session
from topkast.tools.common.pairs import show, spread
from topkast.tools.common.results import CONSOLE
from topkast.tools.common.rotation import measure_rounds, ratios

from .dense_int8 import quantise_dynamically, quantise_statically
from .onnx_models import MODELS, SPARSITY
from .product_share import product_share

BASE = "dense fp32"
DENSE_INT8 = ("dense int8, dynamic", "dense int8, static")
KINDS = {"library 16x1": ("custom", (16, 1)), "stock 32x32": ("block", (32, 32))}
# What a product costs at least, as a share of the dense float32 product: the aim that the bound is made of.
PRODUCT = 0.12


def measure_models(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Every model: each side's time over the dense float32 file's in the same round, and the size of the files."""
    rows = []
    for name in args.model:
        CONSOLE.print(f"exporting {name}", highlight=False)
        files, feeds, says, weights = export_all(name, folder, args.quick)
        for threads in args.threads:
            share = product_share(files[BASE], feeds, threads)
            library = topkast.onnx.library_path()
            sides = {side: runner(session(path, threads, library), feeds) for side, path in files.items()}
            times = measure_rounds(sides, args.repeats)
            rows.append(
                {
                    "model": name,
                    "says": says,
                    "threads": threads,
                    "products": share,
                    "bound": 1 - share + PRODUCT * share,
                    "ratio": ratios(times, BASE),
                    "seconds": {side: spread(own)["median"] for side, own in times.items()},
                    "bytes": {side: path.stat().st_size for side, path in files.items()},
                    "weights": weights,
                }
            )
    return rows


def export_all(name: str, folder: Path, quick: bool) -> tuple[dict[str, Path], Feeds, str, dict[str, float]]:
    """The files of a model, by side; what to feed; what the model is; sparse weights' share of their dense bytes."""
    files: dict[str, Path] = {}
    shares: dict[str, float] = {}
    for kind, (format, block) in KINDS.items():
        torch.manual_seed(0)
        built, given, says = MODELS[name](quick)
        model = topkast.sparsify(built.eval(), SPARSITY, SPARSITY, block=block, balanced=format == "block")
        if not files:
            dense = topkast.export(model, folder / f"{name}.onnx", (given,), format="dense", verify=False)
            files[BASE] = dense.path
            feeds = {next(iter(dense.inputs)): given.numpy()}
            examples = [{key: _another(value) for key, value in feeds.items()} for _ in range(4)]
            files[DENSE_INT8[0]] = quantise_dynamically(dense.path, folder / f"{name}-dynamic.onnx")
            files[DENSE_INT8[1]] = quantise_statically(dense.path, folder / f"{name}-static.onnx", examples)
        for precision, keep_float in (("fp32", None), ("int8", _too_wide(model))):
            side = f"{kind}, {precision}"
            path = folder / f"{name}-{format}-{block_name(block)}-{precision}.onnx"
            how: dict[str, Any] = {"format": format, "precision": precision, "keep_float": keep_float}
            result = topkast.export(model, path, (given,), **how, verify=False)
            files[side] = path
            sparse = [site for site in result.sites if site.block is not None]
            shares[side] = sum(s.bytes for s in sparse) / max(1, sum(s.dense_bytes for s in sparse))
    return files, feeds, says, shares


def _too_wide(model: torch.nn.Module) -> list[str]:
    """The weights of which int8 would lose too much, because a row holds few numbers of very different sizes."""
    names = []
    for name, weight in topkast.densify(model).named_parameters():
        if name in topkast.masks(model):
            try:
                quantise(weight.detach().flatten(1).numpy(), name)
            except ConfigError:
                names.append(name)
    return names


def _another(example: np.ndarray) -> np.ndarray:
    """A random input of the same kind."""
    rng = np.random.default_rng()
    if np.issubdtype(example.dtype, np.integer):
        return rng.integers(0, int(example.max()) + 1, example.shape, dtype=example.dtype)
    return rng.standard_normal(example.shape).astype(example.dtype)


def model_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="whole models at 0.9: time / dense fp32, median [quartiles]")
    sides = list(rows[0]["ratio"]) if rows else []
    table.add_column("model")
    for side in ("threads", "bound", *sides[1:]):
        table.add_column(side, justify="right")
    for row in rows:
        times = (show(row["ratio"][side]) for side in sides[1:])
        table.add_row(row["says"], str(row["threads"]), f"{row['bound']:.2f}", *times)
    return table
