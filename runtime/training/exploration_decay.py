"""The decoupled exploration penalty: after each step the weights of B \\ A decay.

Nothing that is explored has an effect on the loss, so nothing else holds it, and it would grow past A.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topkast.runtime.kernels.explored import scale_explored, square_sum_of_a
from topkast.runtime.state.site_module import SiteModule

# Share of an explored weight that one step takes away at most: with a rate like SGD's, lr * exploration_decay would
# wipe out what was explored, and turn its sign above 1.
MOST_DECAY = 0.25

# The decay where none is asked for, over the size of a weight in A: a gradient that pulls one way moves a weight by lr
# a step under Adam, and this decay holds it at a quarter of that size, whatever the scale of the model is.
DECAY = 4.0


def decay_explored(site: SiteModule, lr: float | Tensor) -> None:
    """θ ← θ - min(lr * ``exploration_decay``, :data:`MOST_DECAY`) θ on B \\ A.

    A decay that is None is :data:`DECAY` over the size of A's weights now. As an optimizer's own weight decay, it
    leaves alone what is frozen.
    """
    asked = site.rule.exploration_decay
    if asked == 0 or site.exploration_ended() or not site.original.requires_grad:
        return
    decay = lr * (DECAY / size(site) if asked is None else asked)
    if isinstance(decay, Tensor):
        scale_explored(site.values, site.index, site.geometry, 1 - decay.clamp(max=MOST_DECAY))
    else:
        site.record_decay(decay)  # of a tensor it would be a sync, for the sake of a warning
        scale_explored(site.values, site.index, site.geometry, 1 - min(decay, MOST_DECAY))


def size(site: SiteModule) -> Tensor:
    """Of a weight in A: their root mean square, a positive scalar in float64."""
    values = site.values
    total = square_sum_of_a(values, site.index, site.geometry)
    return (total / (site.n_fwd * site.geometry.unit)).sqrt().clamp(min=torch.finfo(values.dtype).tiny)
