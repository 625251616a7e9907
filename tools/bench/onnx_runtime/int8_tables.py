"""Sparse and int8 together in ONNX Runtime, beside dense float32 and ONNX Runtime's own int8.

Two tables: whole models (time / dense float32), and the quality of trained models after int8. Layers stand in `onnx`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import onnxruntime

from topkast.tools.common.arguments import positive
from topkast.tools.common.pairs import add_timing
from topkast.tools.common.results import CONSOLE

from .int8_accuracy import accuracy_table, measure_accuracy
from .int8_models import measure_models, model_table
from .onnx_models import MODELS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_timing(parser, repeats=9)
    parser.add_argument("--tables", nargs="+", choices=("model", "accuracy"), default=["model", "accuracy"])
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", type=positive, default=5, help="of each trained model")
    parser.add_argument("--steps", type=positive, default=300, help="of each trained model")


def run(args: argparse.Namespace) -> dict[str, object]:
    found: dict[str, object] = {"onnxruntime": onnxruntime.__version__}
    with tempfile.TemporaryDirectory() as folder:
        if "model" in args.tables:
            found["model"] = rows = measure_models(args, Path(folder))
            CONSOLE.print(model_table(rows))
        if "accuracy" in args.tables:
            found["accuracy"] = scores = measure_accuracy(args, Path(folder))
            CONSOLE.print(accuracy_table(scores))
    return found
