"""The only place that decides when a refresh is due, and when a refresh is safe."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import replace

import torch

from topkast.runtime.methods.intervals import next_end

from .site import Site

_counted: weakref.WeakKeyDictionary[Site, int] = weakref.WeakKeyDictionary()  # gradients at the end of the last step


def due(site: Site) -> bool:
    """Whether, after the last optimizer step, the site's sets must be renewed."""
    return not site.for_inference and site.method.due(site.set_state())


def next_refresh(site: Site) -> int | None:
    """The number of completed steps at which the site's next refresh is due: the current number if a refresh is due
    already, None if no refresh will come."""
    state = site.set_state()
    moments = (state.rule.stop_exploring_after, state.rule.fwd_reached_after)
    steps = sorted({state.step, next_end(state.rule, state.step), *(max(state.step, at or 0) for at in moments)})
    due_at = (step for step in steps if site.method.due(replace(state, step=step)))
    return None if site.for_inference else next(due_at, None)


def any_due(sites: Iterable[Site]) -> bool:
    """Whether a refresh of at least one of the given sites is due."""
    return any(map(due, sites))


def due_before_forward(sites: Iterable[Site]) -> list[Site]:
    """The sites that a forward must refresh first. A forward refreshes only if it will be differentiated. These never
    refresh: a recomputation in a backward, ``torch.jit.trace``, a transform of ``torch.func``, and a call in which
    ``functional_call`` has put other tensors in a site's place."""
    transformed = torch._C._are_functorch_transforms_active() or torch._C._is_tracing()
    if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1 or transformed:
        return []
    return [site for site in sites if due(site) and site.undisturbed() and site.shard is None]


def due_before_step(sites: Iterable[Site]) -> list[Site]:
    """The sites that an optimizer must refresh before its step: no forward has used them since the refresh became
    due."""
    return [site for site in sites if due(site) and not trained(site)]


def due_at_step_end(site: Site) -> bool:
    """Whether a refresh is due now that must be done at the end of a step: the method asks for this, or the site is
    sharded, because before a forward FSDP2 may have gathered its values already."""
    return (site.method.at_step_end or site.shard is not None) and due(site)


def in_background(site: Site) -> bool:
    """Whether a refresh uses the sets that a thread has chosen. The end of exploration does not wait for these sets."""
    ends = site.exploration_ended(site.step) and not site.exploration_ended(site.refreshed_at)
    return site.rule.refresh_in_background and not ends


def trained(site: Site) -> bool:
    """Whether a backward has computed a gradient for the site since the site's last step."""
    return gradients(site) != _counted.get(site, 0)


def count_gradients(site: Site) -> None:
    """Record the number of gradients at the end of a step of the site."""
    _counted[site] = gradients(site)


def gradients(site: Site) -> int:
    """How many products have computed a gradient of the site or through the site, since the start."""
    return sum(runs for (product, *_), runs in site.ran.items() if product.endswith("gradient"))
