"""Refuse a model that cannot be converted, before anything is changed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from topkast.runtime.devices import check_device
from topkast.runtime.errors import ModelError
from topkast.runtime.state.site_module import SiteModule
from topkast.runtime.training.sharded.refused import parallel_already


def check_model(model: Any) -> None:
    """Raise ModelError, or DeviceError, if ``model`` cannot be converted; the message says what is wrong and what to
    do."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("model: a scripted module, whose parameters are fixed; pass the module before torch.jit")
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model: a {type(model).__name__}, must be a torch.nn.Module (for an exported program: .module())"
        )
    for path, module in model.named_modules():
        where = f"model{'.' + path if path else ''}"
        if "_topkast" in module.__dict__:
            raise ModelError(f"{where}: already converted by topkast; topkast.densify gives a plain model back")
        if module._compiled_call_impl is not None or isinstance(module, torch._dynamo.eval_frame.OptimizedModule):
            raise ModelError(f"{where}: already compiled; pass the module before torch.compile")
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(f"{where}: a scripted module, whose parameters are fixed; pass it before torch.jit")
        if isinstance(module, SiteModule):
            raise ModelError(f"{where}: converted in part, or part of a converted model; build the model again")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise ModelError(f"{name}: not initialised yet; run the model once before")
        if _is_dtensor(parameter):
            raise ModelError(f"{name}: a DTensor; convert the model before it is sharded")
        check_device(name, parameter.device)
        if not parameter.is_meta:  # parameters on the meta device are checked once they have values
            check_finite(name, parameter)
    tool = parallel_already(model.parameters())
    if tool is not None:
        raise ModelError(
            f"model: its parameters are in a {tool} already; convert the model first, then make that of it"
        )


def check_finite(name: str, parameter: Tensor) -> None:
    """Raise ModelError if the parameter holds NaN, or if it may be a sparse weight and holds infinite values."""
    # The smallest and largest entry are enough: isfinite() would need a copy of the whole parameter.
    ends = parameter.detach().aminmax() if parameter.is_floating_point() and parameter.numel() else ()
    if any(bool(end.isnan()) for end in ends):
        raise ModelError(f"{name}: holds NaN, so every result of the model would be NaN")
    # A parameter that adds to scores may hold -inf as a mask, and stays dense.
    if parameter.dim() > 1 and parameter.requires_grad and any(bool(end.isinf()) for end in ends):
        raise ModelError(f"{name}: holds infinite values, by which no largest weights can be chosen")


def _is_dtensor(parameter: nn.Parameter) -> bool:
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor  # slow to import

    return isinstance(parameter.data, DTensor)
