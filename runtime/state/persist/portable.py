"""Copy or pickle a site: which fields are included, and which fields belong to one process only."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from topkast.runtime.layout import Index, column_type
from topkast.runtime.state.content.background import already_chosen
from topkast.runtime.state.content.derived import turnover
from topkast.runtime.state.content.fingerprint import fingerprint, unchanged
from topkast.runtime.state.content.reservoirs import RESERVOIRS
from topkast.runtime.state.site import Site

OF_PROCESS = (
    *("optimizers", "ran", "key", "copies", "snapshot", "_own", "noted", "owner", "owners"),
    *("turned", "turned_of", "turnover"),
)


def copied(site: Site, memo: dict[int, Any]) -> dict[str, Any]:
    """The content of a deep copy."""
    own = {*OF_PROCESS, "pending", "_table"} | (set() if site.place.follows_model else {"reservoir"})
    content = copy.deepcopy({k: v for k, v in site.__dict__.items() if k not in own}, memo)
    return {**content, "_table": copy.deepcopy(site.table, memo)}


def copied_fields(site: Site, table: dict[str, nn.Parameter | None]) -> dict[str, Any]:
    """The further fields of a deep copy.

    Args:
        table: the parameters of the copy's owner.
    """
    fields: dict[str, Any] = {"turnover": list(site.turnover), "pending": site.pending}
    if not site.place.follows_model:
        fields["reservoir"] = site.place.allocate(site.reservoir.numel(), site.reservoir).copy_(site.reservoir)
    values = table[site.attribute]
    assert values is not None
    fields |= {"copied": True, "print": fingerprint(values)}
    if unchanged(site.original, site.print):
        fields["snapshot"] = site.snapshot
    return fields


def packed(site: Site) -> dict[str, Any]:
    """The state to pickle: every field that does not belong to this process only. Waits for a thread's choice."""
    own = {name: value for name, value in site.__dict__.items() if name not in OF_PROCESS}
    if site.pending is not None:
        own["pending"] = site.pending.name, site.pending.step, tuple(map(_signed, site.pending.result()))
    if site.unread_state_index is not None:
        own["unread_state_index"] = tuple(map(_signed, site.unread_state_index))
    own["churn"] = site.churn
    own["_table"] = site.table
    own["_buffers"] = {name: _signed(tensor) for name, tensor in site._buffers.items()}
    return own


def unpacked(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The result of :func:`packed` as the content of a new site, and the further fields of the site."""
    columns = column_type(state["geometry"].grid[1])
    fields: dict[str, Any] = {"scaled": state["scaled"], "turnover": turnover(state["churn"])}
    buffers = dict(state["_buffers"])
    if "cols" in buffers:  # otherwise they are a parameter of bytes
        buffers["cols"] = buffers["cols"].view(columns)

    def index(tensors: tuple[Tensor, Tensor, Tensor]) -> Index:
        row_ptr, row_fwd, cols = tensors
        return Index(row_ptr, row_fwd, cols.view(columns))

    unread = state["unread_state_index"]
    fields["unread_state_index"] = None if unread is None else index(unread)
    fields["pending"] = state["pending"]
    if state["pending"] is not None:
        name, step, tensors = state["pending"]
        fields["pending"] = already_chosen(name, step, index(tensors))
    place = RESERVOIRS[state["rule"].reservoir]
    if not place.follows_model:  # pinned memory or a file is used again here
        kept = state["reservoir"]
        fields["reservoir"] = place.allocate(kept.numel(), kept).copy_(kept)
    return {**{name: value for name, value in state.items() if name != "churn"}, "_buffers": buffers}, fields


def _signed(tensor: Any) -> Any:
    """A view as int16 if the tensor is uint16, because pickle's own way of storing a tensor does not support uint16."""
    return tensor.view(torch.int16) if isinstance(tensor, Tensor) and tensor.dtype == torch.uint16 else tensor
