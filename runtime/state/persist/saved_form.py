"""The form of a site's tensors in a state dict: the same, whether one process has the whole site or each rank a part.

Then ``torch.distributed.checkpoint`` reads on any number of ranks what any other number has saved. The first dimension
of a tensor is the one that ranks share out:

- The columns are bytes [rows of the values, bytes], because no backend of ``torch.distributed`` sends 16-bit integers.
- If all rows of blocks have the same counts, the values outside B and the marks have a row for each row of blocks, and
  the marks of a row fill whole bytes. Otherwise both are vectors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from topkast.runtime.layout import column_type
from topkast.runtime.state.content.marks import packed, unpacked
from topkast.runtime.state.content.reservoirs import values_outside
from topkast.runtime.state.content.shards.shard_outside import has_equal_rows
from topkast.runtime.state.site import Site

OUTSIDE = ("reservoir", "ever")


def outside(site: Site) -> dict[str, Tensor]:
    """The values outside B and the marks of a site, or this rank's part of them, as a state dict holds them. The values
    share their memory with the site."""
    return {name: as_saved(site, name, getattr(site, name)) for name in OUTSIDE}


def outside_shapes(site: Site) -> dict[str, tuple[int, ...]]:
    """The shapes of :func:`outside` for the whole weight."""
    (rows, columns), geometry = site.geometry.grid, site.geometry
    total = values_outside(geometry, site.n_fwd, site.n_bwd, site.rule)
    if has_equal_rows(site):
        return {"reservoir": (rows, total // rows), "ever": (rows, -(-columns // 8))}
    return {"reservoir": (total,), "ever": (-(-geometry.units // 8),)}


def columns_of(cols: Tensor, columns: int) -> Tensor:
    """The columns of an index [slots], from their bytes; another tensor is unchanged. columns: of the grid."""
    kind = column_type(columns)
    whole = cols.dtype == torch.uint8 and cols.nbytes % kind.itemsize == 0
    return cols.contiguous().view(-1).view(kind) if whole else cols


def as_saved(site: Site, name: str, tensor: Tensor) -> Tensor:
    """A tensor as a state dict holds it; the inverse of :func:`as_held`.

    Args:
        site: the site, or the part of it that this rank holds.
        name: the name of the tensor in the site.
        tensor: as the site holds it; another tensor is unchanged.
    """
    (rows, columns), shard = site.geometry.grid, site.shard
    if name == "cols" and tensor.dtype == column_type(columns):
        return tensor.view(torch.uint8).view(site.value_shape[0], -1)
    if name not in OUTSIDE or tensor.dim() != 1 or not has_equal_rows(site):
        return tensor
    span = slice(0, rows) if shard is None else shard.span(rows)
    held, width = span.stop - span.start, outside_shapes(site)[name][1]
    if name == "ever" and columns % 8 and tensor.numel() == -(-held * columns // 8):
        bits = unpacked(tensor, held * columns).view(held, columns)
        tensor = packed(nn.functional.pad(bits, (0, -columns % 8)).view(-1))
    return tensor.view(held, width) if tensor.numel() == held * width else tensor


def as_held(site: Site, name: str, tensor: Tensor) -> Tensor:
    """A tensor of a state dict as a site holds it.

    Args:
        site: the site, or the part of it that this rank holds.
        name: the name of the tensor in the site; "values" for B's values.
        tensor: as a state dict holds it, or as the site holds it; another tensor is unchanged.
    """
    columns = site.geometry.grid[1]
    if name == "values":
        fits = tensor.numel() == site.original.numel() and tuple(tensor.shape) != site.geometry.shape
        return tensor.reshape(site.value_shape) if fits else tensor
    if name == "reservoir":
        return tensor.reshape(-1) if tensor.numel() == site.reservoir.numel() else tensor
    if name == "cols":
        kind = site.cols.dtype
        if kind == tensor.dtype or torch.uint8 not in (kind, tensor.dtype) or tensor.nbytes != site.cols.nbytes:
            return tensor
        return tensor.contiguous().view(kind).view(site.cols.shape)
    if name == "ever" and tensor.dim() == 2 and tensor.dtype == torch.uint8 and has_equal_rows(site):
        if columns % 8 == 0:
            return tensor.reshape(-1)
        bits = unpacked(tensor.reshape(-1), tensor.numel() * 8).view(tensor.shape[0], tensor.shape[1] * 8)
        return packed(bits[:, :columns].reshape(-1))
    return tensor
