"""The decoupled exploration penalty: after each step the weights of B \\ A decay.

Explored weights have no effect on the loss, so the loss does not limit them. Without decay they would grow larger than
the weights of A.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from topkast.runtime.kernels.explored import (
    ScaleExplored,
    ScaleTogether,
    scale_all,
    square_sum_of_a,
    squares_of_a,
    squares_together,
    together,
    together_on_cpu,
)
from topkast.runtime.state.sharding.sums import summed
from topkast.runtime.state.site_module import SiteModule

# The largest share of an explored weight that one step may remove. With a learning rate as for SGD, lr *
# exploration_decay could remove explored weights completely, and a value above 1 would change their sign.
MOST_DECAY = 0.25

# The default decay, multiplied by the size of a weight in A. Under Adam, a gradient with a constant sign moves a weight
# by lr in each step. This decay then holds the weight at a quarter of that size, for every scale of the model.
DECAY = 4.0


def prepare_decay(steps: Iterable[tuple[SiteModule, float | Tensor]]) -> list[Callable[[], None]]:
    """θ ← θ - min(lr * ``exploration_decay``, :data:`MOST_DECAY`) θ on B \\ A.

    If ``exploration_decay`` is None, the decay is :data:`DECAY` divided by the current size of A's weights. Frozen
    weights do not decay, as with an optimizer's own weight decay.

    Args:
        steps: sites, each with the learning rate of its step.

    Returns:
        Functions that make the decay. Nothing has changed before they are called. If an interrupt came out of such a
        function, another call ends its work, and it never decays a value twice.
    """
    decaying = [(site, lr) for site, lr in steps if _decays(site)]
    work: list[Callable[[], None]] = []
    alike: dict[Any, list[tuple[SiteModule, float | Tensor]]] = {}
    single: list[tuple[SiteModule, float | Tensor]] = []
    on_cpu: list[tuple[SiteModule, float]] = []
    for site, lr in decaying:
        values = site.stored()[0]
        if not isinstance(lr, Tensor) and site.shard is None and together_on_cpu(values):
            on_cpu.append((site, lr))
            continue
        rate = (lr.dtype, lr.device) if isinstance(lr, Tensor) else float
        (alike.setdefault((values.device, values.dtype, rate), []) if together(values) else single).append((site, lr))
    for group in alike.values():
        work += _decay_together(group)
    if on_cpu:
        work += _decay_on_cpu(on_cpu)
    sizes = _sizes([site for site, _ in single if site.rule.exploration_decay is None])
    for site, lr in single:
        asked = site.rule.exploration_decay
        decay = lr * (DECAY / sizes[site] if asked is None else asked)
        values, index = site.stored()
        if isinstance(decay, Tensor):
            work.append(ScaleExplored(values, index, site.geometry, 1 - decay.clamp(max=MOST_DECAY)))
        else:
            work.append(partial(site.record_decay, decay))  # not for a tensor: it would need a sync, only for a warning
            work.append(ScaleExplored(values, index, site.geometry, 1 - min(decay, MOST_DECAY)))
    return work


def _decay_together(steps: list[tuple[SiteModule, float | Tensor]]) -> list[Callable[[], None]]:
    """The same for sites on one GPU whose values have one dtype, in two launches."""
    parts = [(*site.stored(), site.geometry) for site, _ in steps]
    asked = [site.rule.exploration_decay for site, _ in steps]
    sums = squares_of_a(parts)
    work: list[Callable[[], None]] = []
    if any(site.shard is not None for site, _ in steps):
        whole = summed({site: sums[i].sum() for i, (site, _) in enumerate(steps)})
        sums = torch.stack([whole[site] for site, _ in steps])[:, None]
    shares = [DECAY if one is None else one for one in asked]
    rates: Tensor | list[float]
    if isinstance(steps[0][1], Tensor):
        rates = torch.stack([lr for _, lr in steps if isinstance(lr, Tensor)]).to(sums)
        rates = rates * torch.tensor(shares, dtype=torch.float64, device=rates.device)
    else:
        rates = [float(lr) * share for (_, lr), share in zip(steps, shares, strict=True)]
        for (site, _), one, rate in zip(steps, asked, rates, strict=True):
            if one is not None:
                work.append(partial(site.record_decay, rate))
    counts = [
        site.units_in_a * site.geometry.unit if one is None else 0 for (site, _), one in zip(steps, asked, strict=True)
    ]
    return [*work, partial(scale_all, parts, sums, rates, counts, MOST_DECAY, [])]


def _decay_on_cpu(steps: list[tuple[SiteModule, float]]) -> list[Callable[[], None]]:
    """The same for sites on the CPU, in two calls of native code."""
    parts = [(*site.stored(), site.geometry) for site, _ in steps]
    asked = [site.rule.exploration_decay for site, _ in steps]
    rates = [lr * (DECAY if one is None else one) for (_, lr), one in zip(steps, asked, strict=True)]
    records = [
        partial(site.record_decay, rate)
        for (site, _), one, rate in zip(steps, asked, rates, strict=True)
        if one is not None
    ]
    decay = torch.tensor(rates, dtype=torch.float64, device="cpu")
    if None in asked:
        counts = torch.tensor([site.units_in_a * site.geometry.unit for site, _ in steps], device="cpu")
        sizes = (squares_together(parts) / counts).sqrt().clamp(min=torch.finfo(torch.float32).tiny)
        decay /= torch.where(torch.tensor([one is None for one in asked], device="cpu"), sizes, 1.0)
    return [*records, ScaleTogether(parts, 1 - decay.clamp(max=MOST_DECAY))]


def _decays(site: SiteModule) -> bool:
    return site.rule.exploration_decay != 0 and not site.exploration_ended() and site.original.requires_grad


def _sizes(sites: list[SiteModule]) -> dict[SiteModule, Tensor]:
    """The size of a weight in A of each site: the root mean square of A's weights, a positive scalar in float64."""
    totals = {site: square_sum_of_a(*site.stored(), site.geometry) for site in sites}
    return {site: _root_mean(site, total) for site, total in summed(totals).items()}


def _root_mean(site: SiteModule, total: Tensor) -> Tensor:
    smallest = torch.finfo(site.original.dtype).tiny
    return (total / (site.units_in_a * site.geometry.unit)).sqrt().clamp(min=smallest)
