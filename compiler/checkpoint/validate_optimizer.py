"""Check the optimizer that is given, and the optimizer's state in a file, before anything is loaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from topkast.runtime.errors import ConfigError
from topkast.runtime.state.model import sites

from .validate import kind_of, refuse

# Their state has other shapes than the parameters. Any other optimizer of torch keeps tensors of a parameter's shape,
# and numbers.
OTHER_SHAPES = ("Adafactor", "LBFGS")
# What is a number, or a tensor of one, in the state of an optimizer of torch; all else is a tensor, or None here.
NUMBERS = ("step", "eta", "mu", "mu_product")
MAY_BE_NONE = ("momentum_buffer",)


def check_given(root: nn.Module, optimizer: Any) -> None:
    """Raise ConfigError if this is no optimizer, or if it trains no parameter of the model."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"optimizer: a {type(optimizer).__name__}, must be a torch.optim.Optimizer")
    own = {id(parameter) for parameter in root.parameters()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if held and not any(id(parameter) in own for parameter in held):
        raise ConfigError(f"optimizer: this {type(optimizer).__name__} holds no parameter of the model")


def check_content(
    path: Path, root: nn.Module, optimizer: torch.optim.Optimizer, content: Any, groups: list[list[nn.Parameter]]
) -> None:
    """Raise CheckpointError if an optimizer's unpacked state dict has another form than the optimizer's own.

    Args:
        path: the path of the file.
        root: the model.
        optimizer: the optimizer that will load the state.
        content: the state dict, with the numbers of :func:`.optimizer_part.pack_optimizer`.
        groups: the trained parameters of each group.
    """
    form = isinstance(content, dict) and isinstance(content.get("state"), dict)
    given = content.get("param_groups") if form else None
    form = isinstance(given, list) and all(isinstance(group, dict) for group in given) and len(given) == len(groups)
    refuse(path, "the optimizer's state is broken", [] if form else ["it is no state dict of these groups"])
    wrong: list[str] = []
    of_torch = type(optimizer).__module__.startswith("torch.optim") and type(optimizer).__name__ not in OTHER_SHAPES
    for number, (theirs, mine) in enumerate(zip(given or (), optimizer.param_groups, strict=True)):
        for name, value in mine.items():
            if name != "params" and name not in theirs:
                # A setting that a later version of torch has added is None or False by default.
                wrong += [f"group {number}: no {name}"] if value not in (None, False) else []
            elif name != "params" and not _is_alike(value, theirs[name], of_torch):
                wrong.append(f"group {number}: {name}={theirs[name]!r}")
    parameters = [parameter for group in groups for parameter in group]
    sparse = {id(site.original) for site in sites(root).values()}
    for number, entries in content["state"].items():
        if not isinstance(number, int):
            continue
        if not (0 <= number < len(parameters) and isinstance(entries, dict)):
            wrong.append(f"state of parameter {number}, of {len(parameters)}")
            continue
        parameter = parameters[number]
        strict = of_torch or id(parameter) in sparse
        own = optimizer.state.get(parameter, {})
        wrong += [f"parameter {number}: no {name}" for name in own if name not in entries]
        for name, value in entries.items():
            if name == "step" and not _is_count(value):
                wrong.append(f"parameter {number}: step={value!r}")
            elif not isinstance(value, Tensor) and not _may_be_plain(name, value, own.get(name), of_torch):
                wrong.append(f"parameter {number}: {name}={value!r}")
            elif isinstance(value, Tensor) and not _fits(value, parameter, own.get(name), strict):
                wrong.append(f"parameter {number}: {name} is {kind_of(value)}, the parameter {kind_of(parameter)}")
    refuse(path, "the optimizer's state does not fit", wrong)


def _may_be_plain(name: Any, value: Any, own: Any, of_torch: bool) -> bool:
    """Whether what is no tensor can stand in the state of a parameter."""
    if of_torch and not (name in NUMBERS or (name in MAY_BE_NONE and value is None)):
        return False
    return value is None or not isinstance(own, Tensor) or own.dim() == 0


def _fits(value: Tensor, parameter: Tensor, own: Any, strict: bool) -> bool:
    if isinstance(own, Tensor) and own.shape == value.shape:
        # A count may be of another dtype. An optimizer that has stepped cannot step with other state of another dtype.
        alike = own.is_floating_point() == value.is_floating_point()
        return alike if own.dim() == 0 else own.dtype == value.dtype
    if not strict:
        return not isinstance(own, Tensor)
    if value.shape != parameter.shape:
        return value.numel() == 1
    return not parameter.is_floating_point() or value.is_floating_point()


def _is_count(value: Any) -> bool:
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            return False
        value = value.item()
    return isinstance(value, (int, float)) and 0 <= value < math.inf and value == int(value)


def _is_alike(mine: Any, theirs: Any, of_torch: bool) -> bool:
    """Whether a setting of the file can stand for the optimizer's own. torch's own numbers are never None."""
    if theirs is None:
        return not of_torch or not isinstance(mine, (int, float, Tensor, tuple)) or isinstance(mine, bool)
    if mine is None:
        return True
    if isinstance(mine, (bool, int, float, Tensor)):
        if isinstance(theirs, Tensor):
            return theirs.numel() == 1 and not theirs.is_complex() and not bool(theirs.isnan())
        return isinstance(theirs, (bool, int, float)) and theirs == theirs
    if isinstance(mine, (list, tuple)):
        fits = isinstance(theirs, (list, tuple)) and len(theirs) == len(mine)
        return fits and all(_is_alike(*pair, of_torch) for pair in zip(mine, theirs, strict=True))
    return isinstance(theirs, type(mine))
