"""What a sharded site keeps beside its values: the part of the reservoir, and of the marks of units once in A."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from topkast.runtime.state.content.marks import packed, unpacked

from .shard import Shard


def has_equal_rows(site: Any) -> bool:
    """Whether every row of blocks has one row of the values, and keeps its number of slots. Then ranks hold whole rows,
    whatever their number."""
    rule = site.rule
    shrinks = rule.shrinks and site.n_fwd < site.n_bwd
    return rule.balanced and not shrinks and not site.for_inference and site.value_shape[0] == site.geometry.grid[0]


def rows_of(site: Any, shard: Shard) -> slice | None:
    """The rows of blocks whose slots this rank holds; None if a part can end inside a row, or if rows can change their
    lengths."""
    return shard.span(site.geometry.grid[0]) if has_equal_rows(site) else None


def own_outside(site: Any, shard: Shard) -> tuple[Tensor, Tensor]:
    """This rank's part of a reservoir and of the marks, cut from those of the whole weight.

    If the rank holds whole rows, the parts belong to these rows. Otherwise both vectors are shared out evenly.
    """
    rows, (count, columns) = rows_of(site, shard), site.geometry.grid
    if rows is None:
        return site.reservoir[shard.span(site.reservoir.numel())], site.ever[shard.span(site.ever.numel())].clone()
    per_row = site.reservoir.numel() // count
    bits = unpacked(site.ever, site.geometry.units).view(count, columns)[rows].reshape(-1)
    return site.reservoir[rows.start * per_row : rows.stop * per_row], packed(bits)
