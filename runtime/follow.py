"""What optimizers keep for a weight, and which of them a refresh can live with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .commit import finish
from .errors import OptimizerError
from .layout import Index
from .native.theta import follow

if TYPE_CHECKING:
    from .site import Site


def check_elementwise(optimizer: torch.optim.Optimizer, sites: Iterable[Site]) -> None:
    """Refuse an optimizer whose state for a site is anything but scalars and tensors of the values' own shape.

    Raises:
        OptimizerError: names the optimizer, the state and what to use instead.
    """
    values = {id(site.original): site.name for site in sites}
    for parameter, state in optimizer.state.items():
        name = values.get(id(parameter))
        for entry, value in state.items():
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if not isinstance(tensor, Tensor) or tensor.numel() == 1:
                    continue
                # Dense parameters may have what they like, unless it spans several parameters (LBFGS).
                odd = tensor.shape != parameter.shape if name else tensor.numel() > parameter.numel()
                if odd or tensor is not value:
                    raise OptimizerError(
                        f"{type(optimizer).__name__} keeps {entry!r}, which is not one number per weight "
                        f"({tuple(tensor.shape)} for the {tuple(parameter.shape)} values of "
                        f"{name or 'a dense parameter'}), so it cannot follow a weight through a refresh; use an "
                        "elementwise optimizer: SGD, Adam, AdamW, NAdam, RMSprop, Adagrad, Rprop, ..."
                    )


def followers(site: Site) -> list[Tensor]:
    """What is kept for each of a site's values, and goes where its weight goes: every optimizer's state, and a gradient
    that waits in ``.grad``, so that accumulation across a manual refresh stays right."""
    kept = [site.original.grad] if site.original.grad is not None else []
    for optimizer in site.optimizers:
        kept += _state(optimizer, site)
    return kept


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
    """
    if optimizer in site.optimizers:
        return
    moved: list[tuple[Tensor, Tensor]] = []
    if site.unclaimed is not None:
        before, after = (Index(*(tensor.to(site.home) for tensor in at)) for at in (site.unclaimed, site.index))
        moved = [
            (tensor, follow(tensor.to(site.home).reshape(-1), before, after, site.geometry).view(tensor.shape))
            for tensor in _state(optimizer, site)
        ]

    def apply() -> None:
        for tensor, new in moved:
            tensor.copy_(new)
        site.optimizers.add(optimizer)

    finish([site], apply)


def _state(optimizer: torch.optim.Optimizer, site: Site) -> list[Tensor]:
    values = site.original
    state = [value for value in optimizer.state.get(values, {}).values() if isinstance(value, Tensor)]
    # SAM's `p.data = old_p` leaves the values' own memory in its state: it follows already, and is not cleared.
    return [value for value in state if value.shape == values.shape and not value.is_set_to(values)]
