"""The dense view of a sparse model: masks, and state dicts with the keys of the original model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from topkast.runtime.errors import CheckpointError, ConfigError
from topkast.runtime.reference.products import weight
from topkast.runtime.state.change.copies import changes_of_copies
from topkast.runtime.state.content.parts import carry_out
from topkast.runtime.state.find_sites import SparseState, joined
from topkast.runtime.state.model import find, owned, sites
from topkast.runtime.state.sharding.gathered import gathered
from topkast.runtime.state.sharding.part import at_work
from topkast.runtime.state.sharding.whole_tensors import adapted, has_full_state, reshard, stored, whole
from topkast.runtime.state.site_module import SiteModule
from topkast.runtime.state.snapshots import restore_snapshots


def masks(model: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """The sets A and B of every site, as masks.

    Args:
        model: a model converted by topkast, or a wrapper of such a model.

    Returns:
        Original parameter name -> (A, B). Each is a bool tensor in the weight's shape, on the weight's device.

    Raises:
        ModelError: the model was not converted.
    """
    found = sites(model)
    restore_snapshots(found.values())
    return {name: site.sets() for name, site in found.items()}


def _with_keys(model: Any) -> tuple[dict[str, SiteModule], dict[str, str]]:
    """(name -> site, state-dict key -> name of the site that holds the weight); a tied weight has several keys."""
    found = owned(model)
    keys = {joined(*owner): name for name, (_, owners) in found.items() for owner in owners}
    return {name: site for name, (site, _) in found.items()}, keys


def _dense_keys(root: nn.Module, own: Mapping[str, Any]) -> list[str]:
    """The state dict's keys that the model would have if it were dense."""
    paths = root.named_modules(remove_duplicate=False)
    ours = tuple(f"{path}." for path, part in paths if isinstance(part, SparseState))
    return [key for key in own if not key.startswith(ours)]


def dense_state_dict(model: Any, values: Literal["forward", "all"] = "forward", full: bool = False) -> dict[str, Any]:
    """The state dict of the original, dense model: the same keys in the same order.

    Args:
        model: a model converted by topkast, or a wrapper of such a model.
        values: "forward" for W_A (zero outside A), "all" for all of θ.
        full: only for a model that ``fully_shard`` has sharded; all ranks must call this function together. False: each
            rank gets its part of every tensor, as a ``DTensor``. True: rank 0 gets whole tensors in host memory, and
            the other ranks get an empty dict. Weights are gathered one after the other.

    Returns:
        Original key -> dense detached tensor. Sparse weights are new tensors; all keys of a tied weight share one
        tensor. With ``values="all"`` a weight is on the device of its reservoir: in host memory for a host reservoir.
        Everything that was not sparsified is the live tensor, as in ``state_dict``.

    Raises:
        ConfigError: ``values`` is another word.
        ModelError: the model was not converted.
    """
    if values not in ("forward", "all"):
        raise ConfigError(f"values={values!r}: must be 'forward' or 'all'")
    root, _ = find(model)
    found, keys = _with_keys(model)
    restore_snapshots(found.values())
    own = root.state_dict()
    dense = {name: stored(_dense(site, values), site.original, full) for name, site in found.items()}
    others = {key: stored(value, value, full) for key, value in own.items() if key not in keys}
    state = OrderedDict((key, dense[keys[key]] if key in keys else others[key]) for key in _dense_keys(root, own))
    if full and not has_full_state():
        state.clear()
    # A module needs its version from the metadata to read a state dict that it saved itself.
    state._metadata = own._metadata  # type: ignore[attr-defined]
    return state


def _dense(site: SiteModule, values: str) -> Tensor:
    if values == "all":
        return site.theta()
    own, _, index = gathered(site)
    # The reference implementation is called directly: a read by the operator would count as a read by the model.
    return weight(own, index, site.geometry)


