"""A site is copied, pickled, moved to another device or cast: what goes along, and what is of one process alone."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from topkast.runtime.layout import Index, column_type

from .background import known
from .copies import settle
from .fingerprint import fingerprint, unchanged
from .index_check import note
from .registry import enrol
from .reservoirs import allocate

if TYPE_CHECKING:
    from .site import Site

OF_PROCESS = ("optimizers", "ran", "key", "copies", "snapshot", "_own", "noted", "owner")


def copied(site: Site, memo: dict[int, Any]) -> Site:
    """A deep copy."""
    site.check_whole()
    twin = site.__new__(site.__class__)
    memo[id(site)] = twin
    own = {*OF_PROCESS, "pending", "_table"} | (set() if site.rule.reservoir == "device" else {"reservoir"})
    twin.__dict__ = copy.deepcopy({k: v for k, v in site.__dict__.items() if k not in own}, memo)
    twin._table = copy.deepcopy(site.table, memo)
    churn = twin.churn
    twin._start()
    twin.churn, twin.pending = churn, site.pending
    if "reservoir" in own:
        kept = site.reservoir
        twin.reservoir = allocate(site.rule.reservoir, kept.numel(), kept).copy_(kept)
    note(twin)
    twin.copied, twin.print = True, fingerprint(twin.original)
    if unchanged(site.original, site.print):
        twin.snapshot = site.snapshot
    site.copies.add(twin)
    enrol(twin)
    return twin


def packed(site: Site) -> dict[str, Any]:
    """The state to pickle: all but what is of this process; a thread's choice is waited for."""
    site.check_whole()
    settle([site])
    own = {name: value for name, value in site.__dict__.items() if name not in OF_PROCESS}
    if site.pending is not None:
        own["pending"] = site.pending.name, site.pending.step, tuple(map(_signed, site.pending.result()))
    own["_table"] = site.table
    own["_buffers"] = {name: _signed(tensor) for name, tensor in site._buffers.items()}
    return own


def unpacked(site: Site, state: dict[str, Any]) -> None:
    """Make a new site what :func:`packed` gave."""
    pending = state["pending"]
    nn.Module.__setstate__(site, state)
    site._buffers["cols"] = site.cols.view(column_type(site.geometry.grid[1]))
    churn, scaled, unclaimed = site.churn, site.scaled, site.unclaimed
    site._start()
    site.churn, site.scaled, site.unclaimed = churn, scaled, unclaimed
    if pending is not None:
        row_ptr, row_fwd, cols = pending[2]
        pending = known(pending[0], pending[1], Index(row_ptr, row_fwd, cols.view(site.cols.dtype)))
    site.pending = pending
    if site.rule.reservoir != "device":  # what was pinned, or in a file, is to be so here
        kept = site.reservoir
        site.reservoir = allocate(site.rule.reservoir, kept.numel(), kept).copy_(kept)
    note(site)
    enrol(site)


def cast(site: Site, fn: Any) -> None:
    """The reservoir follows what ``fn`` does to the values, which are their owner's to change."""
    kept = site.reservoir
    values = fn(site.original.detach().new_empty(0))
    if kept.dtype != values.dtype:  # not a buffer unless on the device, but a cast is for all of θ
        site.reservoir = allocate(site.rule.reservoir, kept.numel(), values).copy_(kept)
    site.changes += 1


def _signed(tensor: Any) -> Any:
    """Pickle's own way of storing a tensor knows no uint16."""
    return tensor.view(torch.int16) if isinstance(tensor, Tensor) and tensor.dtype == torch.uint16 else tensor
