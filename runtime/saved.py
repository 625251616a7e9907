"""How a site saves what is no tensor of its own, and takes all of a state dict back: as a whole or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .background import known
from .commit import Change, finish
from .layout import Index, check_index

if TYPE_CHECKING:
    from .site import Site


def add(site: Site, destination: dict[str, Any], prefix: str) -> None:
    """The reservoir, which is no parameter and not always a buffer; the clock; what a thread has chosen."""
    destination[prefix + "reservoir"] = site.reservoir
    destination[prefix + "clock"] = torch.tensor([site.step, site.refreshed_at], device="cpu")
    destination.update({prefix + name: tensor for name, tensor in site.prepared().items()})


def load(site: Site, state: dict[str, Any], prefix: str, missing: list[str], errors: list[str]) -> None:
    """Take a site's part of a state dict, as ``Module._load_from_state_dict`` is asked to.

    Args:
        site: is changed as a whole, or not at all.
        state, prefix: the tensors are ``state[prefix + name]``.
        missing, errors: are added to.
    """
    mine = {name: getattr(site, name) for name in ("original", *Index._fields, "ever", "reservoir")}
    own = {**mine, "clock": torch.empty(2)}
    chosen = [f"prepared_{name}" for name in Index._fields] if site.rule.refresh_in_background else []
    own |= {name: mine[name.removeprefix("prepared_")] for name in chosen}
    found: dict[str, Tensor] = {name: state[prefix + name] for name in own if prefix + name in state}
    missing += [prefix + name for name in own if name not in found]
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            errors.append(f"size mismatch for {prefix}{name}: {tensor.shape}, expected {own[name].shape}")
            return
    if len(found) < len(own):
        return
    for kind in ("", "prepared_") if chosen else ("",):
        wrong = check_index(Index(*(found[kind + name] for name in Index._fields)), site.geometry)
        if wrong:
            errors.append(f"{prefix}: the {kind}index is broken: {wrong}")
            return
    site.wait()
    fields = _fields(site, found, [found[name].to("cpu", own[name].dtype, copy=True) for name in chosen])

    @torch.no_grad()
    def apply() -> None:
        for name, tensor in mine.items():
            tensor.copy_(found[name])
        site.write(None, Change(fields=fields, then=site.method.forget))

    finish([site], apply)


def _fields(site: Site, found: dict[str, Tensor], chosen: list[Tensor]) -> dict[str, Any]:
    """What is no tensor of the site."""
    step, refreshed_at = (int(n) for n in found["clock"])
    pending = None
    if chosen and int(chosen[0][-1]):
        pending = known(site.name, refreshed_at, Index(*chosen))
    return {"unclaimed": None, "step": step, "refreshed_at": refreshed_at, "pending": pending}
