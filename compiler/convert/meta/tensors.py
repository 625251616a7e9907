"""The tensors of a model on the meta device, and a way to run code on them that leaves the model unchanged."""

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
    """The parameters and buffers on the meta device (``meta=False``: on other devices), by the model's names."""
    names: dict[int, str] = {}
    found: Owners = defaultdict(list)
    for path, module in model.named_modules():
        for attribute, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and tensor.is_meta == meta:
                found[names.setdefault(id(tensor), f"{path}.{attribute}".lstrip("."))].append((module, attribute))
    return dict(found)


def current(name: str, owners: Owners) -> Tensor:
    """The tensor that the owners of ``name`` hold now; ModelError if they no longer hold the same tensor."""
    tensors = [_held_by(*owner) for owner in owners[name]]
    if any(tensor is not tensors[0] for tensor in tensors):
        raise ModelError(f"{name}: shared by several modules, until initialising one of them gave it another tensor")
    return tensors[0]


def _held_by(module: nn.Module, attribute: str) -> Any:
    """The module's parameter or buffer itself. The attribute of a sparse weight would be W_A, a new tensor."""
    registered = {**module._parameters, **module._buffers}
    return registered[attribute] if attribute in registered else getattr(module, attribute)


def refuse_loose(model: nn.Module) -> None:
    """Raise ModelError for tensors on the meta device that have no known owner."""
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_meta:
                name = f"{path}.{key}".lstrip(".")
                raise ModelError(f"{name}: a tensor on the meta device that is no buffer; use register_buffer")


def like(tensor: Tensor, device: torch.device) -> Any:
    """A tensor of the same kind and shape on ``device``; floating-point entries are NaN until they are written."""
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
    """Let initialisers run inside the ``with`` without a lasting effect.

    Real tensors are replaced meanwhile; attributes and the random generator are restored afterwards.
    """
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
