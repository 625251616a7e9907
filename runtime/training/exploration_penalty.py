"""The paper's penalty: it is added once to the gradient that an optimizer's step uses.

Without a closure the gradient exists before the step. A closure computes the gradient inside the step, possibly several
times: after each call of the closure, the penalty of the current θ is added, as if the penalty were part of the loss.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from topkast.runtime.layout import explored_values
from topkast.runtime.state.content.shards.shard import local
from topkast.runtime.state.site_module import SiteModule

Step = tuple[tuple[Any, ...], dict[str, Any]]  # the arguments of an optimizer's step

# The gradient that a step is about to use, and its version at that time.
_used: weakref.WeakKeyDictionary[SiteModule, tuple[weakref.ref[Tensor], int]] = weakref.WeakKeyDictionary()


def once_computed(args: tuple[Any, ...], kwargs: dict[str, Any], then: Callable[[], None]) -> Step | None:
    """Call ``then`` as soon as a step's gradients are computed: now, or after each call of the closure.

    Args:
        args, kwargs: the arguments of ``Optimizer.step``, the optimizer first.
        then: is called once, or once for each call of the closure.

    Returns:
        The arguments to use instead; None if there is no closure.
    """
    names: list[Any] = [*range(1, len(args)), *kwargs]
    given = {name: args[name] if isinstance(name, int) else kwargs[name] for name in names}
    place = next((name for name, value in given.items() if callable(value)), None)
    if place is None:
        then()
        return None
    closure = given[place]

    @functools.wraps(closure)
    def computed(*inputs: Any, **options: Any) -> Any:
        result = closure(*inputs, **options)
        then()
        return result

    if isinstance(place, int):
        return (*args[:place], computed, *args[place + 1 :]), kwargs
    return args, {**kwargs, place: computed}


@torch._disable_dynamo
@torch.no_grad()
def add_penalty(optimizer: torch.optim.Optimizer, sites: Iterable[SiteModule]) -> None:
    """Add λθ on A and λθ / D_A on B \\ A to the gradients that the optimizer will use."""
    for site in sites:
        grad = site.original.grad
        if grad is None:
            continue
        gradient, version = _used.get(site, (None, None))
        if gradient is not None and gradient() is grad and version == _version(grad):
            continue  # an outer optimizer calls this optimizer's step and has already added the penalty
        if site.rule.exploration_l2:
            _penalise(site, grad, getattr(optimizer, "grad_scale", None))
        _used[site] = weakref.ref(grad), _version(grad)


def _version(grad: Tensor) -> int:
    return grad._version + (0 if local(grad) is grad else local(grad)._version)


def _penalise(site: SiteModule, grad: Tensor, scale: Tensor | None) -> None:
    """Add the penalty. ``scale``: the factor in the gradient, by which a fused optimizer divides; set during its
    step."""
    density = site.units_in_a / site.geometry.units
    values, index = site.stored()
    factor = torch.full_like(values, site.rule.exploration_l2)
    factor[explored_values(index, site.geometry)] = site.rule.exploration_l2 / density
    grad = local(grad)
    grad.add_((values * (factor if scale is None else factor * scale)).view_as(grad))


def had_gradient(site: SiteModule) -> bool:
    """At the end of a step: whether the site had a gradient. An optimizer does not change parameters without a
    gradient. Some optimizers delete the gradient after they have used it."""
    return _used.pop(site, None) is not None or site.original.grad is not None
