"""Those who look at operators as they run, or write them down: how they are known, and what they read as a weight."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx._symbolic_trace import is_fx_symbolic_tracing

from topkast.runtime.reference.products import weight

from .errors import ExportError

if TYPE_CHECKING:
    from topkast.runtime.state.site import Site


def under_observation() -> bool:
    """Whether somebody looks at operators, or transforms them, as they run: such a program sees them in eager mode."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
        or torch._C._is_tracing()
        or is_fx_symbolic_tracing()
    )


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