def load_dense_state_dict(model: Any, state_dict: Mapping[str, Any], strict: bool = True) -> None:
    """Load a state dict of the original, dense model. Both sets of every site are chosen again from the new θ.

    Everything is checked and prepared before anything is changed. The model is changed completely: an interrupt during
    the change takes effect after the change. Optimizer state is moved to the new sets as in a refresh.

    Args:
        model: a model converted by topkast, or a wrapper of such a model.
        state_dict: original key -> dense tensor, as :func:`dense_state_dict` with ``values="all"`` returns. If the
            model is sharded, all ranks call this function together, with ``DTensor`` parts or the same whole tensors.
        strict: if True, the keys must be exactly the model's keys. If False, a tensor whose key is missing keeps its
            value.

    Raises:
        CheckpointError: keys are missing or unexpected, shapes are wrong, weights are not finite, a
            number is too large for its tensor, a parameter holds NaN, or a tied weight has
            more than one value. The message lists them.
        ModelError: the model was not converted.
    """
    root, _ = find(model)
    if not isinstance(state_dict, Mapping):
        raise CheckpointError(f"state_dict: a {type(state_dict).__name__}, must be a dict from names to tensors")
    (found, keys), own = _with_keys(model), root.state_dict()
    names, trained = _dense_keys(root, own), {key for key, _ in root.named_parameters(remove_duplicate=False)}
    reshard(root)
    wrong: list[str] = []
    if strict:
        wrong += [f"missing: {key}" for key in names if key not in state_dict]
        wrong += [f"unexpected: {key}" for key in state_dict if key not in names]
    thetas: dict[str, Tensor] = {}
    rest = OrderedDict[str, Any]()
    for key in names:
        if key not in state_dict:
            continue
        value = whole(state_dict[key]) if key in keys else adapted(state_dict[key], own.get(key))
        if key in keys:
            name = keys[key]
            wrong += _check_weight(key, value, found[name], thetas.get(name))
            thetas.setdefault(name, value)
        elif key in own:
            rest[key] = value
            if isinstance(own[key], Tensor) and getattr(value, "shape", None) != own[key].shape:
                wrong.append(f"{key}: {_shape(value)}, expected shape {tuple(own[key].shape)}")
            elif isinstance(own[key], Tensor):
                wrong += _check_numbers(key, value, own[key].dtype, key in trained)
    if wrong:
        raise CheckpointError("state_dict does not fit the model, nothing was loaded: " + "; ".join(wrong))
    rest._metadata = getattr(state_dict, "_metadata", own._metadata)  # type: ignore[attr-defined]
    changes = [(found[name], *found[name].replaced(theta)) for name, theta in thetas.items()]
    for site, _, change in changes:
        change.of_copies = changes_of_copies(site, change)

    def apply() -> None:
        root.load_state_dict(rest, strict=False)
        for site, parts, change in changes:
            at_work(site).write(parts, change)

    carry_out(found.values(), apply)


def _shape(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _unreadable(value: Tensor) -> str | None:
    """What keeps a tensor's numbers from being read; None if nothing does."""
    if value.is_meta:
        return "a tensor on the meta device, which holds no numbers"
    if value.layout != torch.strided:
        return f"a tensor of layout {str(value.layout).removeprefix('torch.')}, expected a dense tensor"
    return "a quantized tensor, expected plain numbers" if value.is_quantized else None


def _check_numbers(key: str, value: Any, dtype: torch.dtype, trained: bool) -> list[str]:
    """Refuse numbers that ``dtype`` cannot hold, and NaN in a parameter. A parameter or buffer may hold infinities."""
    name = str(dtype).removeprefix("torch.")
    if trained and (kind := _unreadable(value)):
        return [f"{key}: {kind}"]
    if value.is_complex() and not dtype.is_complex:
        return [f"{key}: complex numbers, expected {name}"]
    if not value.is_floating_point() or not dtype.is_floating_point:
        return []
    if trained and bool(value.isnan().any()):
        return [f"{key}: holds NaN"]
    if value.dtype.itemsize > dtype.itemsize and bool((value.to(dtype).isinf() & value.isfinite()).any()):
        return [f"{key}: holds numbers that are too large for {name}"]
    return []


def _check_weight(key: str, value: Any, site: SiteModule, before: Tensor | None) -> list[str]:
    if not isinstance(value, Tensor) or tuple(value.shape) != site.geometry.shape:
        return [f"{key}: {_shape(value)}, expected shape {site.geometry.shape}"]
    if kind := _unreadable(value):
        return [f"{key}: {kind}"]
    if not bool(value.isfinite().all()):
        return [f"{key}: holds NaN or infinite values"]
    if wrong := _check_numbers(key, value, site.original.dtype, True):
        return wrong
    if before is not None and before is not value and not torch.equal(before, value):
        return [f"{key}: differs from another key of the same tied weight {site.name}"]
    return []
