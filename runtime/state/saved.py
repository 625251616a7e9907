"""How a site saves what is no tensor of its own, and takes all of a state dict back: as a whole or not at all.

The values stand under the weight's own name, ``layer.weight``; the rest is ``layer.sparse_state.weight.*``. Before
format 2 all of a site was ``layer.parametrizations.weight.*``, the values a vector called ``original``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from topkast.runtime.errors import CheckpointError
from topkast.runtime.layout import Index, check_index

from .background import known
from .index_check import note
from .parts import Change, finish
from .reservoirs import allocate
from .saved_index import as_plain, as_saved

if TYPE_CHECKING:
    from .site import Site

STATE = "sparse_state"  # submodule of a module with sparse weights: attribute -> site


DENSE = "topkast.load_dense_state_dict(model, state_dict) loads the state dict of the dense model"


def joined(path: str, name: str) -> str:
    """A name below a module's path, which is empty for the root; with an empty name the prefix of all that is there."""
    return f"{path}.{name}" if path else name


def add(site: Site, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
    """Add to the buffers of a site: the reservoir, which is not always a buffer; the clock; what a thread has chosen.
    The index becomes tensors that say what cannot be done with them, unless the buffers themselves were asked for."""
    destination[prefix + "reservoir"] = site.reservoir
    destination[prefix + "clock"] = site.clock
    destination.update({prefix + name: tensor for name, tensor in site.prepared().items()})
    if keep_vars:
        return
    for name in (*Index._fields, *(f"prepared_{name}" for name in Index._fields)):
        if (key := prefix + name) in destination:
            destination[key] = as_saved(destination[key])


def keys(prefix: str, attribute: str, old: bool = False) -> tuple[str, str]:
    """(Key of the values, prefix of the rest) of a site in a state dict.

    Args:
        prefix: of the module that owns the values, empty or ending in a dot.
        attribute: the values' name there.
        old: as it was before format 2.
    """
    rest = f"{prefix}{'parametrizations' if old else STATE}.{attribute}."
    return (rest + "original" if old else prefix + attribute), rest


def upgrade(state: dict[str, Any], prefix: str, attribute: str, site: Site) -> None:
    """Give a site's part of a state dict of format 1 the names and the shape that it has now, in place."""
    (old_values, old_rest), (values, rest) = keys(prefix, attribute, old=True), keys(prefix, attribute)
    for key in [key for key in state if key.startswith(old_rest)]:
        tensor = state.pop(key)
        state[values if key == old_values else rest + key.removeprefix(old_rest)] = tensor
    if isinstance(state.get(values), Tensor):
        state[values] = as_values(state[values], site)


def as_values(tensor: Tensor, site: Site) -> Tensor:
    """A vector of format 1, one number for each of a site's values, in the shape of the values; others as they are."""
    fits = tensor.dim() == 1 and tensor.numel() == site.original.numel() and site.geometry.shape != tuple(tensor.shape)
    return tensor.view(site.value_shape) if fits else tensor


def load(
    site: Site,
    state: dict[str, Any],
    places: tuple[str, str],
    missing: list[str],
    errors: list[str],
    assign: bool = False,
) -> None:
    """Take a site's part of a state dict, as ``Module._load_from_state_dict`` is asked to.

    Args:
        site: is changed as a whole, or not at all.
        state: holds the tensors.
        places: from :func:`keys`.
        missing, errors: are added to.
        assign: whether the site takes the tensors themselves, with their device and dtype.
    """
    held = {name: getattr(site, name) for name in (*Index._fields, "ever", "reservoir")}
    mine = {"values": site.original, **held}
    own = {**mine, "clock": torch.empty(2)}
    chosen = [f"prepared_{name}" for name in Index._fields] if site.rule.refresh_in_background else []
    own |= {name: mine[name.removeprefix("prepared_")] for name in chosen}
    key = {name: places[0] if name == "values" else places[1] + name for name in own}
    found: dict[str, Tensor] = {name: as_plain(state[key[name]]) for name in own if key[name] in state}
    missing += [key[name] for name in own if name not in found]
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            hint = f"; {DENSE}" if tuple(tensor.shape) == site.geometry.shape else ""
            errors.append(f"size mismatch for {key[name]}: {tensor.shape}, expected {own[name].shape}{hint}")
            return
    if len(found) < len(own):
        return
    for kind in ("", "prepared_") if chosen else ("",):
        wrong = check_index(Index(*(found[kind + name] for name in Index._fields)), site.geometry)
        if wrong:
            errors.append(f"{places[1]}: the {kind}index is broken: {wrong}")
            return
    site.wait()
    fields = _fields(site, found, [found[name].to("cpu", own[name].dtype, copy=True) for name in chosen])

    @torch.no_grad()
    def apply() -> None:
        if assign:
            _assign(site, {name: found[name] for name in mine})
        else:
            for name, tensor in mine.items():
                tensor.copy_(found[name])
        note(site)
        site.write(None, Change(fields=fields, then=site.method.forget))

    finish([site], apply)


def refuse_dense(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Pre-hook of a converted model's ``load_state_dict``: nothing of a dense model's state dict is loaded.

    Raises:
        CheckpointError: a sparse weight is dense in the state dict.
    """
    for path, part in module.named_modules():
        for attribute, site in sites_of(part).items():
            key = prefix + joined(path, attribute)
            if isinstance(state.get(key), Tensor) and tuple(state[key].shape) == site.geometry.shape:
                raise CheckpointError(f"{key}: a dense weight of shape {site.geometry.shape}; {DENSE}")


def _assign(site: Site, found: dict[str, Tensor]) -> None:
    """Let a site have these tensors in the place of its own."""
    values, requires_grad = found["values"], site.original.requires_grad
    parameter = values if isinstance(values, nn.Parameter) else nn.Parameter(values, requires_grad)
    site.table[site.attribute] = parameter
    parameter.requires_grad_(requires_grad)
    for name in (*Index._fields, "ever"):
        site._buffers[name] = found[name]
    kept = found["reservoir"]
    if site.rule.reservoir == "device":
        site._buffers["reservoir"] = kept
    elif site.reservoir is not kept:
        site.reservoir = allocate(site.rule.reservoir, kept.numel(), parameter.detach()).copy_(kept)
    site.accept()


def _fields(site: Site, found: dict[str, Tensor], chosen: list[Tensor]) -> dict[str, Any]:
    """What is no tensor of the site."""
    step, refreshed_at = (int(n) for n in found["clock"])
    pending = None
    if chosen and int(chosen[0][-1]):
        pending = known(site.name, refreshed_at, Index(*chosen))
    return {"unclaimed": None, "step": step, "refreshed_at": refreshed_at, "pending": pending}


def sites_of(module: nn.Module) -> dict[str, Site]:
    """A module's own sites by attribute: those whose values it holds."""
    known, held = all_sites_of(module), module._parameters.items()
    return {n: known[n] for n, v in held if n in known and v is not None and tuple(v.shape) == known[n].value_shape}


def all_sites_of(module: nn.Module) -> dict[str, Site]:
    """The same with those whose values it does not hold now. (An exported program has modules of that name too.)"""
    state = module._modules.get(STATE)
    found: dict[str, Any] = {} if state is None else state._modules
    return {name: site for name, site in found.items() if hasattr(site, "value_shape")}
