"""Assemble all of θ from B's values and the reservoir, and take θ apart again.

The reservoir holds the units outside B, in the order of the grid.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from topkast.runtime.layout import Geometry, Index, index_masks, slot_units

PART = 2**20  # the number of values that are moved to or from the reservoir at once


def assemble(values: Tensor, reservoir: Tensor, index: Index, geometry: Geometry) -> Tensor:
    """θ in the weight's own shape, on the values' device."""
    blocks = values.new_empty(geometry.units + 1, geometry.unit)
    for part, outside, place in _outside(index, geometry):
        blocks[:-1][part][outside] = reservoir[place].to(blocks.device).view(-1, geometry.unit)
    units, _ = slot_units(index, geometry)
    blocks[units] = values.view(-1, geometry.unit)
    return geometry.from_blocks(blocks[:-1])


def store(theta: Tensor, values: Tensor, reservoir: Tensor, index: Index, geometry: Geometry) -> None:
    """Write θ into values and reservoir according to the index. Unused slots get zero."""
    blocks = geometry.to_blocks(theta)
    for part, outside, place in _outside(index, geometry):
        reservoir[place] = blocks[part][outside].view(-1)
    units, _ = slot_units(index, geometry)
    slots = values.view(-1, geometry.unit)
    torch.index_select(blocks, 0, units.clamp_(max=geometry.units - 1), out=slots)
    slots[int(index.row_ptr[-1]) :] = 0


def follow(tensor: Tensor, before: Index, after: Index, geometry: Geometry) -> Tensor:
    """Move a tensor that belongs to B's values ([slots · r · c], for example a momentum) from the slots of one index to
    the slots of another index. Weights that enter B get zero."""
    old, new = slot_units(before, geometry)[0], slot_units(after, geometry)[0]
    slot_of = torch.full((geometry.units + 1,), -1, device=old.device)
    slot_of[old] = torch.arange(old.numel(), device=old.device)
    slot_of[geometry.units] = -1
    source = slot_of[new]
    moved = tensor.view(-1, geometry.unit)[source.clamp(min=0)]
    return torch.where((source >= 0)[:, None], moved, 0).view(-1)


def _outside(index: Index, geometry: Geometry) -> Iterator[tuple[slice, Tensor, slice]]:
    """The units outside B, a part at a time: int64 positions of all units would need more memory than the weight.

    Yields (a slice of all units, which of these units are outside B, their slice of the reservoir).
    """
    step, end = max(1, PART // geometry.unit), 0
    for i, outside in enumerate((~index_masks(index, geometry)[1]).split(step)):
        begin, end = end, end + int(outside.sum()) * geometry.unit
        yield slice(i * step, (i + 1) * step), outside, slice(begin, end)
