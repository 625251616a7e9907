"""A site that ``fully_shard`` may have cut into parts, a part for each rank.

Without ``fully_shard`` everything here is as in :class:`topkast.runtime.state.content.derived.Derived`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from topkast.runtime.errors import ModelError
from topkast.runtime.kernels.theta import assemble
from topkast.runtime.layout import Index, column_type, index_masks
from topkast.runtime.state.content.derived import Derived
from topkast.runtime.state.content.shards.shard import Shard, is_sharded, local, shard_of
from topkast.runtime.state.content.shards.shard_outside import own_outside

from .gathered import gathered
from .untouched import with_rows


class ShardableSite(Derived):
    """The part of a site that knows which part of the weight this rank holds."""

    cols: Tensor
    ever: Tensor
    _shard: Shard | None
    _own: tuple[int, int] | None
    _part: tuple[int, int] | None = None  # (rank, ranks) if the site has only the rows that this rank will hold
    scaled: float
    compared: bool
    column_type: torch.dtype
    _buffers: dict[str, Tensor | None]
    register_parameter: Any

    @abstractmethod
    def remember_index(self) -> None:
        """Remember the current index as the site's own index."""

    def share_index(self) -> None:
        """Make the columns of the index a frozen parameter, before :meth:`adopt`. Then ``fully_shard`` cuts and gathers
        the columns together with the values. They are stored as bytes, because no backend sends 16-bit integers.

        Raises:
            ModelError: the weight has so few blocks that its values cannot be cut.
        """
        rows = self.value_shape[0]
        if self.n_bwd % rows:
            raise ModelError(f"{self.name}: too small to be sharded; keep it dense with exclude={self.name!r}")
        # Stored, because Dynamo does not trace the room of column_type and compiled blocks read it.
        self.column_type = column_type(self.geometry.grid[1])
        cols = self._buffers.pop("cols")
        assert cols is not None
        self.register_parameter("cols", nn.Parameter(cols.view(torch.uint8).view(rows, -1), requires_grad=False))

    @torch.no_grad()
    def keep_part(self, mesh: Any) -> None:
        """Keep only what this rank will hold when ``fully_shard`` has cut the values. After :meth:`share_index` and
        :meth:`adopt`; until ``fully_shard`` every other use of the site raises ModelError.

        Args:
            mesh: the mesh that ``fully_shard`` will be called with.
        """
        place = mesh.get_local_rank(mesh.ndim - 1), mesh.size(mesh.ndim - 1)
        shard = Shard(self.original, self.cols, None, *place, (), self.n_bwd)
        reservoir, self.ever = own_outside(self, shard)
        self.reservoir = self.place.allocate(reservoir.numel(), reservoir).copy_(reservoir)
        for tensor in (self.original, self.cols):
            tensor.set_(with_rows(tensor.detach(), shard.span(tensor.shape[0], shard.chunk)))  # type: ignore[call-overload]
        self.remember_index()
        self._part = place

    @property
    def is_part(self) -> bool:
        """Whether the site has only its own rows, see :meth:`keep_part`."""
        return self._part is not None

    @torch.no_grad()
    def scale_part(self, factor: float) -> None:
        """Multiply the θ of a site that :meth:`keep_part` was called for."""
        rank, ranks = self._part or (0, 1)
        rows = Shard(self.original, self.cols, None, rank, ranks, (), self.n_bwd)
        self.original[rows.span(self.original.shape[0], rows.chunk)].mul_(factor)
        self.reservoir.mul_(factor)
        self.scaled = factor

    @property
    def columns(self) -> Tensor:
        """The columns of the whole index [slots]; see :meth:`share_index`.

        Raises:
            ModelError: each rank has a part of them.
        """
        cols: Tensor = self.cols
        if cols.dtype != torch.uint8:
            return cols
        if not torch.compiler.is_compiling() and is_sharded(cols):
            self.refuse_shard()
            raise ModelError(
                f"{self.name}: its positions are sharded and its values are not; give fully_shard both (no "
                "ignored_params)"
            )
        return cols.view(self.column_type).view(-1)

    def refuse_shard(self, what: str = "this") -> None:
        """Raise ModelError if the site is sharded.

        Args:
            what: the name of the function that cannot work on a part.
        """
        if self.shard is not None:
            raise ModelError(
                f"{self.name}: sharded over several processes, and {what} needs the whole weight; "
                "topkast.dense_state_dict(model, values='all', full=True) gathers it on rank 0, and "
                "topkast.load_dense_state_dict loads it into the same model without fully_shard"
            )

    @property
    def values(self) -> Tensor:
        """B's values as a detached vector [values], with the same memory."""
        self.refuse_shard()
        return super().values

    @property
    def index(self) -> Index:
        """The index of the whole weight."""
        if not torch.compiler.is_compiling():
            self.refuse_shard()
        return super().index

    @property
    def index_is_whole(self) -> bool:
        """Whether this rank has all columns of the index, and not only those of its own slots."""
        return self.cols.dtype != torch.uint8

    @property
    def own_columns(self) -> Tensor:
        """The columns of the slots that this rank holds, with the same memory."""
        shard = self.shard
        if shard is None:
            return self.columns
        cols = shard.cols
        if self.index_is_whole:
            return cols[shard.span(shard.slots, shard.slots_of_chunk)]
        return local(cols).view(self.column_type).view(-1)

    @property
    def shard(self) -> Shard | None:
        """This rank's part, if ``fully_shard`` has cut the values; otherwise None."""
        if "_table" not in self.__dict__:
            return None  # no module holds the values yet
        values = self.table.get(self.attribute)
        if is_sharded(values) and (self._shard is None or values is not self._shard.values):
            self._become_sharded(values)
        elif self._part is not None and self._shard is None:
            raise ModelError(
                f"{self.name}: made on the meta device with mesh, so this process has only the rows that it will hold; "
                "call fully_shard with this mesh first"
            )
        return self._shard

    @torch.no_grad()
    def _become_sharded(self, values: Any) -> None:
        shard = shard_of(self.name, values, self.cols, self.n_bwd)
        if self._part not in (None, (shard.rank, shard.ranks)):
            raise ModelError(
                f"{self.name}: fully_shard was called with a mesh in which this process is part {shard.rank} of "
                f"{shard.ranks}, and topkast.sparsify with a mesh in which it is part {self._part[0]} of "
                f"{self._part[1]}; use the same mesh"
            )
        if self._shard is None and self._part is None:
            reservoir, self.ever = own_outside(self, shard)
            self.reservoir = self.place.allocate(reservoir.numel(), reservoir).copy_(reservoir)
        self._shard, self._own = shard, (id(values), id(shard.cols))
        self.remember_index()

    @property
    def is_gathered(self) -> bool:
        """Whether the values of a sharded site are gathered now, for a forward or a backward."""
        return self.shard is not None and self.table.get(self.attribute) is not self._shard.values  # type: ignore[union-attr]

    @property
    def original(self) -> nn.Parameter:
        """B's values as the module's parameter, of :attr:`value_shape`; of a sharded site the parameter that an
        optimizer updates, also while the values are gathered."""
        values: Any = self.table[self.attribute]
        return values if self._shard is None or is_sharded(values) else self._shard.values

    def stored(self) -> tuple[Tensor, Index]:
        """The values [values] that this rank has, and their index in the grid of the whole weight."""
        shard = self.shard
        if shard is None:
            return self.values, self.index
        return local(shard.values).view(-1), shard.own_index(self.row_ptr, self.row_fwd, self.own_columns)

    def count_compared(self) -> None:
        """Record that the ranks of a sharded site were compared."""
        self.compared = True

    def theta(self) -> Tensor:
        """All of θ, dense, detached, on the reservoir's device: assembled from B's values and the reservoir. Of a
        sharded site all ranks call this together."""
        self.check_whole()
        values, reservoir, index = gathered(self)
        return assemble(values.to(self.home), reservoir, index.to(self.home), self.geometry)

    def sets(self) -> tuple[Tensor, Tensor]:
        """(A, B) as dense bool tensors of the weight's shape. Of a sharded site all ranks call this together."""
        self.check_whole()
        fwd, bwd = (
            self.geometry.from_blocks(mask[:, None].expand(-1, self.geometry.unit))
            for mask in index_masks(gathered(self)[2], self.geometry)
        )
        return fwd, bwd
