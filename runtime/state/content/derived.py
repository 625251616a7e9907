"""A site's place, index, sets, all of its θ, and the state that a method sees: all follow from the site's fields."""

from __future__ import annotations

import zlib
from abc import abstractmethod
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from topkast.runtime.devices import check_gradient_is_seen
from topkast.runtime.kernels.sets import index_masks, largest
from topkast.runtime.kernels.theta import assemble
from topkast.runtime.layout import Index, explored_values
from topkast.runtime.methods import Method, SetState
from topkast.runtime.reference.dense_gradient import Rows
from topkast.runtime.rule import Rule

from .background import Pending, pending_state
from .placed import Placed
from .reservoirs import RESERVOIRS, Reservoir


def turnover(churn: list[tuple[int, float, float]]) -> list[tuple[int, Tensor]]:
    """:attr:`Derived.churn` as a site stores it."""
    return [(step, torch.tensor(shares, dtype=torch.float64, device="cpu")) for step, *shares in churn]


class Derived(Placed):
    """The part of a site that only reads."""

    for_inference = False  # whether the site holds A only, see inference_site.py
    name: str
    rule: Rule
    method: Method
    pending: Pending | None
    step: int
    refreshed_at: int
    n_fwd: int
    reservoir: Tensor
    turnover: list[tuple[int, Tensor]]
    row_ptr: Tensor
    row_fwd: Tensor

    @abstractmethod
    def check_whole(self) -> None:
        """Raise ModelError if the site's tensors are no longer its own."""

    def check_trainable(self, wanted: str) -> None:
        """Raise ModelError if the site holds A only: see :mod:`topkast.runtime.state.inference_site`.

        Args:
            wanted: what the caller is about to do or to read, for the message.
        """

    def theta(self) -> Tensor:
        """All of θ, dense, detached, on the reservoir's device: assembled from B's values and the reservoir."""
        self.check_whole()
        return assemble(self.values.to(self.home), self.reservoir, self.index.to(self.home), self.geometry)

    def sets(self) -> tuple[Tensor, Tensor]:
        """(A, B) as dense bool tensors of the weight's shape."""
        self.check_whole()
        fwd, bwd = (
            self.geometry.from_blocks(mask[:, None].expand(-1, self.geometry.unit))
            for mask in index_masks(self.index, self.geometry)
        )
        return fwd, bwd

    @property
    def place(self) -> Reservoir:
        """The place of the values outside B."""
        return RESERVOIRS[self.rule.reservoir]

    @property
    def home(self) -> torch.device:
        """The device on which θ is assembled and the sets are chosen: the reservoir's device. So no dense weight is
        ever on a device that does not hold the reservoir."""
        return self.reservoir.device

    @property
    def clock(self) -> Tensor:
        """(Optimizer steps, the step of the last refresh), as in a state dict."""
        return torch.tensor([self.step, self.refreshed_at], device="cpu")

    @property
    @abstractmethod
    def columns(self) -> Tensor:
        """The columns of the index [slots]."""

    @property
    def index(self) -> Index:
        return Index(self.row_ptr, self.row_fwd, self.columns)

    @property
    def groups(self) -> int:
        """The number of groups whose units are counted separately: the block rows if balanced, otherwise 1."""
        return self.geometry.grid[0] if self.rule.balanced else 1

    @property
    def units_in_a(self) -> int:
        """The number of units in A since the last refresh, as the method's schedule says; nothing is read."""
        if not self.rule.shrinks:  # as for most models, in each step
            return self.n_fwd
        return self.groups * self.method.units(replace(self.set_state(), step=self.refreshed_at))[0]

    @property
    def most_units_in_a(self) -> int:
        """The number of units in A at the start, which is the most that A ever has."""
        return self.groups * self.method.units(replace(self.set_state(), step=0))[0]

    @property
    def churn(self) -> list[tuple[int, float, float]]:
        """(Step, share new in A, share new in B) of the last refreshes. Reading waits for the device."""
        return [(step, *shares.tolist()) for step, shares in self.turnover]

    def set_state(self, index: Index | None = None) -> SetState:
        """The state of the site that the method may see.

        Args:
            index: the site's index where the sets are chosen; None: it is moved to the reservoir's device if needed.
        """
        return SetState(
            self.name, self.rule, self.geometry, self.n_fwd, self.n_bwd, self.groups, self.step, self.refreshed_at,
            partial(self._members, index), partial(self._draw, self.step), largest,
        )  # fmt: skip

    def _members(self, index: Index | None) -> tuple[Tensor, Tensor]:
        return index_masks(self.index.to(self.home) if index is None else index, self.geometry)

    def _draw(self, step: int, like: Tensor, purpose: str) -> Tensor:
        # ``step`` is the state's: a thread draws later, when the site has made more steps.
        seed = zlib.crc32(f"{self.rule.seed}/{self.name}/{step}{purpose}".encode())
        # Draw on the CPU, also if there is another default device: the draw must not depend on the model's device.
        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.rand(like.shape, generator=generator, device="cpu").to(like.device)

    def exploration_ended(self, step: int | None = None) -> bool:
        """Whether B = A after ``step`` steps; None: after the current number of steps."""
        stop = self.rule.stop_exploring_after
        return stop is not None and (self.step if step is None else step) >= stop

    def explored(self) -> Tensor:
        """Bool [values]: True for the slots in B \\ A."""
        return explored_values(self.index, self.geometry)

    @property
    def grows_by_gradient(self) -> str | None:
        """The name of the method, if the method needs dense gradients; otherwise None."""
        return self.method.name if self.method.watches else None

    def see_gradient(self, rows: Rows) -> None:
        """Give the rows of a dense gradient, computed in a backward, to the method."""
        check_gradient_is_seen(self.name, self.rule.method)
        self.method.see(self.set_state(), rows)

    def wait(self) -> None:
        """Wait until no thread reads the reservoir."""
        if self.pending is not None:
            self.pending.wait()

    def pending_tensors(self) -> dict[str, Tensor]:
        """The saved state of a thread's choice, under its own names: its index (waits for it), or zeros without one."""
        return pending_state(self.pending, self.index) if self.rule.refresh_in_background else {}
