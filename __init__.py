"""topkast: train any PyTorch model sparse from the first step to the last (Top-KAST, arXiv 2106.03517)."""

from topkast.compiler.compile import compile, refresh, step
from topkast.compiler.sparsify import sparsify
from topkast.runtime.errors import (
    CheckpointError,
    ConfigError,
    ExportError,
    ModelError,
    OptimizerError,
    TopkastError,
)

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConfigError",
    "ExportError",
    "ModelError",
    "OptimizerError",
    "TopkastError",
    "compile",
    "refresh",
    "sparsify",
    "step",
]
