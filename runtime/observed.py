"""How a weight is read by those who write a program down: as W_A of now, or not at all."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import ExportError
from .reference import weight

if TYPE_CHECKING:
    from .site import Site


@torch.no_grad()
def as_constant(values: Tensor, site: Site) -> Tensor:
    """W_A as ``torch.jit.trace`` can hold it: a constant, made while the trace does not look."""
    tracing: Any = torch._C
    state = tracing._get_tracing_state()
    tracing._set_tracing_state(None)
    try:
        return weight(values.detach().reshape(-1), site.index, site.geometry)
    finally:
        tracing._set_tracing_state(state)


def refuse_plain_export(shape: Sequence[int]) -> None:
    """Raise ExportError if ``torch.onnx.export`` is at work: it has no translation for a sparse weight."""
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
