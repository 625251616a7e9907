"""How a weight is viewed as a matrix of blocks, and how two nested sets of blocks are stored as one index.

An index is three tensors of fixed shape. Block row ``i`` has the slots ``row_ptr[i]:row_ptr[i+1]``: first the blocks of
the forward set A, up to ``row_fwd[i]``, then the blocks of B \\ A; inside each part the columns ascend. ``cols[slot]``
is the block column. So A is a prefix of every row, and one index is enough for all three products of a layer. Slots
from ``row_ptr[-1]`` on are unused: a set may shrink (at the end of exploration) without a change of any shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """How a dense weight maps to a grid of blocks.

    Args:
        shape: the weight's own shape.
        perm: order of the weight's dims that puts the dims of the output first and the contracted dims last.
        lead: how many of the permuted dims form the matrix's rows.
        block: (rows, columns) of one unit; the matrix is padded with zeros up to whole blocks.
    """

    shape: tuple[int, ...]
    perm: tuple[int, ...]
    lead: int
    block: tuple[int, int]

    @cached_property
    def permuted(self) -> tuple[int, ...]:
        return tuple(self.shape[p] for p in self.perm)

    @cached_property
    def inverse(self) -> tuple[int, ...]:
        return tuple(self.perm.index(i) for i in range(len(self.perm)))

    @cached_property
    def rows(self) -> int:
        return math.prod(self.permuted[: self.lead])

    @cached_property
    def cols(self) -> int:
        return math.prod(self.permuted[self.lead :])

    @cached_property
    def grid(self) -> tuple[int, int]:
        return -(-self.rows // self.block[0]), -(-self.cols // self.block[1])

    @cached_property
    def units(self) -> int:
        return self.grid[0] * self.grid[1]

    @cached_property
    def unit(self) -> int:
        return self.block[0] * self.block[1]

    @cached_property
    def numel(self) -> int:
        return math.prod(self.shape)

    def to_blocks(self, dense: Tensor) -> Tensor:
        """[shape] -> [units, r * c], block rows first; padding is zero."""
        (r, c), (gr, gc) = self.block, self.grid
        matrix = dense.permute(self.perm).reshape(self.rows, self.cols)
        if (r, c) == (1, 1):
            return matrix.reshape(-1, 1)
        matrix = torch.nn.functional.pad(matrix, (0, gc * c - self.cols, 0, gr * r - self.rows))
        return matrix.reshape(gr, r, gc, c).transpose(1, 2).reshape(-1, r * c)

    def from_blocks(self, blocks: Tensor) -> Tensor:
        """[units, r * c] -> [shape], contiguous."""
        (r, c), (gr, gc) = self.block, self.grid
        matrix = blocks.reshape(gr, gc, r, c).transpose(1, 2).reshape(gr * r, gc * c)[: self.rows, : self.cols]
        return matrix.reshape(self.permuted).permute(self.inverse).contiguous()


class Index(NamedTuple):
    """The stored form of A and B; see the docstring of this module."""

    row_ptr: Tensor  # int64 [block rows + 1]
    row_fwd: Tensor  # int64 [block rows]
    cols: Tensor  # [slots], uint16 if the grid has at most 65,536 columns of blocks, otherwise int32

    def to(self, device: torch.device, copy: bool = False) -> Index:
        """The same index on a device. ``copy``: in new tensors, also if they are on that device already."""
        return Index(*(tensor.to(device, copy=copy) for tensor in self))


def column_type(columns: int) -> torch.dtype:
    """The type of an index's columns."""
    return torch.uint16 if columns <= 2**16 else torch.int32


def build_index(fwd: Tensor, bwd: Tensor, slots: int) -> Index:
    """The index of two nested sets.

    Args:
        fwd, bwd: bool [block rows, block columns], ``fwd`` inside ``bwd``.
        slots: length of ``cols``, at least ``bwd.sum()``; further slots stay unused, with column 0.
    """
    counts, fwd_counts = bwd.sum(1), fwd.sum(1)
    row_ptr = torch.zeros(bwd.shape[0] + 1, dtype=torch.int64, device=bwd.device)
    torch.cumsum(counts, 0, out=row_ptr[1:])
    # Key 0 for A, 1 for B \ A, 2 outside: a stable sort by key keeps the columns ascending within each part.
    key = 2 - fwd.to(torch.uint8) - bwd.to(torch.uint8)
    order = torch.sort(key, dim=1, stable=True).indices.to(torch.int32)
    taken = order[torch.arange(bwd.shape[1], device=bwd.device) < counts[:, None]]
    cols = torch.nn.functional.pad(taken, (0, slots - taken.numel())).to(column_type(bwd.shape[1]))
    return Index(row_ptr, row_ptr[:-1] + fwd_counts, cols)


