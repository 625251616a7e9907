"""The optimizer hooks that make an unchanged training loop sparse.

There are two global hooks around ``Optimizer.step``. Before the step (or inside the step, if it has a closure) the
paper's penalty is added to the gradient. After the step the site's clock advances and the explored weights decay. If
optimizer steps are nested, this happens once for all of them.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from topkast.runtime.devices import check_step_not_captured
from topkast.runtime.optimizers.probe import check_probed
from topkast.runtime.state.content.optimizer_state import check_elementwise, prepare_state
from topkast.runtime.state.content.parts import carry_out
from topkast.runtime.state.find_sites import alive
from topkast.runtime.state.refresh import refresh, refresh_by_interval
from topkast.runtime.state.sharding.compare import compare
from topkast.runtime.state.sharding.part import at_work
from topkast.runtime.state.site_module import SiteModule
from topkast.runtime.state.when import count_gradients, due, due_at_step_end, due_before_step, trained
from topkast.runtime.training.sharded.refused import refuse_optimizer
from topkast.runtime.training.sharded.wrappers import on_registration

from .eager_steps import notice_eager_step
from .exploration_decay import prepare_decay
from .exploration_penalty import Step, add_penalty, had_gradient, once_computed
from .steps import begin, end
from .undecayed import notice_undecayed


def _held(optimizer: torch.optim.Optimizer) -> Iterator[tuple[SiteModule, dict[str, Any]]]:
    """The sites whose values this optimizer updates, each with its parameter group."""
    sites = {id(site.original): site for site in alive()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in sites:
                yield sites[id(parameter)], group


def _skipped(optimizer: torch.optim.Optimizer) -> bool:
    # A fused optimizer under GradScaler is called even if it will skip the step. In this case found_inf is set.
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


@torch._disable_dynamo
@torch.no_grad()
def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Step | None:
    held = list(_held(optimizer))
    sites = [site for site, _ in held]
    if not sites:
        return None
    if getattr(optimizer, "world_size", 2) > 1:  # with one rank, the sharded optimizer updates every weight itself
        refuse_optimizer(optimizer)
    check_step_not_captured()
    for site in sites:
        site.check_whole()
        if site.shard is not None and not site.compared:
            compare(site, site.shard)
            site.count_compared()
    check_probed(optimizer, [(site.name, site.original) for site in sites])
    for site in sites:
        prepare_state(optimizer, at_work(site) if site.unread_state_index is not None else site)
    own = begin(optimizer, sites)
    if own:
        notice_undecayed(optimizer, held)
    # No forward has used these sites since a refresh became due: choose their sets from θ before this step changes θ.
    refresh_by_interval(due_before_step(own))
    return once_computed(args, kwargs, functools.partial(add_penalty, optimizer, sites))


@torch._disable_dynamo
@torch.no_grad()
def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    own = set(map(id, end(optimizer)))
    every = list(_held(optimizer))
    held = [(site, group.get("lr"), had_gradient(site)) for site, group in every if id(site) in own]
    if _skipped(optimizer):
        return
    if every and _state_changed(optimizer, [site for site, *_ in held]):
        check_elementwise(optimizer, [site for site, _ in every])
        _checked[optimizer] = _size(optimizer)
    advance([(site, lr if moved else None) for site, lr, moved in held])
    notice_eager_step(site for site, *_ in held)


# Optimizer -> how many parameters and how many entries its state had when it was checked.
_checked: weakref.WeakKeyDictionary[torch.optim.Optimizer, tuple[int, int]] = weakref.WeakKeyDictionary()


def _state_changed(optimizer: torch.optim.Optimizer, sites: Sequence[SiteModule]) -> bool:
    """Whether the optimizer's state must be checked: entries came or went, or a refresh is going to move it.

    Looking at every tensor of every parameter in every step would be the largest part of a hook's time.
    """
    same = _checked.get(optimizer) == _size(optimizer)
    return not same or any(due_at_step_end(site) or due(site) for site in sites)


def _size(optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    state = optimizer.state
    return len(state), sum(len(entry) for entry in state.values() if isinstance(entry, dict))


def advance(steps: Sequence[tuple[SiteModule, float | Tensor | None]]) -> None:
    """Finish one optimizer step: decay B \\ A if the learning rate is known, and advance the clock. If the call is
    interrupted, all sites have made the step or none has.

    Args:
        steps: the sites of the step, each with the learning rate of the step; None if nothing must decay.
    """
    for site, _ in steps:
        # If the site is due here, a whole step went by without its refresh: no forward used the site, or a backend
        # that is not ours compiled its graph.
        if due(site):
            late = trained(site)
            refresh_by_interval([site])
            if late:
                site.count_late_refresh()
    decay = prepare_decay((site, lr) for site, lr in steps if lr is not None)
    clocks = [(site, site.step + 1) for site, _ in steps]

    def step() -> None:
        for part in decay:
            part()
        for site, number in clocks:
            site.count_step(number)
            count_gradients(site)

    carry_out([site for site, _ in steps], step)
    refresh([site for site, _ in steps if due_at_step_end(site)])


def install_hooks() -> None:
    """Register the two optimizer hooks and the module hook (see ``on_registration``) once in a process."""
    # Look into torch's table instead of remembering a flag: an interrupt could come between hook and flag.
    if _before_step not in torch_optimizer._global_optimizer_pre_hooks.values():
        register_optimizer_step_pre_hook(_before_step)
    if _after_step not in torch_optimizer._global_optimizer_post_hooks.values():
        register_optimizer_step_post_hook(_after_step)
    if on_registration not in torch_module._global_module_registration_hooks.values():
        torch_module.register_module_module_registration_hook(on_registration)
