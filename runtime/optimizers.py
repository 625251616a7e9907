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

from .decay import decay_explored
from .eager_steps import notice_eager_step
from .follow import check_elementwise, claim
from .record import SITES
from .renew import renew_due
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
    notice_eager_step(site for site, _ in held)


def advance(site: Site, lr: float | Tensor | None) -> None:
    """One optimizer step is complete: decay B \\ A, unless its rate is not known, and move the clock."""
    if site.due:
        # A whole step went by without its refresh: the forward was compiled by a backend that is not ours.
        site.late += 1
        at_home([site], renew_due)
    if lr is not None:
        decay_explored(site, lr)
    site.step += 1
    if site.method.at_step_end and site.due:
        site.refresh()


@functools.cache
def install_hooks() -> None:
    """Register the two hooks, and the one that sees what a model is put into, once in a process."""
    register_optimizer_step_pre_hook(_before_step)
    register_optimizer_step_post_hook(_after_step)
    register_module_module_registration_hook(on_registration)
