"""One sparsified parameter: its values on B, its index, and the rest of θ.

A site is what ``torch.nn.utils.parametrize`` finds when the module reads the weight. ``original``, the only trainable
tensor, is the compact vector of B's values: whatever is elementwise (optimizers, clipping, GradScaler, DDP) works on it
as it is. All tensors keep their shape for life, so no graph is ever compiled twice because sets changed.
"""

from __future__ import annotations

import copy
import weakref
import zlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import choose, functional, ops  # noqa: F401  (ops defines torch.ops.topkast)
from .errors import ConfigError
from .follow import carry_state
from .layout import Geometry, Index, check_index, index_masks, slot_units
from .native import densified
from .native.theta import assemble, store
from .record import enrol
from .reservoir import allocate
from .sets import build_index, largest


@dataclass(frozen=True)
class Rule:
    """How a site's sets are chosen and renewed; see :func:`topkast.compile` for each field."""

    refresh_every: int = 100
    stop_exploring_after: int | None = None
    explore: str = "topk"
    exploration_l2: float = 0.0
    exploration_decay: float = 10.0
    balanced: bool = False
    reservoir: str = "device"
    seed: int = 0


class Site(parametrize.ParametrizationList):
    """State of one site.

    Args:
        parameter: the dense parameter; it becomes ``original`` (the same object), holding B's values.
        name: its name in the model, part of the seed of random exploration.
        geometry: how it is cut into units.
        n_fwd, n_bwd: units in A and in B, 0 < n_fwd <= n_bwd; with ``rule.balanced`` whole multiples of the block rows.
        rule: how the sets are renewed.
    """

    original: nn.Parameter
    row_ptr: Tensor
    row_fwd: Tensor
    cols: Tensor
    ever: Tensor

    def __init__(self, parameter: nn.Parameter, name: str, geometry: Geometry, n_fwd: int, n_bwd: int, rule: Rule):
        nn.ModuleList.__init__(self)  # the base class would expect a chain of parametrizing modules
        self.is_tensor, self.unsafe, self.ntensors = True, True, 1
        self.name, self.geometry, self.rule = name, geometry, rule
        self.n_fwd, self.n_bwd = n_fwd, n_bwd
        self.step = self.refreshed_at = 0
        self._start()
        theta = parameter.detach()
        fwd, bwd = self.choose_sets(theta)
        for field, tensor in zip(Index._fields, self._index_of(fwd, bwd), strict=True):
            self.register_buffer(field, tensor)
        self.register_buffer("ever", torch.zeros(-(-geometry.units // 8), dtype=torch.uint8, device=theta.device))
        self._mark(fwd)
        outside = geometry.units - (n_bwd if rule.stop_exploring_after is None else n_fwd)
        self._hold(allocate(rule.reservoir, outside * geometry.unit, theta))
        values = theta.new_empty(n_bwd * geometry.unit)
        store(theta, values, self.reservoir, self.index, geometry)
        parameter.grad = None
        with torch.no_grad():
            parameter.set_(values)  # type: ignore[call-overload]
        self.register_parameter("original", parameter)

    def _start(self) -> None:
        self.key = enrol(self)
        self.ran: Counter[tuple[str, str, str]] = Counter()
        self.late = 0  # refreshes that no forward made, see runtime/optimizers.py
        self.decayed_by = 0.0  # lr * exploration_decay of the last step
        self.churn: list[tuple[int, float, float]] = []
        self.optimizers: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()

    def _hold(self, reservoir: Tensor) -> None:
        # Only a reservoir on the device may follow `.to`; it is saved by hand, so that all three kinds look alike.
        if self.rule.reservoir == "device":
            self.register_buffer("reservoir", reservoir, persistent=False)
        else:
            self.reservoir = reservoir

    def __deepcopy__(self, memo: dict[int, Any]) -> Site:
        twin = self.__new__(self.__class__)
        memo[id(self)] = twin
        own = {"optimizers", "ran", "key"} | (set() if self.rule.reservoir == "device" else {"reservoir"})
        twin.__dict__ = copy.deepcopy({k: v for k, v in self.__dict__.items() if k not in own}, memo)
        churn = twin.churn
        twin._start()
        twin.churn = churn
        if "reservoir" in own:
            kept = self.reservoir
            twin.reservoir = allocate(self.rule.reservoir, kept.numel(), kept).copy_(kept)
        return twin

    def _apply(self, fn: Any, recurse: bool = True) -> Site:
        super()._apply(fn, recurse)
        kept = self.reservoir
        if kept.dtype != self.original.dtype:  # not a buffer unless on the device, but a cast is for all of θ
            self.reservoir = allocate(self.rule.reservoir, kept.numel(), self.original.detach()).copy_(kept)
        return self

    @property
    def index(self) -> Index:
        return Index(self.row_ptr, self.row_fwd, self.cols)

    @property
    def stopped(self) -> bool:
        """True once exploration has ended: B = A."""
        return self.rule.stop_exploring_after is not None and self.step >= self.rule.stop_exploring_after

    def _index_of(self, fwd: Tensor, bwd: Tensor) -> Index:
        grid = self.geometry.grid
        return build_index(fwd.view(grid), bwd.view(grid), self.n_bwd)

    def forward(self) -> Tensor:
        """W_A, dense; its gradient arrives at B only."""
        read: Any = torch.ops.topkast.weight
        if not torch.compiler.is_compiling():
            self.refresh_if_due()
            if torch._C._are_functorch_transforms_active():
                read = functional.Weight.apply
        g = self.geometry
        return read(self.original, self.row_ptr, self.row_fwd, self.cols, self.key, g.shape, g.perm, g.lead, g.block)

    def right_inverse(self, value: Tensor) -> None:
        """``module.weight = tensor``: take it as θ and choose both sets again."""
        self.load_theta(value)

    def choose_sets(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """A and B, bool [units], from all of θ (paper, section 2.1)."""
        score = choose.scores(self.geometry.to_blocks(theta))
        rows = self.geometry.grid[0] if self.rule.balanced else 1
        score = score.view(rows, -1)
        fwd = largest(score, self.n_fwd // rows)
        if self.stopped:
            return fwd.view(-1), fwd.view(-1)
        if self.rule.explore == "random":
            seed = zlib.crc32(f"{self.rule.seed}/{self.name}/{self.step}".encode())
            drawn = torch.rand(score.shape, generator=torch.Generator().manual_seed(seed)).to(score.device)
            score = torch.where(fwd, 2.0, drawn)
        return fwd.view(-1), largest(score, self.n_bwd // rows).view(-1)

    def _mark(self, fwd: Tensor) -> None:
        """Remember, a bit a unit, what was ever in A."""
        bits = nn.functional.pad(fwd, (0, -fwd.numel() % 8)).view(-1, 8).to(torch.uint8)
        weights = 2 ** torch.arange(8, dtype=torch.uint8, device=fwd.device)
        self.ever |= (bits * weights).sum(1, dtype=torch.uint8).to(self.ever.device)

    @property
    def home(self) -> torch.device:
        """Where θ is put together and its sets are chosen: beside the reservoir, so that no dense weight is ever on a
        device that the reservoir was kept off."""
        return self.reservoir.device

    def _index_at_home(self) -> Index:
        return Index(*(tensor.to(self.home) for tensor in self.index))

    def theta(self) -> Tensor:
        """All of θ, dense, detached, at home: B's values and the reservoir put together."""
        return assemble(self.original.detach().to(self.home), self.reservoir, self._index_at_home(), self.geometry)

    def sets(self) -> tuple[Tensor, Tensor]:
        """(A, B) as dense bool tensors of the weight's shape."""
        fwd, bwd = (
            self.geometry.from_blocks(mask[:, None].expand(-1, self.geometry.unit))
            for mask in index_masks(self.index, self.geometry)
        )
        return fwd, bwd

    def explored(self) -> Tensor:
        """Bool [values]: which slots are in B \\ A."""
        units, in_fwd = slot_units(self.index, self.geometry)
        return (~in_fwd & (units < self.geometry.units)).repeat_interleave(self.geometry.unit)

    def scale_explored(self, factor: float | Tensor) -> None:
        """θ ← factor · θ on B \\ A."""
        values = self.original.detach()
        if densified.fits(values) and values.is_contiguous():
            densified.scale_explored(values, self.index, self.geometry, float(factor))
            torch.autograd.graph.increment_version(values)
        else:
            values.copy_(torch.where(self.explored(), values * factor, values))

    @property
    def due(self) -> bool:
        """Whether an optimizer step has carried the site past an interval's end, or past the end of exploration."""
        every, stop = self.rule.refresh_every, self.rule.stop_exploring_after
        return self.step // every > self.refreshed_at // every or (
            stop is not None and self.refreshed_at < stop <= self.step
        )

    def refresh_if_due(self) -> None:
        """Refresh where it is safe: in a forward that will be differentiated, never while a backward recomputes, nor
        while ``torch.func.functional_call`` has put other values here."""
        own = isinstance(self.original, nn.Parameter)
        if own and self.due and torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1:
            self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Choose A and B again from all of θ; optimizer state follows its weight, what enters starts at zero."""
        self._renew(self.theta())

    @torch.no_grad()
    def load_theta(self, theta: Tensor) -> None:
        """Replace all of θ, given on any device, and choose both sets from it."""
        if tuple(theta.shape) != self.geometry.shape:
            raise ConfigError(f"{self.name}: a weight of shape {tuple(theta.shape)}, expected {self.geometry.shape}")
        self._renew(theta.to(self.home, self.original.dtype))

    def _renew(self, theta: Tensor) -> None:
        """Take θ (at home) apart by the sets that it gives; optimizer state follows."""
        before = self._index_at_home()
        old_fwd, old_bwd = index_masks(before, self.geometry)
        fwd, bwd = self.choose_sets(theta)
        index = self._index_of(fwd, bwd)
        values = self.original.detach()
        at_home = values if values.device == self.home else torch.empty_like(values, device=self.home)
        store(theta, at_home, self.reservoir, index, self.geometry)
        if at_home is not values:
            values.copy_(at_home)
        carry_state(self, before, index)
        for mine, new in zip(self.index, index, strict=True):
            mine.copy_(new)
        self._mark(fwd)
        self.refreshed_at = self.step
        new_fwd, new_bwd = (_share_of_new(new, old) for new, old in ((fwd, old_fwd), (bwd, old_bwd)))
        self.churn = [*self.churn[-99:], (self.step, new_fwd, new_bwd)]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "reservoir"] = self.reservoir
        destination[prefix + "clock"] = torch.tensor([self.step, self.refreshed_at])

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        names = ("original", *Index._fields, "ever", "reservoir", "clock")
        found = {name: state_dict.get(prefix + name) for name in names}
        missing += [prefix + name for name, tensor in found.items() if tensor is None]
        mine = {name: getattr(self, name) for name in names[:-1]}
        for name, tensor in mine.items():
            if found[name] is not None and found[name].shape != tensor.shape:
                errors.append(f"size mismatch for {prefix}{name}: {found[name].shape}, expected {tensor.shape}")
                return
        if any(tensor is None for tensor in found.values()):
            return
        wrong = check_index(Index(*(found[field] for field in Index._fields)), self.geometry)
        if wrong:
            errors.append(f"{prefix}: the index is broken: {wrong}")
            return
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(found[name])
        self.step, self.refreshed_at = (int(n) for n in found["clock"])


def _share_of_new(new: Tensor, old: Tensor) -> float:
    # Not sum(), which widens every bool to int64 first.
    return int((new & ~old).count_nonzero()) / int(new.count_nonzero())
