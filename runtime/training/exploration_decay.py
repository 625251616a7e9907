"""The decoupled exploration penalty: after each step the weights of B \\ A decay.

Explored weights have no effect on the loss, so the loss does not limit them. Without decay they would grow larger than
the weights of A.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from topkast.runtime.kernels.explored import scale_explored, square_sum_of_a
from topkast.runtime.state.sharding.sums import summed
from topkast.runtime.state.site_module import SiteModule

# The largest share of an explored weight that one step may remove. With a learning rate as for SGD, lr *
# exploration_decay could remove explored weights completely, and a value above 1 would change their sign.
MOST_DECAY = 0.25

# The default decay, multiplied by the size of a weight in A. Under Adam, a gradient with a constant sign moves a weight
# by lr in each step. This decay then holds the weight at a quarter of that size, for every scale of the model.
DECAY = 4.0


def decay_explored(steps: Iterable[tuple[SiteModule, float | Tensor]]) -> None:
    """θ ← θ - min(lr * ``exploration_decay``, :data:`MOST_DECAY`) θ on B \\ A.

    If ``exploration_decay`` is None, the decay is :data:`DECAY` divided by the current size of A's weights. Frozen
    weights do not decay, as with an optimizer's own weight decay.

    Args:
        steps: sites, each with the learning rate of its step.
    """
    decaying = [(site, lr) for site, lr in steps if _decays(site)]
    sizes = _sizes([site for site, _ in decaying if site.rule.exploration_decay is None])
    for site, lr in decaying:
        asked = site.rule.exploration_decay
        decay = lr * (DECAY / sizes[site] if asked is None else asked)
        values, index = site.stored()
        if isinstance(decay, Tensor):
            scale_explored(values, index, site.geometry, 1 - decay.clamp(max=MOST_DECAY))
        else:
            site.record_decay(decay)  # not for a tensor: it would need a sync, only for a warning
            scale_explored(values, index, site.geometry, 1 - min(decay, MOST_DECAY))


def _decays(site: SiteModule) -> bool:
    return site.rule.exploration_decay != 0 and not site.exploration_ended() and site.original.requires_grad


def _sizes(sites: list[SiteModule]) -> dict[SiteModule, Tensor]:
    """The size of a weight in A of each site: the root mean square of A's weights, a positive scalar in float64."""
    totals = {site: square_sum_of_a(*site.stored(), site.geometry) for site in sites}
    return {site: _root_mean(site, total) for site, total in summed(totals).items()}


def _root_mean(site: SiteModule, total: Tensor) -> Tensor:
    smallest = torch.finfo(site.original.dtype).tiny
    return (total / (site.n_fwd * site.geometry.unit)).sqrt().clamp(min=smallest)
