"""topkast: train any PyTorch model sparse from the first step to the last (Top-KAST, arXiv 2106.03517)."""

import sys

from topkast.compiler import topology, watch
from topkast.compiler.advise.estimate import estimate
from topkast.compiler.advise.search import advise
from topkast.compiler.checkpoint.dense_state import dense_state_dict, load_dense_state_dict, masks
from topkast.compiler.checkpoint.file import load, save
from topkast.compiler.compile import compile, refresh, step
from topkast.compiler.convert.sparsify import sparsify
from topkast.compiler.densify import densify
from topkast.compiler.export.api import export
from topkast.compiler.export.package import package
from topkast.compiler.report.report import report
from topkast.compiler.share import library_save, resume  # noqa: F401  (they extend transformers once it is imported)
from topkast.compiler.share.from_pretrained import from_pretrained
from topkast.compiler.topology.dynamics import Dynamics
from topkast.compiler.watch.loggers import on_refresh
from topkast.runtime.errors import (
    CheckpointError,
    ConfigError,
    DeviceError,
    ExportError,
    GraphError,
    MissingPackageError,
    ModelError,
    OperandError,
    OptimizerError,
    RefreshError,
    ReservoirError,
    TopkastError,
)
from topkast.runtime.methods import Method, Rows, SetState, register_method
from topkast.runtime.onnx import library as onnx
from topkast.runtime.training.param_groups import param_groups
from topkast.runtime.training.running_average import averaged

__version__ = "0.1.0"

# `import topkast.onnx` must work without a file onnx.py in this folder. A file of that name would hide the package onnx
# from every program that runs in this folder.
sys.modules["topkast.onnx"] = onnx
sys.modules["topkast.topology"] = topology
sys.modules["topkast.watch"] = watch

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DeviceError",
    "Dynamics",
    "ExportError",
    "GraphError",
    "Method",
    "MissingPackageError",
    "ModelError",
    "OperandError",
    "OptimizerError",
    "RefreshError",
    "ReservoirError",
    "Rows",
    "SetState",
    "TopkastError",
    "advise",
    "averaged",
    "compile",
    "dense_state_dict",
    "densify",
    "estimate",
    "export",
    "from_pretrained",
    "load",
    "load_dense_state_dict",
    "masks",
    "on_refresh",
    "onnx",
    "package",
    "param_groups",
    "refresh",
    "register_method",
    "report",
    "save",
    "sparsify",
    "step",
    "topology",
    "watch",
]
