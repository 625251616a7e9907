"""Copies follow: when a site's sets change, those of its deep copies do, and θ of each copy stays bit for bit.

Whoever averages a model by hand keeps a deep copy and pairs slots: parameter by parameter, or entry by entry of two
state dicts. After a refresh slot j of the model is another weight; so a copy that never made a step of its own takes
the new sets at the same moment. Entries of a state dict are all of θ, and their average is that of a dense model.
Parameters are the values of B: a weight outside B keeps the average that it had when it left.

A copy that nothing was written to since it was made is no average but a snapshot. It too must move, for nobody knows
what it will be. When it is used, it first takes back the sets that it was made with: it computes what it did then.
"""

from __future__ import annotations

import gc
import sys
import warnings
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from topkast.runtime.layout import Index

from .fingerprint import fingerprint, unchanged
from .parts import Change, Held
from .refresh import follow_sets, take_sets
from .registry import Family
from .streaming import at_home

if TYPE_CHECKING:
    from .site import Site

LISTS = "diffusers.training_utils"  # has EMAModel

Moves = list[tuple["Site", Held, Change]]


@dataclass(frozen=True)
class Snapshot:
    """The sets that an unwritten copy had before it followed, and the fields that belong to them."""

    index: Index
    ever: Tensor
    fields: dict[str, Any]


def following(site: Site) -> list[Site]:
    """Copies that lie as the site does now and never went their own way."""
    return [
        copy for copy in list(site.copies) if not copy.alone and copy.broken is None and _alike(copy.index, site.index)
    ]


def moves(site: Site, change: Change) -> Moves:
    """The changes of a site's copies that belong to its own: for each copy its parts as they are, and the change.

    Args:
        change: what is to be of the site, which is still as it was.
    """
    new, lists = change.parts, LISTS in sys.modules and (site.alone or not site.copied)
    if new is None or not (lists or site.copies) or _alike(site.index, new.index):
        return []
    if lists:
        _notice_lists(site)
    return [(copy, *_move(copy, new)) for copy in following(site)]


@contextmanager
def carrying(sites: Iterable[Site]) -> Iterator[None]:
    """Within, the sites' sets are overwritten from outside; their copies take the sets at the end."""
    pairs = [(site, copy) for site in sites for copy in following(site)]
    yield
    for site, copy in pairs:
        take_sets(copy, site)


@torch._dynamo.disable
@torch.no_grad()
def settle(sites: Iterable[Site]) -> None:
    """These are about to be used: snapshots among them take back the sets that they were made with."""
    for site in sites:
        if site.snapshot is not None:
            if unchanged(site.original, site.print):
                at_home([site], _restored)
            site.snapshot = None


def _restored(site: Site, held: Held) -> Change:
    assert site.snapshot is not None
    change = follow_sets(site, held, site.snapshot)
    change.fields |= site.snapshot.fields
    return change


def _move(copy: Site, new: Held) -> tuple[Held, Change]:
    copy.wait()
    live = copy.held()
    index = Index(*(tensor.to(copy.home) for tensor in live.index))
    values, ever = live.values.to(copy.home), live.ever.to(copy.home)
    home = replace(live, values=values, index=index, ever=ever, kept=[tensor.to(copy.home) for tensor in live.kept])
    change = follow_sets(copy, home, new)
    change.fields |= {"snapshot": None, "print": None}
    if unchanged(live.values, copy.print) and change.parts is not None:
        own = Index(*(tensor.clone() for tensor in live.index))
        fields = {"pending": copy.pending, "unclaimed": copy.unclaimed}
        kept = copy.snapshot or Snapshot(own, live.ever.clone(), fields)
        change.fields |= {"snapshot": kept, "print": fingerprint(change.parts.values)}
    return live, change


def _alike(one: Index, other: Index) -> bool:
    if one.cols.device != other.cols.device:  # in host memory: a refresh allocates nothing on a device
        one, other = (Index(*(tensor.cpu() for tensor in index)) for index in (one, other))
    return all(map(torch.equal, one, other))


_asked: weakref.WeakSet[Family] = weakref.WeakSet()


def _notice_lists(site: Site) -> None:
    """Warn at a model's first refresh of a list of tensors that averages its parameters: such a list cannot follow."""
    if site.family in _asked:
        return
    module: Any = sys.modules[LISTS]
    _asked.add(site.family)
    shape = site.original.shape
    for one in gc.get_objects():
        if issubclass(type(one), module.EMAModel) and any(_shape(tensor) == shape for tensor in one.shadow_params):
            warnings.warn(
                "topkast: diffusers' EMAModel keeps a list of tensors, which cannot follow the model: after this "
                f"refresh slot j of {site.name} is another weight; use average = topkast.averaged(model, decay=0.999) "
                "and average.update()",
                stacklevel=2,
            )
            return


def _shape(tensor: Tensor) -> torch.Size | None:
    return tensor.shape if isinstance(tensor, Tensor) else None
