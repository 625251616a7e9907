"""The decoupled exploration penalty: after each step the weights of B \\ A decay.

Nothing that is explored has an effect on the loss, so nothing else holds it, and it would grow past A.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topkast.runtime.layout import slot_units
from topkast.runtime.native import densified
from topkast.runtime.state.site import Site

# Share of an explored weight that one step takes away at most: with a rate like SGD's, lr * exploration_decay would
# wipe out what was explored, and turn its sign above 1.
MOST_DECAY = 0.25

# The decay where none is asked for, over the size of a weight in A: a gradient that pulls one way moves a weight by lr
# a step under Adam, and this decay holds it at a quarter of that size, whatever the scale of the model is.
DECAY = 4.0


def decay_explored(site: Site, lr: float | Tensor) -> None:
    """θ ← θ - min(lr * ``exploration_decay``, :data:`MOST_DECAY`) θ on B \\ A.

    A decay that is None is :data:`DECAY` over the size of A's weights now. As an optimizer's own weight decay, it
    leaves alone what is frozen.
    """
    asked = site.rule.exploration_decay
    if asked == 0 or site.stopped or not site.original.requires_grad:
        return
    decay = lr * (DECAY / size(site) if asked is None else asked)
    if isinstance(decay, Tensor):
        scale_explored(site, 1 - decay.clamp(max=MOST_DECAY))
    else:
        site.decayed_by = decay  # of a tensor it would be a sync, for the sake of a warning
        scale_explored(site, 1 - min(decay, MOST_DECAY))


def size(site: Site) -> Tensor:
    """Of a weight in A: their root mean square, a positive scalar in float64."""
    values = site.values
    if _native(values):
        total = densified.squares(values, site.index, site.geometry)
    else:
        in_a = slot_units(site.index, site.geometry)[1].repeat_interleave(site.geometry.unit)
        total = torch.where(in_a, values.double(), 0.0).square().sum()
    return (total / (site.n_fwd * site.geometry.unit)).sqrt().clamp(min=torch.finfo(values.dtype).tiny)


def scale_explored(site: Site, factor: float | Tensor) -> None:
    """θ ← factor · θ on B \\ A."""
    values = site.values
    if _native(values):
        densified.scale_explored(values, site.index, site.geometry, float(factor))
        torch.autograd.graph.increment_version(values)
    else:
        values.copy_(torch.where(site.explored(), values * factor, values))


def _native(values: Tensor) -> bool:
    return densified.fits(values) and values.is_contiguous()
