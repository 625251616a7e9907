"""Optimizer state goes where its weight goes; a weight that enters B gets the state of a new parameter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from topkast.runtime.errors import OptimizerError
from topkast.runtime.layout import Geometry, Index, slot_units
from topkast.runtime.native.theta import follow
from topkast.runtime.training.probe import INSTEAD, start

from .parts import Held, finish

if TYPE_CHECKING:
    from .site import Site


def check_elementwise(optimizer: torch.optim.Optimizer, sites: Iterable[Site]) -> None:
    """Refuse an optimizer whose state for a site is anything but scalars and one number per value.

    Raises:
        OptimizerError: names the optimizer, the state and what to use instead.
    """
    values = {id(site.original): site.name for site in sites}
    for parameter, state in optimizer.state.items():
        if not isinstance(state, dict):
            continue  # a number of the optimizer's own
        name = values.get(id(parameter))
        for entry, value in state.items():
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if not isinstance(tensor, Tensor) or tensor.numel() == 1:
                    continue
                # Dense parameters may have what they like, unless it spans several parameters (LBFGS).
                odd = not per_value(tensor, parameter) if name else tensor.numel() > parameter.numel()
                if odd or tensor is not value:
                    raise OptimizerError(
                        f"{type(optimizer).__name__} keeps {entry!r}, which is not one number per weight "
                        f"({tuple(tensor.shape)} for the {tuple(parameter.shape)} values of "
                        f"{name or 'a dense parameter'}), so it cannot follow a weight through a refresh; {INSTEAD}"
                    )


def per_value(tensor: Any, parameter: Tensor) -> bool:
    """Whether this is one number for each of a parameter's values, in its shape or in one row."""
    return isinstance(tensor, Tensor) and (
        tensor.shape == parameter.shape or (tensor.dim() == 1 and 1 < tensor.numel() == parameter.numel())
    )


def followers(site: Site) -> tuple[list[Tensor], list[float | None]]:
    """What is kept for each of a site's values, and goes where its weight goes: every optimizer's state, and a gradient
    that waits in ``.grad``, so that accumulation across a manual refresh stays right.

    Returns:
        The tensors, and for each the number that a weight gets there which enters B; None: its value.
    """
    kept: list[tuple[Tensor, float | None]] = []
    if site.original.grad is not None:
        kept.append((site.original.grad, 0.0))
    for optimizer in site.optimizers:
        kept += _state(optimizer, site)
    return [tensor for tensor, _ in kept], [first for _, first in kept]


def carried(held: Held, values: Tensor, index: Index, geometry: Geometry) -> list[Tensor]:
    """The tensors that are kept for each value, in the slots of another index.

    Args:
        held: all in one place, as it is.
        values: B's, in the slots of ``index``.
    """
    found, stayed = [], None
    for tensor, first in zip(held.kept, held.starts, strict=True):
        moved = follow(tensor.reshape(-1), held.index, index, geometry)
        if first != 0.0:
            if stayed is None:
                ones = torch.ones(moved.shape, dtype=torch.float32, device=moved.device)
                stayed = follow(ones, held.index, index, geometry) != 0
            entering = values.reshape(-1).to(moved.dtype) if first is None else torch.full_like(moved, first)
            moved = torch.where(stayed, moved, entering)
        found.append(moved.reshape(tensor.shape))
    return found


def left(site: Site, before: Index) -> Index | None:
    """The index that optimizer state not known yet belongs to, once the site's values have moved away from the slots of
    an index, at home; None if every optimizer is known. See :func:`claim`."""
    if site.optimizers:
        return None
    return site.unclaimed or Index(*(tensor.clone() for tensor in before))


def claim(optimizer: torch.optim.Optimizer, site: Site) -> None:
    """The optimizer is about to make a step on the site.

    Before its first one nobody knows an optimizer whose state was loaded from a checkpoint. If that checkpoint was
    written when a refresh was due, the first forward has chosen new sets by now: the state, which belongs to the
    model's index as it was loaded, moves here.

    State of the dense weight's shape, of an optimizer that has trained the dense model or has loaded such a state, is
    cut to B, at whichever step it is found.
    """
    cut = _cut(optimizer, site)
    if optimizer in site.optimizers and not cut:
        return
    moved: list[tuple[Tensor, Tensor]] = []
    if optimizer not in site.optimizers and site.unclaimed is not None:
        before, after = (Index(*(tensor.to(site.home) for tensor in at)) for at in (site.unclaimed, site.index))
        state = _state(optimizer, site)
        values = site.original.detach().to(site.home)
        kept = [tensor.to(site.home) for tensor, _ in state]
        there = Held(values, values, before, values, kept, [first for _, first in state])
        new = carried(there, values, after, site.geometry)
        moved = [(tensor, one) for (tensor, _), one in zip(state, new, strict=True)]

    def apply() -> None:
        for tensor, new in moved:
            tensor.copy_(new)
        if cut:
            optimizer.state[site.original].update(cut)
        site.optimizers.add(optimizer)

    finish([site], apply)


def _state(optimizer: torch.optim.Optimizer, site: Site) -> list[tuple[Tensor, float | None]]:
    """State that is one number per value, and what a weight gets there that enters B, see :func:`followers`."""
    values = site.original
    state = {name: one for name, one in optimizer.state.get(values, {}).items() if per_value(one, values)}
    # SAM's `p.data = old_p` leaves the values' own memory in its state: it follows already, and is not cleared.
    mine = {name: one for name, one in state.items() if not one.is_set_to(values)}
    return [(one, start(optimizer, site, name)) for name, one in mine.items()]


def _cut(optimizer: torch.optim.Optimizer, site: Site) -> dict[str, Tensor]:
    """State that is one number for each weight of the dense model, as one for each of B's values."""
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
