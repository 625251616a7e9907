"""One sparsified parameter: its values on B, its index, and the rest of θ.

B's values are the module's own parameter, under its own name: an ordinary ``nn.Parameter`` with two dimensions.
Elementwise code (optimizers, clipping, GradScaler, DDP) works on this parameter without changes. The site holds the
rest. All tensors keep their shapes, so a change of the sets never causes a recompilation.

Only this file writes a site's fields. ``site_module.py`` has the site's behaviour as a module of a model.
"""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from topkast.runtime.errors import ModelError, RefreshError
from topkast.runtime.kernels.theta import assemble, store
from topkast.runtime.layout import Geometry, Index, column_type, index_masks
from topkast.runtime.methods import METHODS
from topkast.runtime.registry import new_key, register
from topkast.runtime.rule import Rule
from topkast.runtime.state.content.background import Pending
from topkast.runtime.state.content.choose_sets import first_sets, with_bits
from topkast.runtime.state.content.derived import Derived
from topkast.runtime.state.content.family import Family
from topkast.runtime.state.content.fingerprint import fingerprint
from topkast.runtime.state.content.index_check import WRITTEN, Note, checked, remembered
from topkast.runtime.state.content.optimizer_state import kept_tensors
from topkast.runtime.state.content.parts import HALF, Change, Copy, Parts, Snapshot
from topkast.runtime.state.content.reservoirs import values_outside
from topkast.runtime.state.content.shard import Shard, is_sharded, local, shard_of
from topkast.runtime.state.content.shard_outside import own_outside
from topkast.runtime.state.sharding.gathered import gathered


