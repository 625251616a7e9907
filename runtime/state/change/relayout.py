"""Rearrange θ for other sets: its values, its reservoir, and all tensors with one number for each value.

These functions change nothing. They return the new state as a :class:`Change`.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from topkast.runtime.kernels.sets import index_masks
from topkast.runtime.kernels.theta import assemble, store
from topkast.runtime.layout import Index
from topkast.runtime.state.content.choose_sets import Chosen, with_bits
from topkast.runtime.state.content.optimizer_state import carry_state, index_of_unknown_state
from topkast.runtime.state.content.parts import Change, Parts
from topkast.runtime.state.site import Site


class HasSets(Protocol):
    """An object whose sets can be used: it has an index, and the marks of all units that were ever in A."""

    @property
    def index(self) -> Index: ...

    @property
    def ever(self) -> Tensor: ...


def with_new_sets(site: Site, theta: Tensor, parts: Parts, sets: Chosen) -> Change:
    """The change that stores θ with new sets.

    Args:
        theta: all of θ, dense, on the device that chooses.
        parts: the site's parts, on the same device.
        sets: the new sets.
    """
    old_fwd, old_bwd = index_masks(parts.index, site.geometry)
    change = _laid_out(site, theta, parts, sets.index, with_bits(parts.ever, sets.fwd))
    change.fields |= refreshed(site, torch.stack([_share_of_new(sets.fwd, old_fwd), _share_of_new(sets.bwd, old_bwd)]))
    return change


def refreshed(site: Site, shares: Tensor) -> dict[str, Any]:
    """The fields of a site that was refreshed.

    Args:
        shares: of A and of B that are new, float64 [2]. They stay on their device: to read them would be to wait for
            all that is done there.
    """
    return {"refreshed_at": site.step, "turnover": [*site.turnover[-99:], (site.step, shares)]}


def with_sets_of(site: Site, parts: Parts, other: HasSets) -> Change:
    """The change that gives the site the sets of another site with the same counts. θ stays the same, bit for bit.

    Args:
        parts: the site's parts, all on one device.
        other: the object with the sets.
    """
    here = parts.index.cols.device
    index = other.index.to(here)
    if all(map(torch.equal, parts.index, index)):
        return Change()
    theta = assemble(parts.values, parts.reservoir, parts.index, site.geometry)
    return _laid_out(site, theta, parts, index, other.ever.to(here, copy=True))


def _laid_out(site: Site, theta: Tensor, parts: Parts, index: Index, ever: Tensor) -> Change:
    values, reservoir = torch.empty_like(parts.values), torch.zeros_like(parts.reservoir)
    store(theta, values, reservoir, index, site.geometry)
    kept = carry_state(parts, values, index, site.geometry)
    fields = {"pending": None, "unread_state_index": index_of_unknown_state(site, parts.index)}
    return Change(Parts(values, reservoir, index, ever, kept, parts.starts), fields)


def _share_of_new(new: Tensor, old: Tensor) -> Tensor:
    # sum() would first convert every bool to int64.
    return (new & ~old).count_nonzero().double() / new.count_nonzero()
