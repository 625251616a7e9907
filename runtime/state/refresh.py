"""The only place that refreshes: a site's sets are chosen again, and θ is rearranged for the new sets."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from topkast.runtime.kernels.sets import index_masks
from topkast.runtime.kernels.theta import assemble
from topkast.runtime.state.change.relayout import HasSets, refreshed, with_new_sets, with_sets_of
from topkast.runtime.state.change.streaming import at_home
from topkast.runtime.state.content.background import choose_in_thread
from topkast.runtime.state.content.choose_sets import Chosen, renewed_sets
from topkast.runtime.state.content.parts import Change, Parts

from .refresh_hooks import call_hooks
from .site import Site
from .when import due_before_forward, in_background


@torch.no_grad()
def refresh(sites: Iterable[Site]) -> None:
    """Choose A and B of these sites again, now. If the refresh is interrupted, each site has its old or its new
    sets."""
    _refresh(sites, by_interval=False)


@torch.no_grad()
def refresh_by_interval(sites: Iterable[Site]) -> None:
    """The refresh at the end of an interval. Without ``refresh_in_background`` this is :func:`refresh`. In the
    background mode, the sets requested at the end of the last interval are used, and a thread starts to choose the next
    sets."""
    _refresh(sites, by_interval=True)


def refresh_due(sites: Iterable[Site]) -> None:
    """Before a forward: refresh the sites whose refresh is due, if a refresh is safe."""
    refresh_by_interval(due_before_forward(sites))


@torch.no_grad()
def copy_sets(site: Site, other: HasSets) -> None:
    """Use the sets of another site with the same counts. θ stays the same, bit for bit."""
    site.drop_pending()
    at_home([site], lambda site, parts: with_sets_of(site, parts, other))


def _refresh(sites: Iterable[Site], by_interval: bool) -> None:
    sites = list(sites)
    for site in sites:
        site.go_own_way()
    at_home(sites, _renewed_by_interval if by_interval else renewed)
    call_hooks(sites)


def renewed(site: Site, parts: Parts) -> Change:
    """The change that chooses both sets from the current θ.

    Args:
        parts: the site's parts, all on the device that chooses.
    """
    site.wait()
    if not site.geometry.units:  # of a sharded weight this process holds nothing
        return Change(fields=refreshed(site, torch.zeros(2, dtype=torch.float64, device="cpu")))
    theta = assemble(parts.values, parts.reservoir, parts.index, site.geometry)
    sets = renewed_sets(site.method, site.set_state(parts.index), theta)
    if site.method.enters_at_zero:
        entering = sets.bwd & ~index_masks(parts.index, site.geometry)[1]
        theta.masked_fill_(site.geometry.from_blocks(entering[:, None].expand(-1, site.geometry.unit)), 0)
    return with_new_sets(site, theta, parts, sets)


def _renewed_by_interval(site: Site, parts: Parts) -> Change:
    if not in_background(site):
        return renewed(site, parts)
    change, state = Change(fields={"refreshed_at": site.step}), site.set_state()
    if site.pending is not None:
        index = site.pending_index().to(parts.index.cols.device)
        theta = assemble(parts.values, parts.reservoir, parts.index, site.geometry)
        change = with_new_sets(site, theta, parts, Chosen(index, *index_masks(index, site.geometry)))

    def ask() -> None:
        there = change.parts or parts
        # The thread reads the site's own reservoir. The change's reservoir would be a further copy for every site.
        now, method = (there.values, site.reservoir, there.index), site.method
        site.set_pending(
            choose_in_thread(
                site.name, state.step, now, site.geometry, lambda theta: renewed_sets(method, state, theta).index
            )
        )

    change.after = ask
    return change
