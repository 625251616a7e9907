"""Make and initialise a model on the meta device, module by module; each tensor is reported once it is final."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from topkast.compiler.convert.check import check_finite
from topkast.runtime.errors import ModelError

from .access import Watch
from .rehearse import REMEDY, Plan, Step
from .tensors import current, like


def materialise(plan: Plan, device: torch.device, finished: Callable[[str], None]) -> None:
    """Give every tensor of the plan its values.

    Args:
        plan: from :func:`topkast.compiler.convert.meta.rehearse.rehearse`.
        device: where tensors are made.
        finished: called with the name of each tensor that no later initialisation touches, so that the tensor can be
            freed before the next tensor is made.

    Raises:
        ModelError: an initialisation failed, or left a tensor without values.
    """
    watch, made = Watch(), set[str]()
    for name in plan.owners:
        watch.follow(name, current(name, plan.owners))
    for step in plan.steps:
        try:
            _turn(plan, step, device, watch, made)
            for name in step.final:
                watch.forget(name)
                finished(name)
        except Exception as error:
            raise ModelError(
                f"{step.path or 'model'} ({type(step.module).__name__}): initialising it failed with "
                f"{type(error).__name__}: {error}. The model is on the meta device again"
            ) from error


def _turn(plan: Plan, step: Step, device: torch.device, watch: Watch, made: set[str]) -> None:
    """Make the tensors that the step needs, run its initialisers, and check the tensors that are final afterwards."""
    for name in step.made:
        fresh = like(current(name, plan.owners), device)
        for module, attribute in plan.owners[name]:
            setattr(module, attribute, fresh)
        watch.forget(name)
        watch.follow(name, fresh)
        made.add(name)
    with watch, torch.no_grad():
        for call in step.calls:
            call(step.module)
    if early := watch.touched - made:
        raise ModelError(f"{', '.join(sorted(early))} is touched before it is made, which it was not on meta tensors")
    for name in step.final:
        tensor = current(name, plan.owners)
        watch.follow(name, tensor)
        _check(name, tensor, name in watch.written, device)


def _check(name: str, tensor: Tensor, written: bool, device: torch.device) -> None:
    if tensor.device.type != device.type:
        raise ModelError(f"{name}: its values were made on {tensor.device}, not on {device}")
    if tensor.numel() and not written:  # the values of integers do not show whether they were written
        raise ModelError(f"{name}: nothing was written to it; {REMEDY}")
    if isinstance(tensor, nn.Parameter):
        check_finite(name, tensor)
    elif tensor.is_floating_point() and bool(
        tensor.isnan().any()
    ):  # infinities are allowed, for example in an attention mask
        raise ModelError(f"{name}: parts of it were not written to, or with NaN; {REMEDY}")
