"""What optimizers need so that an unchanged training loop is a sparse one.

Two global hooks around ``Optimizer.step``: before it (or inside of it, if it gets a closure) the penalty of the paper
joins the gradient; after it the site's clock moves and the explored weights decay, once for all steps that stand inside
each other.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from topkast.runtime.state.optimizer_state import check_elementwise, claim
from topkast.runtime.state.refresh import refresh, renew_due
from topkast.runtime.state.registry import alive
from topkast.runtime.state.site import Site
from topkast.runtime.training.sharded.refused import refuse_optimizer
from topkast.runtime.training.sharded.wrappers import on_registration

from .eager_steps import notice_eager_step
from .exploration_decay import decay_explored
from .exploration_penalty import Step, add_penalty, had_gradient, once_computed
from .probe import check_probed
from .steps import begin, end
from .undecayed import notice_undecayed


def _held(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Site, dict[str, Any]]]:
    """Sites whose values this optimizer updates, with their parameter group."""
    sites = {id(site.original): site for site in alive()}
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
def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Step | None:
    held = list(_held(optimizer))
    sites = [site for site, _ in held]
    if not sites:
        return None
    if getattr(optimizer, "world_size", 2) > 1:  # on one rank, the only one that shards makes every weight's step
        refuse_optimizer(optimizer)
    for site in sites:
        site.check_whole()
    check_probed(optimizer, sites)
    for site in sites:
        claim(optimizer, site)
    own = begin(optimizer, sites)
    if own:
        notice_undecayed(optimizer, held)
    # No forward has read them since they became due: their sets are those of θ as it is, before this step moves it.
    refresh([site for site in own if site.due and not _trained(site)], renew_due)
    return once_computed(args, kwargs, functools.partial(add_penalty, optimizer, sites))


@torch._dynamo.disable
@torch.no_grad()
def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    own = set(map(id, end(optimizer)))
    every = list(_held(optimizer))
    held = [(site, group.get("lr"), had_gradient(site)) for site, group in every if id(site) in own]
    if _skipped(optimizer):
        return
    if every:
        check_elementwise(optimizer, [site for site, _ in every])
    for site, lr, moved in held:
        advance(site, lr if moved else None)
    notice_eager_step(site for site, *_ in held)


def _trained(site: Site) -> bool:
    """Whether a backward has computed a gradient of the site since its last step."""
    return gradients(site) != _counted.get(site, 0)


def gradients(site: Site) -> int:
    """How many products have computed a gradient of the site or through it, ever."""
    return sum(runs for (product, *_), runs in site.ran.items() if product.endswith("gradient"))


_counted: weakref.WeakKeyDictionary[Site, int] = weakref.WeakKeyDictionary()  # at the end of the last step


def advance(site: Site, lr: float | Tensor | None) -> None:
    """One optimizer step is complete: decay B \\ A, unless its rate is not known, and move the clock.

    Args:
        lr: the step's; None where nothing is to decay.
    """
    if site.due:
        # A whole step went by without its refresh: no forward used the site, or one that was compiled by a backend
        # that is not ours.
        site.late += _trained(site)
        refresh([site], renew_due)
    if lr is not None:
        decay_explored(site, lr)
    site.alone = True
    site.step += 1
    _counted[site] = gradients(site)
    if site.method.at_step_end and site.due:
        site.refresh()


def install_hooks() -> None:
    """Register the two hooks, and the one that sees what a model is put into, once in a process."""
    # Asked of torch and not remembered here: an interrupt could come between the two.
    if _before_step not in torch_optimizer._global_optimizer_pre_hooks.values():
        register_optimizer_step_pre_hook(_before_step)
    if _after_step not in torch_optimizer._global_optimizer_post_hooks.values():
        register_optimizer_step_post_hook(_after_step)
    if on_registration not in torch_module._global_module_registration_hooks.values():
        torch_module.register_module_module_registration_hook(on_registration)
