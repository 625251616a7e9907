"""Recognise code that observes operators while they run, or that records operators."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.fx._symbolic_trace import is_fx_symbolic_tracing

from .errors import ExportError


def under_observation() -> bool:
    """Whether code observes or transforms operators while they run. Such code sees the operators in eager mode."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
        or torch._C._is_tracing()
        or is_fx_symbolic_tracing()
    )


def refuse_plain_export(shape: Sequence[int]) -> None:
    """Raise ExportError if ``torch.onnx.export`` is running: it has no translation for a sparse weight."""
    if not torch.compiler.is_exporting():
        return
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("torch.onnx._internal.exporter"):
            raise ExportError(
                f"torch.onnx.export cannot write a sparse weight (of shape {tuple(shape)}); topkast.export(model, "
                "path, inputs) writes the sparse file, torch.onnx.export of topkast.densify(model) a dense one"
            )
        frame = frame.f_back
