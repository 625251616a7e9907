"""The tensors of a model that are on the meta device, and code run on it without a trace."""

from __future__ import annotations

import contextlib
import warnings
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from topkast.runtime.errors import ModelError

Owners = dict[str, list[tuple[nn.Module, str]]]  # name -> every (module, attribute) that holds the tensor


def held(model: nn.Module, meta: bool = True) -> Owners:
    """The parameters and buffers that are on the meta device, or those that are not; named as the model names them."""
    names: dict[int, str] = {}
    found: Owners = defaultdict(list)
    for path, module in model.named_modules():
        for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and tensor.is_meta == meta:
                found[names.setdefault(id(tensor), f"{path}.{attribute}".lstrip("."))].append((module, attribute))
    return dict(found)


def current(name: str, owners: Owners) -> Tensor:
    """What the owners of ``name`` hold now; ModelError if it is no longer one and the same."""
    tensors = [getattr(module, attribute) for module, attribute in owners[name]]
    if any(tensor is not tensors[0] for tensor in tensors):
        raise ModelError(f"{name}: shared by several modules, until initialising one of them gave it another tensor")
    return tensors[0]


def refuse_loose(model: nn.Module) -> None:
    """Raise ModelError for tensors on the meta device of which no owner is known."""
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_meta:
                name = f"{path}.{key}".lstrip(".")
                raise ModelError(f"{name}: a tensor on the meta device that is no buffer; use register_buffer")


def like(tensor: Tensor, device: torch.device) -> Any:
    """A tensor of that kind and shape on ``device``; where nothing is written to it, it holds NaN."""
    fresh = torch.empty_like(tensor.detach(), device=device)
    if fresh.is_floating_point():
        fresh.fill_(torch.nan)
    if not isinstance(tensor, nn.Parameter):
        return fresh
    parameter = torch.Tensor._make_subclass(type(tensor), fresh, tensor.requires_grad)
    vars(parameter).update(vars(tensor))
    return parameter


@contextlib.contextmanager
def on_meta_only(model: nn.Module) -> Iterator[None]:
    """Initialisers run inside leave no trace: real tensors are exchanged, and attributes and generator put back."""
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    registers: list[Any] = [held for m in model.modules() for held in (m._parameters, m._buffers)]
    tensors = [dict(held) for held in registers]
    twins: dict[int, Any] = {}
    for register, before in zip(registers, tensors, strict=True):
        for key, tensor in before.items():
            if tensor is not None and not tensor.is_meta:
                register[key] = twins.setdefault(id(tensor), like(tensor, torch.device("meta")))
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for register, before in zip(registers, tensors, strict=True):
            register.clear()
            register.update(before)
        for module, before in attributes:
            vars(module).clear()
            vars(module).update(before)
