"""Copies follow: when a site's sets change, those of its deep copies do, and θ of each copy stays bit for bit.

Whoever averages a model by hand keeps a deep copy and pairs slots: parameter by parameter, or entry by entry of two
state dicts. After a refresh slot j of the model is another weight; so a copy that never made a step of its own takes
the new sets at the same moment. Entries of a state dict are all of θ, and their average is that of a dense model.
Parameters are the values of B: a weight outside B keeps the average that it had when it left.
"""

from __future__ import annotations

import gc
import sys
import warnings
import weakref
from typing import Any

import torch
from torch import Tensor

from topkast.runtime.layout import Index

from .family import Family
from .fingerprint import fingerprint, unchanged
from .parts import Change, Changing, Parts, Snapshot
from .relayout import with_sets_of
from .site import Site

LISTS = "diffusers.training_utils"  # has EMAModel


def alike_copies(site: Site) -> list[Site]:
    """Copies that lie as the site does now and never went their own way."""
    return [
        copy for copy in list(site.copies) if not copy.alone and copy.broken is None and _alike(copy.index, site.index)
    ]


def changes_of_copies(site: Site, change: Change) -> list[tuple[Changing, Parts, Change]]:
    """The changes of a site's copies that belong to its own: for each copy its parts as they are, and the change.

    Args:
        change: what is to be of the site, which is still as it was.
    """
    new, lists = change.parts, LISTS in sys.modules and (site.alone or not site.copied)
    if new is None or not (lists or site.copies) or _alike(site.index, new.index):
        return []
    if lists:
        _warn_of_lists(site)
    return [(copy, *_followed(copy, new)) for copy in alike_copies(site)]


def _followed(copy: Site, new: Parts) -> tuple[Parts, Change]:
    """A copy's parts as they are, and the change that gives it the sets of other parts."""
    copy.wait()
    live = copy.parts()
    change = with_sets_of(copy, live.beside_reservoir(), new)
    change.fields |= {"snapshot": None, "print": None}
    if unchanged(live.values, copy.print) and change.parts is not None:
        own = Index(*(tensor.clone() for tensor in live.index))
        fields = {"pending": copy.pending, "unclaimed": copy.unclaimed}
        kept = copy.snapshot or Snapshot(own, live.ever.clone(), fields)
        change.fields |= {"snapshot": kept, "print": fingerprint(change.parts.values)}
    change.of_copies = changes_of_copies(copy, change)  # a copy has copies of its own
    return live, change


def _alike(one: Index, other: Index) -> bool:
    if one.cols.device != other.cols.device:  # in host memory: a refresh allocates nothing on a device
        one, other = (Index(*(tensor.cpu() for tensor in index)) for index in (one, other))
    return all(map(torch.equal, one, other))


_looked_for: weakref.WeakSet[Family] = weakref.WeakSet()


def _warn_of_lists(site: Site) -> None:
    """Warn at a model's first refresh of a list of tensors that averages its parameters: such a list cannot follow."""
    if site.family in _looked_for:
        return
    module: Any = sys.modules[LISTS]
    _looked_for.add(site.family)
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
