"""Optimizer state moves with its weight. A weight that enters B gets the state of a new parameter."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from topkast.runtime.errors import OptimizerError
from topkast.runtime.kernels.theta import follow
from topkast.runtime.layout import Geometry, Index, slot_units
from topkast.runtime.optimizers.probe import INSTEAD, start
from topkast.runtime.state.content.shards.shard import local

from .parts import Changing, Parts, carry_out


class OptimizedSite(Changing, Protocol):
    """The part of a site that the functions for optimizer state use."""

    name: str
    geometry: Geometry
    optimizers: weakref.WeakSet[torch.optim.Optimizer]
    unread_state_index: Index | None

    @property
    def original(self) -> nn.Parameter: ...

    @property
    def index(self) -> Index: ...

    @property
    def home(self) -> torch.device: ...

    def taken(self, stored: Tensor) -> Tensor: ...

    def put(self, stored: Tensor, new: Tensor) -> None: ...


def check_elementwise(optimizer: torch.optim.Optimizer, sites: Iterable[OptimizedSite]) -> None:
    """Refuse an optimizer if its state for a site is not made of scalars and tensors with one number for each value.

    Raises:
        OptimizerError: the message names the optimizer, the state and an alternative.
    """
    values = {id(site.original): site.name for site in sites}
    for parameter, state in optimizer.state.items():
        if not isinstance(state, dict):
            continue  # a number that belongs to the optimizer itself
        name = values.get(id(parameter))
        for entry, value in state.items():
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if not isinstance(tensor, Tensor) or tensor.numel() == 1:
                    continue
                # State of a dense parameter may have any shape, unless the state spans several parameters (LBFGS).
                odd = not per_value(tensor, parameter) if name else tensor.numel() > parameter.numel()
                if odd or tensor is not value:
                    raise OptimizerError(
                        f"{type(optimizer).__name__} keeps {entry!r}, which is not one number per weight "
                        f"({tuple(tensor.shape)} for the {tuple(parameter.shape)} values of "
                        f"{name or 'a dense parameter'}), so it cannot follow a weight through a refresh; {INSTEAD}"
                    )


def per_value(tensor: Any, parameter: Tensor) -> bool:
    """Whether this tensor has one number for each of a parameter's values, in the parameter's shape or as a vector."""
    return isinstance(tensor, Tensor) and (
        tensor.shape == parameter.shape or (tensor.dim() == 1 and 1 < tensor.numel() == parameter.numel())
    )


def kept_tensors(
    values: nn.Parameter, optimizers: Iterable[torch.optim.Optimizer]
) -> tuple[list[Tensor], list[float | None]]:
    """The tensors that hold one number for each of a site's values, and that move with the weights: the state of its
    optimizers, and the gradient in ``.grad``, so that accumulation across a manual refresh stays correct.

    Returns:
        The tensors, and for each tensor the number for a weight that enters B; None: the weight's value.
    """
    kept: list[tuple[Tensor, float | None]] = []
    if values.grad is not None:
        kept.append((values.grad, 0.0))
    for optimizer in optimizers:
        kept += _state(optimizer, values)
    return [tensor for tensor, _ in kept], [first for _, first in kept]


def carry_state(parts: Parts, values: Tensor, index: Index, geometry: Geometry) -> list[Tensor]:
    """The tensors with one number for each value, rearranged to the slots of another index.

    Args:
        parts: the current parts, all on one device.
        values: B's values, in the slots of ``index``.
    """
    found, stayed = [], None
    for tensor, first in zip(parts.kept, parts.starts, strict=True):
        moved = follow(tensor.reshape(-1), parts.index, index, geometry)
        if first != 0.0:
            if stayed is None:
                ones = torch.ones(moved.shape, dtype=torch.float32, device=moved.device)
                stayed = follow(ones, parts.index, index, geometry) != 0
            entering = values.reshape(-1).to(moved.dtype) if first is None else torch.full_like(moved, first)
            moved = torch.where(stayed, moved, entering)
        found.append(moved.reshape(tensor.shape))
    return found


def index_of_unknown_state(site: OptimizedSite, before: Index) -> Index | None:
    """The index that the state of a still unknown optimizer belongs to, after the values have left the slots of
    ``before``. The index is on the reservoir's device. None if every optimizer is known. See :func:`prepare_state`."""
    if site.optimizers:
        return None
    return site.unread_state_index or before.to(before.cols.device, copy=True)


def prepare_state(optimizer: torch.optim.Optimizer, site: OptimizedSite) -> None:
    """Bring the optimizer's state to the site's slots before the optimizer makes a step on the site.

    An optimizer becomes known at its first step. Before this step its state may have been loaded from a checkpoint. If
    the checkpoint was written when a refresh was due, the first forward has already chosen new sets. The state still
    belongs to the index that the model was loaded with; this function moves the state to the new index.

    An optimizer may have trained the dense model, or may have loaded the state of such an optimizer. This state has the
    dense weight's shape. The function cuts the state to B, at any step.
    """
    cut = _cut(optimizer, site)
    if optimizer in site.optimizers and not cut:
        return
    moved: list[tuple[Tensor, Tensor]] = []
    if optimizer not in site.optimizers and site.unread_state_index is not None:
        before, after = site.unread_state_index.to(site.home), site.index.to(site.home)
        state = _state(optimizer, site.original)
        values = site.taken(site.original.detach()).to(site.home)
        kept = [site.taken(tensor).to(site.home) for tensor, _ in state]
        there = Parts(values, values, before, values, kept, [first for _, first in state])
        new = carry_state(there, values, after, site.geometry)
        moved = [(tensor, one) for (tensor, _), one in zip(state, new, strict=True)]

    def apply() -> None:
        for tensor, new in moved:
            site.put(tensor, new)
        if cut:
            optimizer.state[site.original].update(cut)
        site.optimizers.add(optimizer)

    carry_out([site], apply)


def _state(optimizer: torch.optim.Optimizer, values: nn.Parameter) -> list[tuple[Tensor, float | None]]:
    """State with one number for each value, and the number for a weight that enters B; see :func:`kept_tensors`."""
    state = {name: one for name, one in optimizer.state.get(values, {}).items() if per_value(one, values)}
    # SAM's `p.data = old_p` leaves the values' own memory in its state. This memory is moved already; do not clear it.
    mine = {name: one for name, one in state.items() if not local(one).is_set_to(local(values))}
    return [(one, start(optimizer, values, name)) for name, one in mine.items()]


def _cut(optimizer: torch.optim.Optimizer, site: OptimizedSite) -> dict[str, Tensor]:
    """State with one number for each weight of the dense model, cut to one number for each of B's values."""
    found, geometry = {}, site.geometry
    for name, value in optimizer.state.get(site.original, {}).items():
        if per_value(value, site.original) or not isinstance(value, Tensor) or value.numel() == 1:
            continue
        if tuple(value.shape) == geometry.shape or tuple(value.shape) == (geometry.numel,):
            units = slot_units(site.index, geometry)[0].to(value.device)
            blocks = torch.nn.functional.pad(geometry.to_blocks(value.reshape(geometry.shape)), (0, 0, 0, 1))
            shape = site.original.shape if tuple(value.shape) == geometry.shape else (-1,)
            found[name] = blocks[units].reshape(shape)
    return found
