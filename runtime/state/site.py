"""One sparsified parameter: its values on B, its index, and the rest of θ.

B's values are the module's own parameter, under its own name: an ordinary ``nn.Parameter`` of two dimensions, on which
whatever is elementwise (optimizers, clipping, GradScaler, DDP) works as it is. The site holds the rest and makes W_A of
the values when the module reads its weight. All tensors keep their shape for life, so no graph is ever compiled twice
because sets changed.
"""

from __future__ import annotations

import weakref
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from topkast.runtime.errors import ConfigError, ModelError, RefreshError
from topkast.runtime.kernels.sets import build_index
from topkast.runtime.layout import Geometry, Index, index_masks, slot_units
from topkast.runtime.methods import METHODS
from topkast.runtime.native.theta import assemble, store
from topkast.runtime.observers import as_constant
from topkast.runtime.ops.eager_weight import Read
from topkast.runtime.reference import selection as choose
from topkast.runtime.rule import Rule
from topkast.runtime.training.sharded.refused import Whole, keep_whole

from . import saved
from .background import Pending, as_state
from .copies import Snapshot, carrying, moves, settle
from .fingerprint import fingerprint
from .guarded_weight import guard
from .index_check import WRITTEN, Note, note, written
from .optimizer_state import followers
from .parts import HALF, Change, Held, finish
from .placed import Placed
from .portable import cast, copied, packed, unpacked
from .refresh import marked, refresh, refresh_due, take
from .registry import Family, enrol, new_key
from .reservoirs import allocate, unshared, values_outside


