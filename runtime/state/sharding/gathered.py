"""All of one sharded weight, gathered from the ranks. Every rank calls these functions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from topkast.runtime.layout import Index
from topkast.runtime.state.content.reservoirs import values_outside
from topkast.runtime.state.content.shards.shard import local
from topkast.runtime.state.content.shards.shard_outside import rows_of


def gathered(site: Any) -> tuple[Tensor, Tensor, Index]:
    """(B's values as a vector, the values outside B, the index) of a whole weight, sharded or not."""
    shard = site.shard
    if shard is None:
        return site.values, site.reservoir, site.index
    unit, cols = site.geometry.unit, shard.cols
    if not site.index_is_whole:
        cols = shard.gather(site.own_columns, shard.slots, shard.slots_of_chunk)
    values = shard.gather(local(shard.values).reshape(-1), shard.slots * unit, shard.slots_of_chunk * unit)
    total, rows = values_outside(site.geometry, site.n_fwd, site.n_bwd, site.rule), site.geometry.grid[0]
    chunk = None
    if rows_of(site, shard) is not None:
        chunk = shard.slots_of_chunk // (shard.slots // rows) * (total // rows)
    return values, shard.gather(site.reservoir, total, chunk), Index(site.row_ptr, site.row_fwd, cols)
