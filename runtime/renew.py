"""A site's sets are chosen again, or taken over; θ, and what is kept for each of its values, follow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .background import prepare
from .follow import leave
from .layout import Index, index_masks
from .native.theta import assemble, follow, store
from .stream import Held, at_home

if TYPE_CHECKING:
    from .site import Site


@torch.no_grad()
def refresh(sites: Iterable[Site]) -> None:
    """Choose A and B of these again, now."""
    at_home(sites, renew)


def refresh_due(sites: Iterable[Site]) -> None:
    """Refresh those that are due, where it is safe: in a forward that will be differentiated, never while a backward
    recomputes, nor while a transform of ``torch.func`` runs or ``functional_call`` has put other tensors in a site's
    place."""
    transformed = torch._C._are_functorch_transforms_active()
    if torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1 and not transformed:
        due = [site for site in sites if site.due and site.undisturbed()]
        with torch.no_grad():
            at_home(due, renew_due)


def renew(site: Site, held: Held) -> bool:
    """Choose both sets from θ as it is now.

    Args:
        held: the site's parts at home, changed in place.

    Returns:
        True: they were changed.
    """
    site.forget()
    theta = assemble(held.values, site.reservoir, held.index, site.geometry)
    index, fwd, bwd = site.renewed(theta, site.step)
    if site.method.enters_at_zero:
        entering = bwd & ~index_masks(held.index, site.geometry)[1]
        theta.masked_fill_(site.geometry.from_blocks(entering[:, None].expand(-1, site.geometry.unit)), 0)
    return take(site, theta, held, index, fwd, bwd)


def renew_due(site: Site, held: Held) -> bool:
    """What an interval's end asks for: :func:`renew`, or, in the background, the sets that were asked for at the
    end before, and a thread for the next. Exploration ends at once, whatever a thread has chosen before.

    Args, Returns: as :func:`renew`.
    """
    if not site.rule.refresh_in_background or site.stops:
        return renew(site, held)
    asked, site.pending = site.pending, None
    if asked is not None:
        index = Index(*(tensor.to(site.home) for tensor in asked.result()))
        theta = assemble(held.values, site.reservoir, held.index, site.geometry)
        take(site, theta, held, index, *index_masks(index, site.geometry))
    site.refreshed_at = step = site.step
    parts = held.values, site.reservoir, held.index
    site.pending = prepare(site.name, step, parts, site.geometry, lambda theta: site.renewed(theta, step)[0])
    return asked is not None


def take(site: Site, theta: Tensor, held: Held, index: Index, fwd: Tensor, bwd: Tensor) -> bool:
    """Take θ (at home) apart by new sets, the same as index and as masks; what is kept for each value follows."""
    old_fwd, old_bwd = index_masks(held.index, site.geometry)
    _lay_out(site, theta, held, index)
    mark(held.ever, fwd)
    site.refreshed_at = site.step
    new_fwd, new_bwd = (_share_of_new(new, old) for new, old in ((fwd, old_fwd), (bwd, old_bwd)))
    site.churn = [*site.churn[-99:], (site.step, new_fwd, new_bwd)]
    return True


def _lay_out(site: Site, theta: Tensor, held: Held, index: Index) -> None:
    """Take θ (at home) apart by an index; what is kept for each value follows."""
    store(theta, held.values, site.reservoir, index, site.geometry)
    for tensor in held.kept:
        tensor.copy_(follow(tensor, held.index, index, site.geometry))
    leave(site, held.index)
    for mine, new in zip(held.index, index, strict=True):
        mine.copy_(new)


@torch.no_grad()
def take_sets(site: Site, other: Site) -> None:
    """Take the sets of a site of the same counts. θ stays as it is, bit for bit."""
    site.forget()
    at_home([site], lambda site, held: _follow_sets(site, held, other))


def _follow_sets(site: Site, held: Held, other: Site) -> bool:
    index = Index(*(tensor.to(site.home) for tensor in other.index))
    if all(map(torch.equal, held.index, index)):
        return False
    _lay_out(site, assemble(held.values, site.reservoir, held.index, site.geometry), held, index)
    held.ever.copy_(other.ever)
    return True


def mark(ever: Tensor, fwd: Tensor) -> None:
    """Remember, a bit a unit, what was ever in A; both in one place."""
    bits = nn.functional.pad(fwd, (0, -fwd.numel() % 8)).view(-1, 8).to(torch.uint8)
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=fwd.device)
    ever |= (bits * weights).sum(1, dtype=torch.uint8)


def _share_of_new(new: Tensor, old: Tensor) -> float:
    # Not sum(), which widens every bool to int64 first.
    return int((new & ~old).count_nonzero()) / int(new.count_nonzero())