class Site(Derived, nn.Module):
    """State of one site.

    Args:
        parameter: the dense parameter; after :meth:`adopt` the same object holds B's values.
        name: the parameter's name in the model, which is part of the seed of random exploration.
        geometry: how the weight is cut into units.
        n_fwd, n_bwd: the number of units in A and in B, 0 < n_fwd <= n_bwd; with ``rule.balanced`` both are multiples
            of the number of block rows.
        rule: how the sets are renewed.
        family: the mark of the model.
    """

    row_ptr: Tensor
    row_fwd: Tensor
    cols: Tensor
    ever: Tensor  # bits: which units were ever in A

    def __init__(
        self,
        parameter: nn.Parameter,
        name: str,
        geometry: Geometry,
        n_fwd: int,
        n_bwd: int,
        rule: Rule,
        family: Family | None = None,
    ):
        super().__init__()
        self.name, self.geometry, self.rule = name, geometry, rule
        self.n_fwd, self.n_bwd = n_fwd, n_bwd
        self.method = METHODS[rule.method]()
        self.step = self.refreshed_at = 0
        self.pending: Pending | None = None  # sets that a thread is choosing or has chosen
        self.family = family or Family()
        self.watch: Any = None  # for a compiled model: checks whether its steps run compiled
        self._start()
        theta = parameter.detach()
        sets = first_sets(self.method, self.set_state(), theta)
        for field, tensor in zip(Index._fields, sets.index, strict=True):
            self.register_buffer(field, tensor)
        ever = torch.zeros(-(-geometry.units // 8), dtype=torch.uint8, device=theta.device)
        self.register_buffer("ever", with_bits(ever, sets.fwd))
        self._hold(self.place.allocate(values_outside(geometry, n_fwd, n_bwd, rule), theta))
        self._values = theta.new_empty(n_bwd * geometry.unit)
        store(theta, self._values, self.reservoir, self.index, geometry)

    @torch.no_grad()
    def adopt(self, owner: nn.Module, attribute: str) -> None:
        """Let the parameter ``owner.attribute``, which the site was made from, hold B's values. The parameter does not
        change before this call."""
        self.attribute = attribute
        self.bind(owner)
        self.original.grad = None
        self.original.set_(self._values.view(self.value_shape))  # type: ignore[call-overload]
        self.remember_index()
        self.accept()
        del self._values
        register(self)

    def _start(self) -> None:
        """Set every field that belongs to one object in one process."""
        self.key = new_key()
        self.ran: Counter[tuple[str, str, str]] = Counter()
        self.changes = 0  # how often topkast itself wrote to the values, see training/standing_clock.py
        self.copies: weakref.WeakSet[Site] = weakref.WeakSet()  # see copies.py
        self.copied = self.alone = False  # whether it was made as a copy; whether it no longer takes its source's sets
        self.print: Tensor | None = None  # fingerprint of a copy's values at the time of the copy
        self.snapshot: Snapshot | None = None  # the sets of a copy before it got new sets from its source
        self.late = 0  # refreshes that no forward did, see training/optimizer_hooks.py
        self.unread_state_index: Index | None = None  # see optimizer_state.py
        self.decayed_by = 0.0  # lr * exploration_decay of the last step, if the option is set
        self.scaled = 1.0  # the factor that θ was multiplied by at the start, see topkast.compiler.convert.initial
        self.broken: str | None = None  # why the site cannot be used any more; see parts.py
        self.churn: list[tuple[int, float, float]] = []  # (step, share new in A, share new in B) of each refresh
        self.optimizers: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._own: tuple[int, int] | None = None
        self.owner = None
        self.noted: Note | None = None
        self._shard: Shard | None = None
        self.compared = False  # whether the ranks of a sharded site were compared

    def _hold(self, reservoir: Tensor) -> None:
        # A reservoir that moves with `.to` is a buffer. It is saved by hand, so that all places have the same format.
        if self.place.follows_model:
            self.register_buffer("reservoir", reservoir, persistent=False)
        else:
            self.reservoir = reservoir

    def share_index(self) -> None:
        """Make the columns of the index a frozen parameter, before :meth:`adopt`. Then ``fully_shard`` cuts and gathers
        the columns together with the values. They are stored as bytes, because no backend sends 16-bit integers.

        Raises:
            ModelError: the weight has so few blocks that its values cannot be cut.
        """
        rows = self.value_shape[0]
        if self.n_bwd % rows:
            raise ModelError(f"{self.name}: too small to be sharded; keep it dense with exclude={self.name!r}")
        cols = self._buffers.pop("cols")
        assert cols is not None
        self.register_parameter("cols", nn.Parameter(cols.view(torch.uint8).view(rows, -1), requires_grad=False))

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
        return cols.view(column_type(self.geometry.grid[1])).view(-1)

    def refuse_shard(self, what: str = "this") -> None:
        """Raise ModelError if the site is sharded. what: the name of the function that cannot work on a part."""
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
        """The columns of the slots that this rank holds, with the same memory. Only for a sharded site."""
        shard = self.shard
        assert shard is not None
        cols = shard.cols
        if self.index_is_whole:
            return cols[shard.span(shard.slots, shard.slots_of_chunk)]
        return local(cols).view(column_type(self.geometry.grid[1])).view(-1)

    @property
    def shard(self) -> Shard | None:
        """This rank's part, if ``fully_shard`` has cut the values; otherwise None."""
        if "_table" not in self.__dict__:
            return None  # no module holds the values yet
        values = self.table.get(self.attribute)
        if is_sharded(values) and (self._shard is None or values is not self._shard.values):
            self._become_sharded(values)
        return self._shard

    @torch.no_grad()
    def _become_sharded(self, values: Any) -> None:
        shard = shard_of(self.name, values, self.cols, self.n_bwd)
        if self._shard is None:
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
        shard = self.shard
        return self.table[self.attribute] if shard is None else shard.values  # type: ignore[return-value]

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

    def parts(self) -> Parts:
        """The current tensors that a refresh changes."""
        self.check_whole()
        self.unshare()  # the caller is about to write
        return Parts(self.values, self.reservoir, self.index, self.ever, *kept_tensors(self.original, self.optimizers))

    def check_whole(self) -> None:
        """Raise ModelError if a change of the site failed in the middle, or if other code has changed its sets."""
        if self.broken is None and self.undisturbed() and self._index_was_written():
            self.broken = WRITTEN
        if self.broken is not None:
            raise ModelError(f"{self.name}: {self.broken}, so its weights are lost; build the model again and load it")

    def _index_was_written(self) -> bool:
        try:
            self.noted = checked(self._index_in_memory(), self.noted)
        except LookupError:
            return True
        return False

    def _index_in_memory(self) -> Index:
        # The tensor itself, not a view of another type: the check compares identities and versions.
        return Index(self.row_ptr, self.row_fwd, local(self.cols if self._shard is None else self._shard.cols))

    def undisturbed(self) -> bool:
        """Whether the site has its own tensors. False if ``functional_call`` has put other tensors in their place."""
        self.shard  # noqa: B018 (notices that fully_shard has replaced the tensors)
        now = id(self.table.get(self.attribute)), id(self.cols)
        if self._own is None:  # a copy, used for the first time
            self._own = now
        return self._own == now

    def accept(self, values: nn.Parameter | None = None) -> None:
        """Accept other tensors in the place of the site's tensors permanently. ``values`` are the values that will be
        set soon; None: the current values."""
        self._own = id(self.original if values is None else values), id(self.cols)
        if self._index_was_written():
            self.broken = WRITTEN
        self.remember_index()

    def remember_index(self) -> None:
        """Remember the current index as the site's own index."""
        self.noted = remembered(self._index_in_memory())

    def mark_broken(self, why: str | None) -> None:
        """Mark the site as unusable, so that every use raises ModelError with this reason; None: as usable again."""
        self.broken = why

    @torch.no_grad()
    def write(self, live: Parts | None, change: Change, copy: Copy = Tensor.copy_) -> None:
        """Apply a change. A second call from the start gives the same result.

        Args:
            live: the site's parts, as they were when the change was prepared; None: the change has only fields.
            change: the change to apply, with the changes of the site's copies.
            copy: (target, source) -> None, called in the order of the copies.
        """
        of_copies = change.of_copies or []
        for other, *_ in of_copies:
            other.mark_broken(HALF)
        if live is not None and change.parts is not None:
            for target, source in zip(live.tensors(), change.parts.tensors(), strict=True):
                copy(target, source)
            live.reservoir.copy_(change.parts.reservoir)
            self.remember_index()
            self.method.forget()
        self.changes += 1
        now = self.original if change.parts is None else change.parts.values  # the copy to the parameter may still run
        self.snapshot, self.print = None, fingerprint(now) if self.copied else None
        for name, value in change.fields.items():
            setattr(self, name, value)
        for other, parts, its in of_copies:
            other.write(parts, its)
            other.mark_broken(None)
        if change.after is not None:
            change.after()

    def unshare(self) -> None:
        """Before a write to the reservoir: make sure that no forked process shares the reservoir."""
        if (own := self.place.unshared(self.reservoir)) is not self.reservoir:
            self.reservoir = own

    def replace_tensors(self, values: nn.Parameter, tensors: dict[str, Tensor], reservoir: Tensor) -> None:
        """Put the given tensors in the place of the site's own tensors.

        Args:
            values: B's values.
            tensors: the index and the marks by name.
            reservoir: the values outside B; they are copied, unless the reservoir is on the model's device.
        """
        self.table[self.attribute] = values
        cols = tensors["cols"]
        if not self.index_is_whole:
            self._parameters["cols"] = nn.Parameter(cols, requires_grad=False)
            tensors = {name: tensor for name, tensor in tensors.items() if name != "cols"}
        self._buffers.update(tensors)
        if self.place.follows_model:
            self._buffers["reservoir"] = reservoir
        elif self.reservoir is not reservoir:
            self.reservoir = self.place.allocate(reservoir.numel(), values.detach()).copy_(reservoir)
        self.accept()

    def cast_reservoir(self, like: Tensor) -> None:
        """Change the reservoir's dtype to the dtype of ``like``. A reservoir that is a buffer has this dtype already. A
        cast counts as a change of all of θ."""
        if self.reservoir.dtype != like.dtype:
            self.reservoir = self.place.allocate(self.reservoir.numel(), like).copy_(self.reservoir)
        self.changes += 1

    def count_step(self) -> None:
        """Count a complete optimizer step."""
        self.alone = True
        self.step += 1

    def count_late_refresh(self) -> None:
        """Count a refresh that came after a step instead of before a forward."""
        self.late += 1

    def go_own_way(self) -> None:
        """From now on the site does not take the sets of the site that it was copied from."""
        self.alone = True

    def record_decay(self, rate: float) -> None:
        """Record lr * exploration_decay of the last step."""
        self.decayed_by = rate

    def forget_snapshot(self) -> None:
        """Forget the snapshot, because the site is now used with its current sets."""
        self.snapshot = None

    def set_clock(self, step: int, refreshed_at: int) -> None:
        """Set the number of steps and the step of the last refresh."""
        self.step, self.refreshed_at = step, refreshed_at

    def set_seed(self, seed: int) -> None:
        """Set the seed of all random draws."""
        self.rule = self.rule.replaced(seed=seed)

    def set_churn(self, churn: list[tuple[int, float, float]]) -> None:
        """Set :attr:`churn`."""
        self.churn = churn

    def set_watch(self, watch: Any) -> None:
        """Set the object that checks whether the steps of a compiled model run compiled."""
        self.watch = watch

    def set_runs(self, ran: Counter[tuple[str, str, str]]) -> None:
        """Set how often each product ran."""
        self.ran = ran

    def set_pending(self, pending: Pending | None) -> None:
        """Set the sets that a thread is choosing or has chosen."""
        self.pending = pending

    def wait(self) -> None:
        """Wait until no thread reads the reservoir."""
        if self.pending is not None:
            self.pending.wait()

    def drop_pending(self) -> None:
        """Drop the sets that a thread is choosing, because θ is about to change."""
        self.wait()
        self.pending = None

    def pending_index(self) -> Index:
        """Wait for the sets that a thread has chosen. If the thread failed, drop the sets and raise RefreshError."""
        assert self.pending is not None
        try:
            return self.pending.result()
        except RefreshError:
            self.pending = None
            raise
