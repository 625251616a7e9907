"""Save the fields of a site that are not its own tensors, and load a state dict: as a whole or not at all.

The values have the weight's own name, ``layer.weight``; the rest is ``layer.sparse_state.weight.*``. Before format 2,
all of a site was ``layer.parametrizations.weight.*``, and the values were a vector named ``original``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from topkast.runtime.layout import Index, check_index
from topkast.runtime.state.content.background import already_chosen
from topkast.runtime.state.content.parts import Change, carry_out
from topkast.runtime.state.site import Site

from . import saved_form, sharded_dict
from .saved_index import as_plain, as_saved

STATE = "sparse_state"  # submodule of a module with sparse weights: attribute -> site
METHOD = "method_"  # the names of a method's own tensors begin so
DENSE = "topkast.load_dense_state_dict(model, state_dict) loads the state dict of the dense model"


def add(site: Site, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
    """Add to the buffers of a site: the reservoir, which is not always a buffer; the clock; the sets that a thread has
    chosen. The index tensors become :class:`SavedIndex`, unless ``keep_vars`` asks for the buffers themselves."""
    outside = saved_form.outside(site) if site.shard is None else sharded_dict.outside(site)
    destination.update({prefix + name: tensor for name, tensor in outside.items()})
    destination[prefix + "clock"] = site.clock
    destination.update({prefix + name: tensor for name, tensor in site.pending_tensors().items()})
    destination.update({prefix + name: tensor for name, tensor in _of_method(site).items()})
    if keep_vars:
        return
    destination[prefix + "cols"] = saved_form.as_saved(site, "cols", destination[prefix + "cols"])
    for name in (*Index._fields, *(f"prepared_{name}" for name in Index._fields)):
        if (key := prefix + name) in destination:
            destination[key] = as_saved(destination[key])


def keys(prefix: str, attribute: str, old: bool = False) -> tuple[str, str]:
    """(Key of the values, prefix of the rest) of a site in a state dict.

    Args:
        prefix: the prefix of the module that owns the values, empty or with a dot at the end.
        attribute: the name of the values in that module.
        old: whether to give the names from before format 2.
    """
    rest = f"{prefix}{'parametrizations' if old else STATE}.{attribute}."
    return (rest + "original" if old else prefix + attribute), rest


def upgrade(state: dict[str, Any], prefix: str, attribute: str, site: Site) -> None:
    """Change a site's part of an older state dict to the current names and forms, in place."""
    (old_values, old_rest), (values, rest) = keys(prefix, attribute, old=True), keys(prefix, attribute)
    for key in [key for key in state if key.startswith(old_rest)]:
        tensor = state.pop(key)
        state[values if key == old_values else rest + key.removeprefix(old_rest)] = tensor
    if isinstance(state.get(values), Tensor):
        state[values] = saved_form.as_held(site, "values", state[values])
    for name in ("cols", *saved_form.OUTSIDE):
        if isinstance(state.get(rest + name), Tensor):
            state[rest + name] = saved_form.as_saved(site, name, state[rest + name])


def load(
    site: Site,
    state: dict[str, Any],
    places: tuple[str, str],
    missing: list[str],
    errors: list[str],
    assign: bool = False,
) -> None:
    """Load a site's part of a state dict, as ``Module._load_from_state_dict`` does.

    Args:
        site: the site; it is changed as a whole, or not at all.
        state: the state dict with the tensors.
        places: the result of :func:`keys`.
        missing, errors: lists that the function adds to.
        assign: whether the site uses the given tensors themselves, with their device and dtype.
    """
    if site.shard is not None:
        names = ("values", *Index._fields, "ever", "reservoir", "clock")
        key = {name: places[0] if name == "values" else places[1] + name for name in names}
        sharded_dict.load(site, state, key, missing, errors)
        return
    held = {name: getattr(site, name) for name in (*Index._fields, "ever", "reservoir")}
    mine = {"values": site.original, **held}
    own = {**mine, "clock": torch.empty(2)}
    chosen = [f"prepared_{name}" for name in Index._fields] if site.rule.refresh_in_background else []
    own |= {name: mine[name.removeprefix("prepared_")] for name in chosen}
    of_method = _of_method(site)
    own |= of_method
    key = {name: places[0] if name == "values" else places[1] + name for name in own}
    found: dict[str, Tensor] = {name: as_plain(state[key[name]]) for name in own if key[name] in state}
    missing += [key[name] for name in own if name not in found]
    index = [found[name] for name in Index._fields if name in found]
    if len(index) == len(Index._fields) and any(tensor.is_floating_point() for tensor in index):
        errors.append(f"{places[1]}: the index is broken: {check_index(Index(*index), site.geometry)}")
        return
    found |= {name: saved_form.as_held(site, name, found[name]) for name in mine if name in found}
    for name, tensor in found.items():
        if tensor.shape != own[name].shape:
            hint = f"; {DENSE}" if tuple(tensor.shape) == site.geometry.shape else ""
            errors.append(f"size mismatch for {key[name]}: {tensor.shape}, expected {own[name].shape}{hint}")
            return
    if len(found) < len(own):
        return
    for kind in ("", "prepared_") if chosen else ("",):
        columns = saved_form.columns_of(found[f"{kind}cols"], site.geometry.grid[1])
        wrong = check_index(Index(found[f"{kind}row_ptr"], found[f"{kind}row_fwd"], columns), site.geometry)
        if wrong:
            errors.append(f"{places[1]}: the {kind}index is broken: {wrong}")
            return
    site.wait()
    fields = _fields(site, found, [found[name].to("cpu", own[name].dtype, copy=True) for name in chosen])

    seen = {name.removeprefix(METHOD): found[name].to(tensor, copy=True) for name, tensor in of_method.items()}

    def after() -> None:
        site.method.forget()
        site.method.restore(seen)

    @torch.no_grad()
    def apply() -> None:
        if assign:
            _assign(site, {name: found[name] for name in mine})
        else:
            for name, tensor in mine.items():
                tensor.copy_(found[name])
        site.remember_index()
        site.write(None, Change(fields=fields, after=after))

    carry_out([site], apply)


def _of_method(site: Site) -> dict[str, Tensor]:
    """The tensors that the site's method saves, by their names in the site's part of a state dict."""
    return {METHOD + name: tensor for name, tensor in site.method.saved(site.set_state()).items()}


def _assign(site: Site, found: dict[str, Tensor]) -> None:
    """Put these tensors in the place of the site's own tensors."""
    values, requires_grad = found["values"], site.original.requires_grad
    parameter = values if isinstance(values, nn.Parameter) else nn.Parameter(values, requires_grad)
    parameter.requires_grad_(requires_grad)
    site.replace_tensors(parameter, {name: found[name] for name in (*Index._fields, "ever")}, found["reservoir"])


def _fields(site: Site, found: dict[str, Tensor], chosen: list[Tensor]) -> dict[str, Any]:
    """The fields of a site that are not tensors."""
    step, refreshed_at = (int(n) for n in found["clock"])
    pending = None
    if chosen and int(chosen[0][-1]):
        pending = already_chosen(site.name, refreshed_at, Index(*chosen))
    return {"unread_state_index": None, "step": step, "refreshed_at": refreshed_at, "pending": pending}
