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
from topkast.runtime.kernels.theta import store
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.methods import METHODS
from topkast.runtime.registry import new_key, register
from topkast.runtime.rule import Rule
from topkast.runtime.state.content.background import Pending
from topkast.runtime.state.content.choose_sets import first_sets, with_bits
from topkast.runtime.state.content.derived import turnover
from topkast.runtime.state.content.family import Family
from topkast.runtime.state.content.fingerprint import fingerprint
from topkast.runtime.state.content.index_check import WRITTEN, Note, checked, remembered
from topkast.runtime.state.content.optimizer_state import kept_tensors
from topkast.runtime.state.content.parts import HALF, Change, Copy, Parts, Snapshot
from topkast.runtime.state.content.reservoirs import values_outside
from topkast.runtime.state.content.shards.shard import Shard, local
from topkast.runtime.state.sharding.shardable_site import ShardableSite
from topkast.runtime.state.turned_index import renewed_turned


class Site(ShardableSite, nn.Module):
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
        self._define(name, geometry, n_fwd, n_bwd, rule, family)
        theta = parameter.detach()
        sets = first_sets(self.method, self.set_state(), theta)
        ever = torch.zeros(-(-geometry.units // 8), dtype=torch.uint8, device=theta.device)
        outside = self.place.allocate(values_outside(geometry, n_fwd, n_bwd, rule), theta)
        self._hold(sets.index, with_bits(ever, sets.fwd), outside)
        self._values = theta.new_empty(n_bwd * geometry.unit)
        store(theta, self._values, self.reservoir, self.index, geometry)

    def _define(self, name: str, geometry: Geometry, n_fwd: int, n_bwd: int, rule: Rule, family: Family | None) -> None:
        """Set every field that is no tensor, as before the first step."""
        self.name, self.geometry, self.rule = name, geometry, rule
        self.n_fwd, self.n_bwd = n_fwd, n_bwd
        self.method = METHODS[rule.method]()
        self.step = self.refreshed_at = 0
        self.pending: Pending | None = None  # sets that a thread is choosing or has chosen
        self.family = family or Family()
        self.watch: Any = None  # for a compiled model: checks whether its steps run compiled
        self._start()

    @torch.no_grad()
    def adopt(self, owner: nn.Module, attribute: str) -> None:
        """Let the parameter ``owner.attribute``, which the site was made from, hold B's values. The parameter does not
        change before this call."""
        self.attribute = attribute
        self.bind(owner)
        self.original.grad = None
        self.original.set_(self._values.view(self.value_shape))  # type: ignore[call-overload]
        del self._values
        self._settle()

    def _settle(self) -> None:
        """Regard the tensors that the site holds now as its own, and let graphs and optimizers find the site."""
        self.remember_index()
        self.accept()
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
        self.turnover: list[tuple[int, Tensor]] = []  # of each refresh: the step, the shares new in A and B [2]
        self.optimizers: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._own: tuple[int, int] | None = None
        self.owner = None
        self.owners: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # all modules that read it; unknown for a copy
        self.noted: Note | None = None
        self.turned: Tensor | None = None  # A by columns, and the columns that this belongs to
        self.turned_of: Tensor | None = None
        self._shard: Shard | None = None
        self.compared = False  # whether the ranks of a sharded site were compared

    def _hold(self, index: Index, ever: Tensor, reservoir: Tensor) -> None:
        for field, tensor in zip(Index._fields, index, strict=True):
            self.register_buffer(field, tensor)
        self.register_buffer("ever", ever)
        # A reservoir that moves with `.to` is a buffer. It is saved by hand, so that all places have the same format.
        if self.place.follows_model:
            self.register_buffer("reservoir", reservoir, persistent=False)
        else:
            self.reservoir = reservoir

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
        self.shard  # noqa: B018 (notices that fully_shard has replaced the tensors)
        self._own = id(self.original if values is None else values), id(self.cols)
        if self._index_was_written():
            self.broken = WRITTEN
        self.remember_index()

    def remember_index(self) -> None:
        """Remember the current index as the site's own index."""
        self.noted = remembered(self._index_in_memory())
        self.turned, self.turned_of = renewed_turned(self, self.turned), self._buffers.get("cols")

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
            copy(live.reservoir, change.parts.reservoir)
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

    def count_step(self, number: int) -> None:
        """Count a complete optimizer step, which is the ``number``-th."""
        self.alone = True
        self.step = number

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
        self.turnover = turnover(churn)

    def set_watch(self, watch: Any) -> None:
        """Set the object that checks whether the steps of a compiled model run compiled."""
        self.watch = watch

    def set_runs(self, ran: Counter[tuple[str, str, str]]) -> None:
        """Set how often each product ran."""
        self.ran = ran

    def set_pending(self, pending: Pending | None) -> None:
        """Set the sets that a thread is choosing or has chosen."""
        self.pending = pending

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
