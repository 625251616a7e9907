"""A site as a module of a model: reading the weight, copies, pickles, saving and loading."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from topkast.runtime.devices import check_device
from topkast.runtime.errors import ConfigError
from topkast.runtime.ops.eager_weight import Read, as_constant
from topkast.runtime.registry import register
from topkast.runtime.state.change.commit import commit
from topkast.runtime.state.change.relayout import with_new_sets
from topkast.runtime.state.content.choose_sets import first_sets
from topkast.runtime.state.content.parts import Change, Parts
from topkast.runtime.state.content.shards.shard import local
from topkast.runtime.state.sharding.part import at_work

from .dynamo_rules import set_dynamo_rules
from .guarded_weight import guard
from .persist import portable, state_dict
from .refresh import refresh, refresh_due
from .site import Site
from .snapshots import pass_sets_to_copies, restore_snapshots


class SiteModule(Site):
    """The site below ``sparse_state`` of a module; see :class:`topkast.runtime.state.site.Site`."""

    def forward(self, values: Tensor) -> Tensor:
        """W_A, dense; only B gets a gradient.

        Args:
            values: B's values, of :attr:`value_shape`.
        """
        compiling = torch.compiler.is_compiling()
        if not compiling:
            self.check_whole()
            if torch._C._is_tracing():
                return as_constant(values, self.index, self.geometry)
            self.refresh_if_due()
        g, given = self.geometry, (values.reshape(-1), self.row_ptr, self.row_fwd, self.columns, self.key)
        if compiling:
            # Dynamo reads this, so no other method's site takes a graph in which nobody sees the dense gradient.
            self.method.watches  # noqa: B018
            sized = (g.shape, g.perm, g.lead, g.block, self.n_fwd)
            # Under functional_call the columns are others, and A by columns does not belong to these.
            if torch.is_grad_enabled() and self.turned is not None and self.turned_of is self._buffers.get("cols"):
                return torch.ops.topkast.weight(*given, *sized, turned=self.turned)
            return torch.ops.topkast.weight(*given, *sized)
        return guard(Read.apply(*given, g, self.n_fwd), self)

    def _start(self) -> None:
        super()._start()
        set_dynamo_rules(SiteModule.forward.__code__)

    @torch._disable_dynamo  # its callers are not compiled; it must not be compiled by itself at every step
    def refresh_if_due(self) -> None:
        """See :func:`topkast.runtime.state.refresh.refresh_due`."""
        restore_snapshots([self])
        refresh_due([self])

    def refresh(self) -> None:
        """Choose A and B again from all of θ. Optimizer state moves with its weight; entering weights get new state."""
        refresh([self])

    @torch.no_grad()
    def load_theta(self, theta: Tensor) -> None:
        """Replace all of θ by a tensor on any device, and choose both sets from it."""
        commit(at_work(self), *self.replaced(theta))

    @torch.no_grad()
    def replaced(self, theta: Tensor) -> tuple[Parts, Change]:
        """The parts of the site, or of :func:`at_work` if it is sharded, and the change that :meth:`load_theta` applies
        to them."""
        if tuple(theta.shape) != self.geometry.shape:
            raise ConfigError(f"{self.name}: a weight of shape {tuple(theta.shape)}, expected {self.geometry.shape}")
        self.wait()
        part = at_work(self)
        live = part.parts()  # called once: an optimizer may be deleted at any time, and a part would be missing
        if not part.geometry.units:  # of a sharded weight this process holds nothing
            return live, Change(fields={"refreshed_at": self.step})
        theta = part.taken_theta(theta).to(self.home, self.original.dtype)
        sets = first_sets(self.method, part.set_state(), theta)
        return live, with_new_sets(part, theta, live.beside_reservoir(), sets)

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply all of θ by a number. The sets do not change. A second call with the same number does nothing."""
        if self.scaled == factor:
            return
        if self.is_part:
            self.scale_part(factor)
            return
        live = self.parts()
        parts = live.scaled(factor)
        commit(self, live, Change(parts, {"scaled": factor}))

    def extra_repr(self) -> str:
        """The text that ``print(model)`` shows for a sparse weight."""
        rows, cols = self.geometry.block
        return f"{self.n_fwd} and {self.n_bwd} of {self.geometry.units} blocks of {rows}x{cols} in A and B"

    def _get_name(self) -> str:
        return "Site"

    # --- copies, pickles, casts ---

    def __deepcopy__(self, memo: dict[int, Any]) -> SiteModule:
        self.check_whole()
        twin = self.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__ = portable.copied(self, memo)
        twin._begin_again(portable.copied_fields(self, twin._table))
        self.copies.add(twin)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        self.check_whole()
        restore_snapshots([self])
        return portable.packed(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        content, fields = portable.unpacked(state)
        nn.Module.__setstate__(self, content)
        self._begin_again(fields)

    def _begin_again(self, fields: dict[str, Any]) -> None:
        """Start a new object that has the content of another object: reset the fields that belong to one object only,
        except the given fields."""
        self._start()
        for name, value in fields.items():
            setattr(self, name, value)
        self.remember_index()
        register(self)

    def _apply(self, fn: Any, recurse: bool = True) -> SiteModule:
        goal = fn(local(self.original.detach()).new_empty(0))
        check_device(self.name, goal.device)
        super()._apply(fn, recurse)
        self.cast_reservoir(goal)
        return self

    @contextmanager
    def theta_as_parameters(self) -> Iterator[None]:
        """Inside the ``with``, all of θ is the site's parameters and the site has no buffers, because an average of
        index tensors would not be an index."""
        buffers = self._buffers
        try:
            self._parameters["outside"] = nn.Parameter(self.reservoir, requires_grad=False)
            self._buffers = {}
            yield
        finally:
            self._parameters.pop("outside", None)
            self._buffers = buffers

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Inside the ``with``, runs of products are not counted for the report."""
        counted = Counter(self.ran)
        try:
            yield
        finally:
            self.set_runs(counted)

    # --- state dicts ---

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.check_whole()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        state_dict.add(self, destination, prefix, keep_vars)

    def _load_from_state_dict(self, *args: Any) -> None:
        """Do nothing: the owner loads values and sets together, with :meth:`load`."""

    def load(self, *given: Any) -> None:
        """Load the site's part of a state dict: see :func:`topkast.runtime.state.persist.state_dict.load`."""
        self.unshare()
        with pass_sets_to_copies([self]):
            state_dict.load(self, *given)