class Site(Whole, Placed, nn.Module):
    """State of one site.

    Args:
        parameter: the dense parameter; :meth:`adopt` lets the same object hold B's values.
        name: its name in the model, part of the seed of random exploration.
        geometry: how it is cut into units.
        n_fwd, n_bwd: units in A and in B, 0 < n_fwd <= n_bwd; with ``rule.balanced`` whole multiples of the block rows.
        rule: how the sets are renewed.
    """

    row_ptr: Tensor
    row_fwd: Tensor
    cols: Tensor
    ever: Tensor

    def __init__(self, parameter: nn.Parameter, name: str, geometry: Geometry, n_fwd: int, n_bwd: int, rule: Rule):
        super().__init__()
        self.name, self.geometry, self.rule = name, geometry, rule
        self.n_fwd, self.n_bwd = n_fwd, n_bwd
        self.method = METHODS[rule.method]()
        self.step = self.refreshed_at = 0
        self.pending: Pending | None = None  # sets that a thread chooses, or has chosen
        self.family = Family()
        self._start()
        theta = parameter.detach()
        index, fwd, _ = self._indexed(self.method.start(self, self.score(theta), 0))
        for field, tensor in zip(Index._fields, index, strict=True):
            self.register_buffer(field, tensor)
        self.register_buffer("ever", torch.zeros(-(-geometry.units // 8), dtype=torch.uint8, device=theta.device))
        self.ever |= marked(self.ever, fwd)
        self._hold(allocate(rule.reservoir, values_outside(geometry, n_fwd, n_bwd, rule), theta))
        self._values = theta.new_empty(n_bwd * geometry.unit)
        store(theta, self._values, self.reservoir, self.index, geometry)

    @torch.no_grad()
    def adopt(self, owner: nn.Module, attribute: str) -> None:
        """The parameter that the site was made of, ``owner.attribute``, becomes B's values. Until then nothing of it
        has changed."""
        self.attribute = attribute
        self.bind(owner)
        self.original.grad = None
        self.original.set_(self._values.view(self.value_shape))  # type: ignore[call-overload]
        note(self)
        self.accept()
        del self._values
        enrol(self)

    def extra_repr(self) -> str:
        """``print(model)`` shows this of a sparse weight."""
        rows, cols = self.geometry.block
        return f"{self.n_fwd} and {self.n_bwd} of {self.geometry.units} blocks of {rows}x{cols} in A and B"

    def _start(self) -> None:
        self.key = new_key()
        self.ran: Counter[tuple[str, str, str]] = Counter()
        self.changes = 0  # how often topkast itself has written to the values, see runtime/training/standing_clock.py
        self.copies: weakref.WeakSet[Site] = weakref.WeakSet()  # see runtime/state/copies.py
        self.copied = self.alone = False  # whether it was made by a copy; whether it went its own way
        self.print: Tensor | None = None  # fingerprint of a copy's values as they were made
        self.snapshot: Snapshot | None = None  # sets that a copy was made with, once it has followed
        self.late = 0  # refreshes that no forward made, see runtime/training/optimizer_hooks.py
        self.unclaimed: Index | None = None  # see runtime/state/optimizer_state.py
        self.decayed_by = (
            0.0  # lr * exploration_decay of the last step, where asked for; see runtime/training/exploration_decay.py
        )
        self.scaled = 1.0  # what θ was multiplied by at the start, see topkast.compiler.convert.initial
        self.broken: str | None = None  # why the site cannot be used any more; see runtime/state/parts.py
        self.churn: list[tuple[int, float, float]] = []
        self.optimizers: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._own: tuple[int, int] | None = None
        self.owner = None
        self.noted: Note | None = None

    def _hold(self, reservoir: Tensor) -> None:
        # Only a reservoir on the device may follow `.to`; it is saved by hand, so that all three kinds look alike.
        if self.rule.reservoir == "device":
            self.register_buffer("reservoir", reservoir, persistent=False)
        else:
            self.reservoir = reservoir

    def __deepcopy__(self, memo: dict[int, Any]) -> Site:
        return copied(self, memo)

    def __getstate__(self) -> dict[str, Any]:
        return packed(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        unpacked(self, state)

    def _apply(self, fn: Any, recurse: bool = True) -> Site:
        super()._apply(fn, recurse)
        cast(self, fn)
        return self

    def accept(self, values: nn.Parameter | None = None) -> None:
        """Other tensors are in the place of the site's for good, or these values are about to be."""
        self._own = id(self.original if values is None else values), id(self.cols)
        if written(self):
            self.broken = WRITTEN
        note(self)

    def undisturbed(self) -> bool:
        """Whether ``functional_call`` has put no other tensors in the place of ours."""
        now = id(self.original), id(self.cols)
        if self._own is None:  # a copy, in use for the first time
            self._own = now
        return self._own == now

    @property
    def clock(self) -> Tensor:
        """(Optimizer steps, the step of the last refresh), as a state dict has them."""
        return torch.tensor([self.step, self.refreshed_at], device="cpu")

    @property
    def index(self) -> Index:
        return Index(self.row_ptr, self.row_fwd, self.cols)

    @property
    def stopped(self) -> bool:
        """True once exploration has ended: B = A."""
        return self.stopped_at(self.step)

    def stopped_at(self, step: int) -> bool:
        """Whether exploration has ended after that many steps."""
        return self.rule.stop_exploring_after is not None and step >= self.rule.stop_exploring_after

    def _index_of(self, fwd: Tensor, bwd: Tensor) -> Index:
        grid = self.geometry.grid
        return build_index(fwd.view(grid), bwd.view(grid), self.n_bwd)

    def forward(self, values: Tensor) -> Tensor:
        """W_A, dense; its gradient arrives at B only.

        Args:
            values: B's, of :attr:`value_shape`.
        """
        compiling = torch.compiler.is_compiling()
        if not compiling:
            self.check_whole()
            if torch._C._is_tracing():
                return as_constant(values, self)
            self.refresh_if_due()
        g, given = self.geometry, (values.reshape(-1), self.row_ptr, self.row_fwd, self.cols, self.key)
        if compiling:
            return torch.ops.topkast.weight(*given, g.shape, g.perm, g.lead, g.block)
        return guard(Read.apply(*given, g), self)

    @property
    def groups(self) -> int:
        """Units are counted by block rows if balanced, else all together."""
        return self.geometry.grid[0] if self.rule.balanced else 1

    def score(self, theta: Tensor) -> Tensor:
        """Score of every unit, [groups, units / groups]."""
        return choose.scores(self.geometry.to_blocks(theta)).view(self.groups, -1)

    def draw(self, like: Tensor, step: int, purpose: str = "") -> Tensor:
        """Random numbers in [0, 1) of that shape and place: the same for one seed, site, step and purpose, on any
        device."""
        seed = zlib.crc32(f"{self.rule.seed}/{self.name}/{step}{purpose}".encode())
        # On the CPU, whatever the default device is: the same draw wherever the model is.
        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.rand(like.shape, generator=generator, device="cpu").to(like.device)

    def members(self) -> tuple[Tensor, Tensor]:
        """(A, B) as they are stored, bool [units], at home."""
        return index_masks(self._index_at_home(), self.geometry)

    def _indexed(self, sets: tuple[Tensor, Tensor]) -> tuple[Index, Tensor, Tensor]:
        """Sets as an index and as masks, bool [units]."""
        fwd, bwd = (mask.view(-1) for mask in sets)
        return self._index_of(fwd, bwd), fwd, bwd

    def renewed(self, theta: Tensor, step: int) -> tuple[Index, Tensor, Tensor]:
        """The sets that a refresh after ``step`` steps gives."""
        return self._indexed(self.method.renew(self, self.score(theta), step))

    @property
    def home(self) -> torch.device:
        """Where θ is put together and its sets are chosen: beside the reservoir, so that no dense weight is ever on a
        device that the reservoir was kept off."""
        return self.reservoir.device

    def _index_at_home(self) -> Index:
        return Index(*(tensor.to(self.home) for tensor in self.index))

    def check_whole(self) -> None:
        """Raise ModelError if a change of the site failed in the middle, or somebody else has changed its sets."""
        if self.broken is None and self.undisturbed() and written(self):
            self.broken = WRITTEN
        if self.broken is not None:
            raise ModelError(f"{self.name}: {self.broken}, so its weights are lost; build the model again and load it")

    def theta(self) -> Tensor:
        """All of θ, dense, detached, at home: B's values and the reservoir put together."""
        self.check_whole()
        return assemble(self.values.to(self.home), self.reservoir, self._index_at_home(), self.geometry)

    def sets(self) -> tuple[Tensor, Tensor]:
        """(A, B) as dense bool tensors of the weight's shape."""
        self.check_whole()
        settle([self])
        fwd, bwd = (
            self.geometry.from_blocks(mask[:, None].expand(-1, self.geometry.unit))
            for mask in index_masks(self.index, self.geometry)
        )
        return fwd, bwd

    def explored(self) -> Tensor:
        """Bool [values]: which slots are in B \\ A."""
        units, in_fwd = slot_units(self.index, self.geometry)
        return (~in_fwd & (units < self.geometry.units)).repeat_interleave(self.geometry.unit)

    @property
    def due(self) -> bool:
        """Whether an optimizer step has carrying the site past a point where its sets are to be renewed."""
        return self.method.due(self, self.step)

    @property
    def stops(self) -> bool:
        """Whether exploration has ended since the last refresh."""
        return self.stopped_at(self.step) and not self.stopped_at(self.refreshed_at)

    @torch._dynamo.disable  # called from frames that are not compiled; compiled itself, it would be again at every step
    def refresh_if_due(self) -> None:
        """See :func:`refresh_due`."""
        settle([self])
        refresh_due([self])

    def refresh(self) -> None:
        """Choose A and B again from all of θ; optimizer state follows its weight, what enters gets a new one's."""
        refresh([self])

    def load_theta(self, theta: Tensor) -> None:
        """Replace all of θ, given on any device, and choose both sets from it."""
        change = self.replaced(theta)
        self.commit(self.held(), change)

    @torch.no_grad()
    def replaced(self, theta: Tensor) -> Change:
        """What :meth:`load_theta` does, prepared."""
        if tuple(theta.shape) != self.geometry.shape:
            raise ConfigError(f"{self.name}: a weight of shape {tuple(theta.shape)}, expected {self.geometry.shape}")
        self.wait()
        theta = theta.to(self.home, self.original.dtype)
        held = self.held()
        home = replace(
            held,
            values=held.values.to(self.home),
            index=self._index_at_home(),
            ever=held.ever.to(self.home),
            kept=[tensor.to(self.home) for tensor in held.kept],
        )
        return take(self, theta, home, *self._indexed(self.method.start(self, self.score(theta), self.step)))

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply all of θ by a number, once: no set changes, and a second call with the same number does nothing."""
        if self.scaled == factor:
            return
        held = self.held()
        parts = replace(held, values=held.values * factor, reservoir=held.reservoir * factor)
        self.commit(held, Change(parts, {"scaled": factor}))

    def held(self) -> Held:
        """What a refresh changes, where it lives."""
        self.check_whole()
        self.unshare()  # whoever asks is about to write
        return Held(self.values, self.reservoir, self.index, self.ever, *followers(self))

    def unshare(self) -> None:
        """Before the reservoir is written to: no process that was forked from another one shares it any more."""
        if (own := unshared(self.reservoir)) is not self.reservoir:
            self.reservoir = own

    def commit(self, live: Held, change: Change, copy: Callable[[Tensor, Tensor], Any] = Tensor.copy_) -> None:
        """Put a change in force, as a whole.

        Args:
            live: from :meth:`held`, as it was when the change was prepared.
            change: what is to be.
            copy: (target, source) -> None, made in the order of the calls.
        """
        change.moves = moves(self, change)  # before anything changes: it may fail
        finish([self], lambda: self.write(live, change, copy))

    @torch.no_grad()
    def write(self, live: Held | None, change: Change, copy: Callable[[Tensor, Tensor], Any] = Tensor.copy_) -> None:
        """:meth:`commit` without the promise to finish; the same result if it is begun again."""
        if change.moves is None:
            change.moves = [] if live is None else moves(self, change)
        for follower, *_ in change.moves:
            follower.broken = HALF
        if live is not None and change.parts is not None:
            for target, source in zip(live.tensors(), change.parts.tensors(), strict=True):
                copy(target, source)
            live.reservoir.copy_(change.parts.reservoir)
            note(self)
            self.method.forget()
        self.changes += 1
        now = self.original if change.parts is None else change.parts.values  # a copy may be under way still
        self.snapshot, self.print = None, fingerprint(now) if self.copied else None
        for name, value in change.fields.items():
            setattr(self, name, value)
        for follower, held, its in change.moves:
            follower.write(held, its)
            follower.broken = None
        if change.then is not None:
            change.then()

    def wait(self) -> None:
        """Until no thread reads the reservoir."""
        if self.pending is not None:
            self.pending.wait()

    def forget(self) -> None:
        """Let go of sets that a thread chooses: they are of another θ than is to come."""
        self.wait()
        self.pending = None

    def chosen(self) -> Index:
        """The sets that a thread has chosen, waited for; if it failed, they are let go of, and this raises."""
        assert self.pending is not None
        try:
            return self.pending.result()
        except RefreshError:
            self.pending = None
            raise

    def prepared(self) -> dict[str, Tensor]:
        """State of a thread's choice, waited for: its index, or zeros where there is none; under names of its own."""
        return as_state(self.pending, self.index) if self.rule.refresh_in_background else {}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.check_whole()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        saved.add(self, destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any) -> None:
        """Nothing: the owner lets values and sets be loaded together, by :meth:`load`."""

    def load(self, *given: Any) -> None:
        """Take the site's part of a state dict: see :func:`topkast.runtime.state.saved.load`."""
        self.unshare()
        with carrying([self]):
            saved.load(self, *given)


keep_whole(Site)
