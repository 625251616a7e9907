"""Where the ranks hold the parts of a sharded weight.

FSDP2 replaces a parameter by a ``DTensor``. Each rank holds some of its rows: the same number on every rank, except
that the last ranks may hold fewer rows or none.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from topkast.runtime.errors import ModelError
from topkast.runtime.layout import Index


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is a ``DTensor``. Does not import the slow module that defines the class."""
    module = sys.modules.get("torch.distributed.tensor")
    kind = getattr(module, "DTensor", None)
    return kind is not None and isinstance(tensor, kind)


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, with the same memory; a tensor that is not sharded is returned as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def cut_by_rows(tensor: Any) -> bool:
    """Whether a ``DTensor`` is cut along its first dimension by one dimension of its mesh, and no other way."""
    cut = [one for one in tensor.placements if not one.is_replicate()]
    return len(cut) == 1 and type(cut[0]).__name__ == "Shard" and cut[0].dim == 0


def rows_held(tensor: Any) -> slice:
    """This rank's rows of a ``DTensor`` that is cut by rows."""
    dim = next(dim for dim, one in enumerate(tensor.placements) if one.is_shard())
    rows, rank = tensor.shape[0], tensor.device_mesh.get_local_rank(dim)
    chunk = -(-rows // tensor.device_mesh.size(dim))
    return slice(min(rank * chunk, rows), min((rank + 1) * chunk, rows))


@dataclass(frozen=True)
class Shard:
    """A rank's part of one site.

    Args:
        values: the sharded parameter, as it is between the forwards.
        cols: the columns of the index: a sharded parameter of bytes, or a whole buffer that every rank has.
        group: the process group of the ranks that hold one part each.
        rank: this rank's number in the group.
        ranks: the number of ranks in the group.
        copies: process groups whose ranks all hold the same part as this rank.
        slots: the number of slots of the whole index.
    """

    values: Any
    cols: Any
    group: Any
    rank: int
    ranks: int
    copies: tuple[Any, ...]
    slots: int

    @property
    def chunk(self) -> int:
        """The number of rows of the values on a rank, if the rank is not one of the last."""
        return -(-self.values.shape[0] // self.ranks)

    @property
    def slots_of_chunk(self) -> int:
        """The number of slots on a rank, if the rank is not one of the last."""
        return self.chunk * (self.slots // self.values.shape[0])

    def span(self, total: int, chunk: int | None = None) -> slice:
        """The entries of a vector that this rank holds.

        Args:
            total: the length of the vector.
            chunk: the number of entries on a rank; None: the entries are shared out evenly.
        """
        chunk = -(-total // self.ranks) if chunk is None else chunk
        return slice(min(self.rank * chunk, total), min((self.rank + 1) * chunk, total))

    def gather(self, part: Tensor, total: int, chunk: int | None = None) -> Tensor:
        """All of a vector, from the parts of all ranks. Every rank must call this.

        Args:
            part: this rank's part, [entries]; see :meth:`span`.
            total, chunk: as in :meth:`span`.
        """
        chunk = -(-total // self.ranks) if chunk is None else chunk
        mine = part.new_zeros(chunk, device=self.values.device)
        mine[: part.numel()] = part
        found = mine.new_empty(chunk * self.ranks)
        if chunk:  # send bytes, because no backend sends all types
            # torch 2.13 gives the function another name, and warns of the old one.
            gather = getattr(torch.distributed, "all_gather_single", torch.distributed.all_gather_into_tensor)
            gather(found.view(torch.uint8), mine.view(torch.uint8), group=self.group)
        return found[:total].to(part.device)

    def own_index(self, row_ptr: Tensor, row_fwd: Tensor, cols: Tensor) -> Index:
        """The index of this rank's slots in the grid of the whole weight. Rows of other ranks are empty.

        Args:
            row_ptr, row_fwd: of the whole index.
            cols: the columns of this rank's slots.
        """
        begin = self.span(self.slots, self.slots_of_chunk).start
        return Index((row_ptr - begin).clamp(0, cols.numel()), (row_fwd - begin).clamp(0, cols.numel()), cols)


def shard_of(name: str, values: Any, cols: Any, slots: int) -> Shard:
    """The part of a weight that this rank holds.

    Args:
        name: the name of the weight, for errors.
        values: the ``DTensor`` that holds B's values.
        cols: see :class:`Shard`.
        slots: the number of slots of the whole index.

    Raises:
        ModelError: the tensor is not cut along its rows by one dimension of a mesh.
    """
    cut = [dim for dim, placement in enumerate(values.placements) if placement.is_shard()]
    others = [dim for dim, placement in enumerate(values.placements) if placement.is_replicate()]
    if not cut_by_rows(values):
        raise ModelError(
            f"{name}: a DTensor with the placements {values.placements}; topkast trains weights that fully_shard has "
            "cut along their first dimension, on a mesh of one dimension (or two: HSDP)"
        )
    if cols.dtype == torch.uint8 and getattr(cols, "placements", None) != values.placements:
        raise ModelError(
            f"{name}: its values are sharded and its positions are not; give fully_shard both (no ignored_params)"
        )
    if slots % values.shape[0]:
        raise ModelError(f"{name}: too small to be sharded; keep it dense with exclude={name!r}")
    mesh = values.device_mesh
    groups = tuple(mesh.get_group(dim) for dim in others)
    rank, ranks = mesh.get_local_rank(cut[0]), mesh.size(cut[0])
    return Shard(values, cols, mesh.get_group(cut[0]), rank, ranks, groups, slots)
