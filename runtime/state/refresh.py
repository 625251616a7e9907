"""A site's sets are chosen again, or taken over; θ, and what is kept for each of its values, follow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from topkast.runtime.layout import Index, index_masks
from topkast.runtime.native.theta import assemble, store

from .background import prepare
from .optimizer_state import carried, left
from .parts import Change, Held
from .streaming import Prepare, at_home

if TYPE_CHECKING:
    from .copies import Snapshot
    from .site import Site


@torch.no_grad()
def refresh(sites: Iterable[Site], prepare: Prepare | None = None) -> None:
    """Choose A and B of these again, now; each site has its old sets or its new ones, whatever interrupts.

    Args:
        prepare: how; None: :func:`renew`.
    """
    sites = list(sites)
    for site in sites:
        site.alone = True
    at_home(sites, prepare or renew)


def refresh_due(sites: Iterable[Site]) -> None:
    """Refresh those that are due, where it is safe: in a forward that will be differentiated, never while a backward
    recomputes, nor while ``torch.jit.trace`` or a transform of ``torch.func`` runs or ``functional_call`` has put other
    tensors in a site's place."""
    transformed = torch._C._are_functorch_transforms_active() or torch._C._is_tracing()
    if torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1 and not transformed:
        refresh([site for site in sites if site.due and site.undisturbed()], renew_due)


def renew(site: Site, held: Held) -> Change:
    """Both sets chosen from θ as it is now.

    Args:
        held: the site's parts at home.
    """
    site.wait()
    theta = assemble(held.values, held.reservoir, held.index, site.geometry)
    index, fwd, bwd = site.renewed(theta, site.step)
    if site.method.enters_at_zero:
        entering = bwd & ~index_masks(held.index, site.geometry)[1]
        theta.masked_fill_(site.geometry.from_blocks(entering[:, None].expand(-1, site.geometry.unit)), 0)
    return take(site, theta, held, index, fwd, bwd)


def renew_due(site: Site, held: Held) -> Change:
    """What an interval's end asks for: :func:`renew`, or, in the background, the sets that were asked for at the
    end before, and a thread for the next. Exploration ends at once, whatever a thread has chosen before.

    Args, Returns: as :func:`renew`.
    """
    if not site.rule.refresh_in_background or site.stops:
        return renew(site, held)
    change, step = Change(fields={"refreshed_at": site.step}), site.step
    if site.pending is not None:
        index = Index(*(tensor.to(site.home) for tensor in site.chosen()))
        theta = assemble(held.values, held.reservoir, held.index, site.geometry)
        change = take(site, theta, held, index, *index_masks(index, site.geometry))

    def ask() -> None:
        parts = change.parts or held
        # The thread reads the site's own reservoir: that of the change would be one more for every site.
        now = parts.values, site.reservoir, parts.index
        site.pending = prepare(site.name, step, now, site.geometry, lambda theta: site.renewed(theta, step)[0])

    change.then = ask
    return change


def take(site: Site, theta: Tensor, held: Held, index: Index, fwd: Tensor, bwd: Tensor) -> Change:
    """θ (at home) taken apart by new sets, the same as index and as masks; what is kept for each value follows."""
    old_fwd, old_bwd = index_masks(held.index, site.geometry)
    change = _laid_out(site, theta, held, index, marked(held.ever, fwd))
    new_fwd, new_bwd = (_share_of_new(new, old) for new, old in ((fwd, old_fwd), (bwd, old_bwd)))
    change.fields |= {"refreshed_at": site.step, "churn": [*site.churn[-99:], (site.step, new_fwd, new_bwd)]}
    return change


def _laid_out(site: Site, theta: Tensor, held: Held, index: Index, ever: Tensor) -> Change:
    """θ (at home) taken apart by an index; what is kept for each value follows."""
    values, reservoir = torch.empty_like(held.values), torch.zeros_like(held.reservoir)
    store(theta, values, reservoir, index, site.geometry)
    kept = carried(held, values, index, site.geometry)
    fields = {"pending": None, "unclaimed": left(site, held.index)}
    return Change(Held(values, reservoir, index, ever, kept, held.starts), fields)


@torch.no_grad()
def take_sets(site: Site, other: Site) -> None:
    """Take the sets of a site of the same counts. θ stays as it is, bit for bit."""
    site.forget()
    at_home([site], lambda site, held: follow_sets(site, held, other))


def follow_sets(site: Site, held: Held, other: Site | Held | Snapshot) -> Change:
    """:func:`take_sets`, prepared.

    Args:
        held: the site's parts at home.
        other: has the index and the marks of what was ever in A.
    """
    index = Index(*(tensor.to(site.home) for tensor in other.index))
    if all(map(torch.equal, held.index, index)):
        return Change()
    theta = assemble(held.values, held.reservoir, held.index, site.geometry)
    return _laid_out(site, theta, held, index, other.ever.to(site.home, copy=True))


def marked(ever: Tensor, fwd: Tensor) -> Tensor:
    """What was ever in A, a bit a unit, and now is; both in one place."""
    bits = nn.functional.pad(fwd, (0, -fwd.numel() % 8)).view(-1, 8).to(torch.uint8)
    weights = 2 ** torch.arange(8, dtype=torch.uint8, device=fwd.device)
    return ever | (bits * weights).sum(1, dtype=torch.uint8)


def _share_of_new(new: Tensor, old: Tensor) -> float:
    # Not sum(), which widens every bool to int64 first.
    return int((new & ~old).count_nonzero()) / int(new.count_nonzero())
