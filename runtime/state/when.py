"""The only place that decides when a refresh is due, and where it is safe."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import torch

from .site import Site

_counted: weakref.WeakKeyDictionary[Site, int] = weakref.WeakKeyDictionary()  # gradients at the end of the last step


def due(site: Site) -> bool:
    """Whether an optimizer step has carried the site past a point where its sets are to be renewed."""
    return site.method.due(site.set_state())


def any_due(sites: Iterable[Site]) -> bool:
    """Whether a refresh is due of at least one of these."""
    return any(map(due, sites))


def due_before_forward(sites: Iterable[Site]) -> list[Site]:
    """Those that a forward is to refresh first. Only a forward that will be differentiated refreshes: never a backward
    that recomputes, nor ``torch.jit.trace``, a transform of ``torch.func``, or a call in which ``functional_call`` has
    put other tensors in a site's place."""
    transformed = torch._C._are_functorch_transforms_active() or torch._C._is_tracing()
    if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1 or transformed:
        return []
    return [site for site in sites if due(site) and site.undisturbed()]


def due_before_step(sites: Iterable[Site]) -> list[Site]:
    """Those that an optimizer's step is to refresh before it moves θ: no forward has read them since they were due."""
    return [site for site in sites if due(site) and not trained(site)]


def overdue_after_step(site: Site) -> bool:
    """Whether a whole step went by without the refresh that was due before it: no forward used the site, or its graph
    was compiled by a backend that is not ours."""
    return due(site)


def due_at_step_end(site: Site) -> bool:
    """Whether the method wants its refresh at the end of a step, and this is one."""
    return site.method.at_step_end and due(site)


def in_background(site: Site) -> bool:
    """Whether a refresh takes the sets that a thread has chosen. The end of exploration does not wait for them."""
    ends = site.exploration_ended(site.step) and not site.exploration_ended(site.refreshed_at)
    return site.rule.refresh_in_background and not ends


def trained(site: Site) -> bool:
    """Whether a backward has computed a gradient of the site since its last step."""
    return gradients(site) != _counted.get(site, 0)


def count_gradients(site: Site) -> None:
    """A step of the site has ended."""
    _counted[site] = gradients(site)


def gradients(site: Site) -> int:
    """How many products have computed a gradient of the site or through it, ever."""
    return sum(runs for (product, *_), runs in site.ran.items() if product.endswith("gradient"))
