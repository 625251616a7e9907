"""The only place that refreshes: a site's sets are chosen again, and θ follows."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from topkast.runtime.kernels.theta import assemble
from topkast.runtime.layout import Index, index_masks

from .background import choose_in_thread
from .choose_sets import Chosen, renewed_sets
from .parts import Change, Parts
from .relayout import HasSets, with_new_sets, with_sets_of
from .site import Site
from .streaming import at_home
from .when import due_before_forward, in_background


@torch.no_grad()
def refresh(sites: Iterable[Site]) -> None:
    """Choose A and B of these again, now; each site has its old sets or its new ones, whatever interrupts."""
    _refresh(sites, by_interval=False)


@torch.no_grad()
def refresh_by_interval(sites: Iterable[Site]) -> None:
    """What an interval's end asks for: :func:`refresh`, or, in the background, the sets that were asked for at the end
    before, and a thread for the next."""
    _refresh(sites, by_interval=True)


def refresh_due(sites: Iterable[Site]) -> None:
    """A forward is about to run: refresh those that are due, if it is safe."""
    refresh_by_interval(due_before_forward(sites))


@torch.no_grad()
def take_sets(site: Site, other: HasSets) -> None:
    """Take the sets of a site of the same counts. θ stays as it is, bit for bit."""
    site.drop_pending()
    at_home([site], lambda site, parts: with_sets_of(site, parts, other))


def _refresh(sites: Iterable[Site], by_interval: bool) -> None:
    sites = list(sites)
    for site in sites:
        site.go_own_way()
    at_home(sites, _renewed_by_interval if by_interval else renewed)


def renewed(site: Site, parts: Parts) -> Change:
    """Both sets chosen from θ as it is now.

    Args:
        parts: the site's, beside the reservoir.
    """
    site.wait()
    theta = assemble(parts.values, parts.reservoir, parts.index, site.geometry)
    sets = renewed_sets(site.method, site.set_state(), theta)
    if site.method.enters_at_zero:
        entering = sets.bwd & ~index_masks(parts.index, site.geometry)[1]
        theta.masked_fill_(site.geometry.from_blocks(entering[:, None].expand(-1, site.geometry.unit)), 0)
    return with_new_sets(site, theta, parts, sets)


def _renewed_by_interval(site: Site, parts: Parts) -> Change:
    if not in_background(site):
        return renewed(site, parts)
    change, state = Change(fields={"refreshed_at": site.step}), site.set_state()
    if site.pending is not None:
        index = Index(*(tensor.to(site.home) for tensor in site.pending_index()))
        theta = assemble(parts.values, parts.reservoir, parts.index, site.geometry)
        change = with_new_sets(site, theta, parts, Chosen(index, *index_masks(index, site.geometry)))

    def ask() -> None:
        there = change.parts or parts
        # The thread reads the site's own reservoir: that of the change would be one more for every site.
        now, method = (there.values, site.reservoir, there.index), site.method
        site.set_pending(
            choose_in_thread(
                site.name, state.step, now, site.geometry, lambda theta: renewed_sets(method, state, theta).index
            )
        )

    change.after = ask
    return change
