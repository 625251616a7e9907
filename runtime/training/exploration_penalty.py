"""The paper's penalty: it joins the gradient that an optimizer's step uses, once, whoever computes that gradient.

Without a closure the gradient is there before the step. A closure computes it inside of the step, possibly several
times: each time it has returned, the penalty of θ as it is then joins, as if it were part of the loss.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from topkast.runtime.state.site import Site

Step = tuple[tuple[Any, ...], dict[str, Any]]  # what an optimizer's step is called with

# The gradient a step was about to use, and its version then.
_used: weakref.WeakKeyDictionary[Site, tuple[weakref.ref[Tensor], int]] = weakref.WeakKeyDictionary()


def once_computed(args: tuple[Any, ...], kwargs: dict[str, Any], then: Callable[[], None]) -> Step | None:
    """Let ``then`` run as soon as a step's gradients are there: now, or after its closure.

    Args:
        args, kwargs: what ``Optimizer.step`` was called with, the optimizer first.
        then: is called once, or as often as the closure.

    Returns:
        What to call it with instead, None if there is no closure.
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


@torch._dynamo.disable
@torch.no_grad()
def add_penalty(optimizer: torch.optim.Optimizer, sites: Iterable[Site]) -> None:
    """λθ on A and λθ / D_A on B \\ A are added to the gradients, which the optimizer is about to use."""
    for site in sites:
        grad = site.original.grad
        if grad is None:
            continue
        gradient, version = _used.get(site, (None, None))
        if gradient is not None and gradient() is grad and version == grad._version:
            continue  # an optimizer that makes another one's step has added it
        if site.rule.exploration_l2:
            _penalise(site, grad, getattr(optimizer, "grad_scale", None))
        _used[site] = weakref.ref(grad), grad._version


def _penalise(site: Site, grad: Tensor, scale: Tensor | None) -> None:
    """``scale``: what the gradient is multiplied by, set while a fused optimizer, which divides by it, makes a step."""
    density = site.n_fwd / site.geometry.units
    factor = torch.full_like(site.original, site.rule.exploration_l2)
    factor.view(-1)[site.explored()] = site.rule.exploration_l2 / density
    grad.add_(site.original * (factor if scale is None else factor * scale))


def had_gradient(site: Site) -> bool:
    """At the end of a step: whether the site had a gradient. An optimizer leaves alone what has none; some drop the
    gradient as soon as they have used it."""
    return _used.pop(site, None) is not None or site.original.grad is not None