def slot_rows(index: Index) -> Tensor:
    """Block row of every slot [slots]; the number of block rows for unused slots. The length is known, so the host does
    not wait for the device."""
    row_ptr, _, cols = index
    rows = torch.arange(row_ptr.numel(), device=cols.device)
    counts = torch.cat([row_ptr.diff(), cols.numel() - row_ptr[-1:]])
    return torch.repeat_interleave(rows, counts, output_size=cols.numel())


def slot_units(index: Index, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """For every slot its unit, and whether the unit is in A. For unused slots the unit is ``geometry.units``, which is
    one past the last unit."""
    rows = slot_rows(index)
    slots = torch.arange(index.cols.numel(), device=rows.device)
    row_fwd = torch.nn.functional.pad(index.row_fwd, (0, 1))
    units = rows * geometry.grid[1] + index.cols.int()  # torch has no arithmetic on uint16
    return torch.where(rows < geometry.grid[0], units, geometry.units), slots < row_fwd[rows]


def forward_part(values: Tensor, index: Index, geometry: Geometry) -> tuple[Tensor, Index]:
    """The values and the index of A alone, in new tensors: every slot is a slot of A.

    Args:
        values: the values at the index's slots, of any shape.
        index: an index of A and B.
    """
    _, in_fwd = slot_units(index, geometry)
    # torch cannot select from uint16; the numbers are only moved, so they are viewed as int16.
    signed = index.cols.view(torch.int16) if index.cols.dtype == torch.uint16 else index.cols
    row_ptr = torch.zeros_like(index.row_ptr)
    torch.cumsum(index.row_fwd - index.row_ptr[:-1], 0, out=row_ptr[1:])
    cols = signed[in_fwd].view(index.cols.dtype)
    return values.reshape(-1, geometry.unit)[in_fwd].reshape(-1), Index(row_ptr, row_ptr[1:].clone(), cols)


def explored_values(index: Index, geometry: Geometry) -> Tensor:
    """Bool [values]: True for the values in B \\ A."""
    units, in_fwd = slot_units(index, geometry)
    return (~in_fwd & (units < geometry.units)).repeat_interleave(geometry.unit)


def index_masks(index: Index, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`build_index`: (A, B) as bool [units]."""
    units, in_fwd = slot_units(index, geometry)
    fwd = torch.zeros(geometry.units + 1, dtype=torch.bool, device=units.device)
    bwd = fwd.clone()
    fwd[units] = in_fwd
    bwd[units] = True
    return fwd[:-1], bwd[:-1]


def check_index(index: Index, geometry: Geometry) -> str | None:
    """The error in an index from another source; None if there is none. Kernels do not check an index: check it
    first."""
    if any(tensor.is_floating_point() for tensor in index):
        return "its numbers are fractions, as an average or a cast of a state dict makes them"
    row_ptr, row_fwd, cols = index[0], index[1], index[2].int()
    if int(row_ptr[0]) != 0 or bool((row_ptr.diff() < 0).any()) or int(row_ptr[-1]) > cols.numel():
        return "row_ptr does not ascend from 0 to at most the number of slots"
    if bool((row_fwd < row_ptr[:-1]).any()) or bool((row_fwd > row_ptr[1:]).any()):
        return "row_fwd is outside its row"
    if cols.numel() and (int(cols.min()) < 0 or int(cols.max()) >= geometry.grid[1]):
        return f"a column is outside [0, {geometry.grid[1]})"
    units, in_fwd = slot_units(index, geometry)
    used = units < geometry.units
    units, in_fwd = units[used], in_fwd[used]
    if units.unique().numel() != units.numel():
        return "a block is listed twice"
    # Kernels read a row in groups of columns. A column that does not ascend would be outside its group's buffer.
    if bool(((units.diff() < 0) & (in_fwd[1:] | ~in_fwd[:-1])).any()):
        return "a row's columns do not ascend within A and within B \\ A"
    return None
