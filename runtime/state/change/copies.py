"""Copies get the new sets: if a site's sets change, the sets of its deep copies change too. θ of each copy stays the
same, bit for bit.

A user who averages a model by hand keeps a deep copy and pairs slots: parameter by parameter, or entry by entry of two
state dicts. After a refresh, slot j of the model is another weight. So a copy that never made its own optimizer step
gets the new sets at the same moment. The entries of a state dict are all of θ, so their average equals the average of a
dense model. Parameters are the values of B: a weight outside B keeps the average that it had when it left B.
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
from topkast.runtime.state.content.family import Family
from topkast.runtime.state.content.fingerprint import fingerprint, unchanged
from topkast.runtime.state.content.parts import Change, Changing, Parts, Snapshot
from topkast.runtime.state.site import Site

from .relayout import with_sets_of

LISTS = "diffusers.training_utils"  # the module that has EMAModel


def alike_copies(site: Site) -> list[Site]:
    """Copies that have the site's current sets and never changed their sets by themselves."""
    return [
        copy for copy in list(site.copies) if not copy.alone and copy.broken is None and _alike(copy.index, site.index)
    ]


def changes_of_copies(site: Site, change: Change) -> list[tuple[Changing, Parts, Change]]:
    """The changes that a site's copies need with its own change: for each copy its current parts and its change.

    Args:
        change: the change of the site, which is not applied yet.
    """
    new, lists = change.parts, LISTS in sys.modules and (site.alone or not site.copied)
    if new is None or not (lists or site.copies) or _alike(site.index, new.index):
        return []
    if lists:
        _warn_of_lists(site)
    return [(copy, *_with_sets_of(copy, new)) for copy in alike_copies(site)]


def _with_sets_of(copy: Site, new: Parts) -> tuple[Parts, Change]:
    """A copy's current parts, and the change that gives the copy the sets of ``new``."""
    copy.wait()
    live = copy.parts()
    change = with_sets_of(copy, live.beside_reservoir(), new)
    change.fields |= {"snapshot": None, "print": None}
    if unchanged(live.values, copy.print) and change.parts is not None:
        own = live.index.to(live.index.cols.device, copy=True)
        fields = {"pending": copy.pending, "unread_state_index": copy.unread_state_index}
        kept = copy.snapshot or Snapshot(own, live.ever.clone(), fields)
        change.fields |= {"snapshot": kept, "print": fingerprint(change.parts.values)}
    change.of_copies = changes_of_copies(copy, change)  # a copy can have its own copies
    return live, change


def _alike(one: Index, other: Index) -> bool:
    if one.cols.device != other.cols.device:  # compare in host memory: a refresh allocates nothing on a device
        one, other = (index.to(torch.device("cpu")) for index in (one, other))
    return all(map(torch.equal, one, other))


_looked_for: weakref.WeakSet[Family] = weakref.WeakSet()


def _warn_of_lists(site: Site) -> None:
    """Warn at a model's first refresh if a list of tensors averages its parameters: the list cannot get the new
    sets."""
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
