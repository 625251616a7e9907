"""The optimizer's part of a checkpoint.

Positions of sparse weights that are frozen parameters (``topkast.sparsify(mesh=)``) are left out. So the part is the
same for a model that was converted with and without a mesh.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from topkast.runtime.state.model import sites
from topkast.runtime.state.site_module import SiteModule

from .pack import pack


def trained_parameters(root: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[nn.Parameter]]:
    """The parameters of each group, without frozen positions."""
    frozen = {id(site.cols if site.shard is None else site.shard.cols) for site in sites(root).values()}
    return [[one for one in group["params"] if id(one) not in frozen] for group in optimizer.param_groups]


def describe_optimizer(root: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The class, and per group the (name, shape) of each parameter; the name is None for one outside the model."""
    names = {id(parameter): name for name, parameter in root.named_parameters()}
    groups = [
        [[names.get(id(parameter)), list(parameter.shape)] for parameter in group]
        for group in trained_parameters(root, optimizer)
    ]
    return {"class": f"{type(optimizer).__module__}.{type(optimizer).__qualname__}", "params": groups}


def pack_optimizer(root: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The optimizer as JSON can hold it; its tensors go to ``tensors``."""
    content = dict(optimizer.state_dict())
    new = {old: number for number, old in enumerate(_numbers(root, optimizer))}
    state = {new.get(number, number): entries for number, entries in content.pop("state").items()}
    content["param_groups"] = [
        {**group, "params": [new[number] for number in group["params"] if number in new]}
        for group in content["param_groups"]
    ]
    packed = pack(content, "optimizer", tensors)
    packed["dict"].append(["state", pack(state, "optimizer", tensors)])
    return {**describe_optimizer(root, optimizer), "state": packed}


def parameter_of(name: str, parameters: list[nn.Parameter]) -> nn.Parameter | None:
    """The parameter that a tensor of the file belongs to; None if the tensor is not the state of a parameter.

    Args:
        name: the name of the tensor in the file.
        parameters: all of :func:`trained_parameters`.
    """
    kind, number, *_ = [*name.split("/"), ""]
    fits = kind == "optimizer" and number.isdecimal() and int(number) < len(parameters)
    return parameters[int(number)] if fits else None


def load_optimizer(root: nn.Module, optimizer: torch.optim.Optimizer, content: dict[str, Any]) -> None:
    """Load the unpacked state dict of :func:`pack_optimizer`."""
    numbers = _numbers(root, optimizer)
    state = {numbers[key] if isinstance(key, int) else key: entries for key, entries in content["state"].items()}
    own = optimizer.state_dict()["param_groups"]
    groups = [{**new, "params": mine["params"]} for new, mine in zip(content["param_groups"], own, strict=True)]
    optimizer.load_state_dict({**content, "state": state, "param_groups": groups})
    # torch casts state to its parameter's dtype. State with a wider dtype must be restored without the cast.
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, entries in state.items():
        mine = optimizer.state[parameters[number]] if isinstance(number, int) else {}
        for name, value in entries.items() if mine else ():
            if isinstance(value, Tensor) and isinstance(mine.get(name), Tensor) and mine[name].dtype != value.dtype:
                mine[name] = value.to(mine[name].device)
    held = {id(parameter) for parameter in parameters}
    found: dict[str, SiteModule] = sites(root)
    for site in found.values():
        if id(site.original) in held:
            site.optimizers.add(optimizer)  # so that a refresh before the next step finds its state


def _numbers(root: nn.Module, optimizer: torch.optim.Optimizer) -> list[int]:
    """The numbers of the trained parameters in a state dict of the optimizer."""
    trained = {id(one) for group in trained_parameters(root, optimizer) for one in group}
    every = [one for group in optimizer.param_groups for one in group["params"]]
    return [number for number, one in enumerate(every) if id(one) in trained]
