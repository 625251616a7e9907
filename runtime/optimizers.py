"""What optimizers need so that an unchanged training loop is a sparse one.

Two global hooks around ``Optimizer.step``: before it the penalty of the paper joins the gradient; after it the site's
clock moves and the explored weights decay.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_module_registration_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from .follow import check_elementwise, claim
from .record import SITES
from .renew import renew_due
from .rule import DECAY, MOST_DECAY
from .site import Site
from .stream import at_home
from .wrappers import on_registration


def _held(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Site, dict[str, Any]]]:
    """Sites whose values this optimizer updates, with their parameter group."""
    sites = {id(site.original): site for site in list(SITES.values())}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in sites:
                yield sites[id(parameter)], group


def _skipped(optimizer: torch.optim.Optimizer) -> bool:
    # A fused optimizer under GradScaler is called even when it will skip; found_inf then says so.
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


@torch._dynamo.disable
@torch.no_grad()
def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for site, _ in _held(optimizer):
        claim(optimizer, site)
        strength, grad = site.rule.exploration_l2, site.original.grad
        if strength == 0 or grad is None:
            continue
        density = site.n_fwd / site.geometry.units
        factor = torch.full_like(site.original, strength)
        factor[site.explored()] = strength / density
        scale = getattr(optimizer, "grad_scale", None)  # set while a fused optimizer holds scaled gradients
        grad.add_(site.original * (factor if scale is None else factor * scale))


@torch._dynamo.disable
@torch.no_grad()
def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if _skipped(optimizer):
        return
    held = list(_held(optimizer))
    if held:
        check_elementwise(optimizer, [site for site, _ in held])
    for site, group in held:
        advance(site, group.get("lr"))


def advance(site: Site, lr: float | Tensor | None) -> None:
    """One optimizer step is complete: decay B \\ A by ``lr * exploration_decay``, at most
    :data:`MOST_DECAY`, and move the clock.

    A decay that is None is :data:`DECAY` over the size of the weights now, :meth:`Site.size`.
    """
    if site.due:
        # A whole step went by without its refresh: the forward was compiled by a backend that is not ours.
        site.late += 1
        at_home([site], renew_due)
    asked = site.rule.exploration_decay
    # As an optimizer's own weight decay, it leaves alone what is frozen.
    if asked != 0 and lr is not None and not site.stopped and site.original.requires_grad:
        decay = lr * (DECAY / site.size() if asked is None else asked)
        if isinstance(decay, Tensor):
            site.scale_explored(1 - decay.clamp(max=MOST_DECAY))
        else:
            site.decayed_by = decay  # of a tensor it would be a sync, for the sake of a warning
            site.scale_explored(1 - min(decay, MOST_DECAY))
    site.step += 1
    if site.method.at_step_end and site.due:
        site.refresh()


@functools.cache
def install_hooks() -> None:
    """Register the two hooks, and the one that sees what a model is put into, once in a process."""
    register_optimizer_step_pre_hook(_before_step)
    register_optimizer_step_post_hook(_after_step)
    register_module_module_registration_hook(on_registration)
