"""A sharded site as this rank changes it: as whole rows that the rank holds, or as a whole that is gathered.

If every row of blocks has the same counts, and a rank holds whole rows, then the rank's part is a smaller weight of its
own. The rank chooses the sets of its rows and sends nothing. Otherwise the site is gathered, one site at a time. Every
rank then chooses the same sets and keeps its part.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from topkast.runtime.errors import RefreshError
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.state.content.derived import Derived
from topkast.runtime.state.content.optimizer_state import kept_tensors
from topkast.runtime.state.content.parts import Change, Copy, Parts
from topkast.runtime.state.content.reservoirs import values_outside
from topkast.runtime.state.content.shards.shard import Shard, local
from topkast.runtime.state.content.shards.shard_outside import rows_of

from .compare import compare_if_asked


class Part(Derived):
    """A stand-in for a sharded site in code that changes sites. Other attributes are the site's own."""

    def __init__(self, site: Any, shard: Shard) -> None:
        self.site, self.shard = site, shard

    def __getattr__(self, name: str) -> Any:
        return getattr(self.site, name)

    def check_whole(self) -> None:
        """Raise ModelError if the site's tensors are no longer its own."""
        self.site.check_whole()

    def parts(self) -> Parts:
        """The tensors that a refresh changes."""
        self.check_whole()
        if self.site.is_gathered:
            raise RefreshError(
                f"{self.name}: its values are gathered for a forward, which would not see new sets; call reshard() of "
                "the modules that fully_shard returned, or refresh after the optimizer's step"
            )
        self.site.unshare()
        kept, starts = kept_tensors(self.site.original, self.site.optimizers)
        values, ever = self.shard.values, self.site.ever
        reservoir = self.collected(self.site.reservoir, self.outside)
        index = self.index
        ever = self.collected(ever, -(-self.geometry.units // 8))
        return Parts(self.taken(values), reservoir, index, ever, list(map(self.taken, kept)), starts)

    @property
    def outside(self) -> int:
        """The number of values in the reservoir of this part."""
        return values_outside(self.geometry, self.n_fwd, self.n_bwd, self.rule)

    @abstractmethod
    def taken(self, stored: Tensor) -> Tensor:
        """This part's numbers of a tensor with one number for each value, as a vector."""

    @abstractmethod
    def collected(self, stored: Tensor, total: int) -> Tensor:
        """This part's entries of a vector that lies in the memory of this rank; ``total`` is their number."""

    def put(self, stored: Tensor, new: Tensor) -> None:
        """Store a vector made from :meth:`taken`."""
        local(stored).view(-1).copy_(new)

    @abstractmethod
    def write(self, live: Parts | None, change: Change, copy: Copy = Tensor.copy_) -> None:
        """Apply a change of this part to the site."""


class Rows(Part):
    """The rows of blocks that this rank holds, as a weight of their own."""

    def __init__(self, site: Any, shard: Shard, rows: slice) -> None:
        super().__init__(site, shard)
        self.rows, g = rows, site.geometry
        count = rows.stop - rows.start
        matrix_rows = min(g.rows, rows.stop * g.block[0]) - min(g.rows, rows.start * g.block[0])
        self.geometry = Geometry((matrix_rows, g.cols), (0, 1), 1, g.block)
        self.n_fwd, self.n_bwd = count * (site.n_fwd // g.grid[0]), count * (site.n_bwd // g.grid[0])
        own = shard.own_index(site.row_ptr, site.row_fwd, site.own_columns)
        self.row_ptr, self.row_fwd = own.row_ptr[rows.start : rows.stop + 1], own.row_fwd[rows]
        self._columns = own.cols

    @property
    def columns(self) -> Tensor:
        return self._columns

    def taken(self, stored: Tensor) -> Tensor:
        return local(stored).view(-1)

    def collected(self, stored: Tensor, total: int) -> Tensor:
        return stored

    def taken_theta(self, theta: Tensor) -> Tensor:
        whole, height = self.site.geometry, self.geometry.block[0]
        matrix = theta.permute(whole.perm).reshape(whole.rows, whole.cols)
        return matrix[self.rows.start * height : self.rows.stop * height]

    def write(self, live: Parts | None, change: Change, copy: Copy = Tensor.copy_) -> None:
        self.site.write(live, change, copy)
        if self.site.index_is_whole and change.parts is not None:
            cols, chunk = self.shard.cols, self.shard.slots_of_chunk
            cols.copy_(self.shard.gather(self.columns, cols.numel(), chunk))
            self.site.remember_index()
        compare_if_asked(self.site, self.shard)

    def _draw(self, step: int, like: Tensor, purpose: str) -> Tensor:
        every = torch.empty(self.site.geometry.grid[0], *like.shape[1:], device="cpu")
        return self.site._draw(step, every, purpose)[self.rows].to(like.device)


class Whole(Part):
    """All of a site, gathered from the ranks."""

    def __init__(self, site: Any, shard: Shard) -> None:
        super().__init__(site, shard)
        self.geometry, self.n_fwd, self.n_bwd = site.geometry, site.n_fwd, site.n_bwd
        self.row_ptr, self.row_fwd = site.row_ptr, site.row_fwd

    @cached_property
    def columns(self) -> Tensor:
        shard = self.shard
        if self.site.index_is_whole:
            return shard.cols.clone()
        return shard.gather(self.site.own_columns, shard.slots, self._chunk)

    @property
    def _chunk(self) -> int:
        return self.shard.slots_of_chunk

    def taken(self, stored: Tensor) -> Tensor:
        unit = self.geometry.unit
        return self.shard.gather(local(stored).reshape(-1), self.n_bwd * unit, self._chunk * unit)

    def collected(self, stored: Tensor, total: int) -> Tensor:
        return self.shard.gather(stored, total)

    def put(self, stored: Tensor, new: Tensor) -> None:
        super().put(stored, new[self._own(new)])

    def write(self, live: Parts | None, change: Change, copy: Copy = Tensor.copy_) -> None:
        if live is None or change.parts is None:
            self.site.write(None, change, copy)
            return
        shard, new = self.shard, change.parts
        kept, starts = kept_tensors(self.site.original, self.site.optimizers)
        whole = shard.cols if self.site.index_is_whole else self.site.own_columns
        stored = Parts(
            local(shard.values).view(-1),
            self.site.reservoir,
            Index(self.site.row_ptr, self.site.row_fwd, whole),
            self.site.ever,
            [local(tensor).view(-1) for tensor in kept],
            starts,
        )
        cols = new.index.cols if self.site.index_is_whole else new.index.cols[shard.span(shard.slots, self._chunk)]
        own = Parts(
            new.values[self._own(new.values)],
            new.reservoir[shard.span(new.reservoir.numel())],
            Index(new.index.row_ptr, new.index.row_fwd, cols),
            new.ever[shard.span(new.ever.numel())],
            [tensor[self._own(tensor)] for tensor in new.kept],
            new.starts,
        )
        self.site.write(stored, replace(change, parts=own), copy)
        compare_if_asked(self.site, shard)

    def _own(self, values: Tensor) -> slice:
        return self.shard.span(values.numel(), self._chunk * self.geometry.unit)


def at_work(site: Any) -> Any:
    """The object that code which changes a site works on: the site itself, or, if it is sharded, a stand-in."""
    shard = site.shard
    if shard is None:
        return site
    rows = rows_of(site, shard)
    return Whole(site, shard) if rows is None else Rows(site, shard, rows)
