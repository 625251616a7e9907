"""Put the forward sets of a file into a plain model, for inference only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from topkast.compiler.config import Config
from topkast.compiler.convert.meta.materialise import materialise
from topkast.compiler.convert.meta.rehearse import rehearse
from topkast.compiler.convert.meta.tensors import held, like
from topkast.runtime.layout import Geometry, Index
from topkast.runtime.state.content.family import Family
from topkast.runtime.state.content.parts import carry_out
from topkast.runtime.state.find_sites import joined
from topkast.runtime.state.inference_site import InferenceSite
from topkast.runtime.state.model import Record

from .attach import attach
from .undo import Undo
from .wrong_model import refuse_dense

Owners = list[tuple[str, str]]  # (module path, attribute) of every place of a parameter


@dataclass(frozen=True)
class ForwardSet:
    """A weight as a file holds it, without everything that only training needs.

    Args:
        values: the values of A, [slots · r · c].
        index: the index of A; every slot is a slot of A.
        geometry: how the weight is cut into units.
        seed: the seed of the site's random draws.
    """

    values: Tensor
    index: Index
    geometry: Geometry
    seed: int


def owners_of(model: nn.Module) -> dict[str, Owners]:
    """Parameter name -> the owners of the parameter; a tied parameter has an entry for each of its names."""
    found: dict[int, Owners] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), []).append((path, attribute))
    return {joined(*owner): owners for owners in found.values() for owner in owners}


def use_forward_sets(
    model: nn.Module, config: Config, weights: Mapping[str, ForwardSet], rest: Mapping[str, Any], source: str
) -> None:
    """Make ``model`` sparse with these weights, in place; if this fails or is interrupted, the model is unchanged.

    Args:
        model: a plain model, which may be on the meta device; it is in evaluation mode afterwards.
        config: the options that the model was trained with.
        weights: name of a parameter -> its forward set. The values come to the parameter's device, or to the CPU from
            the meta device.
        rest: the state dict of everything that is not sparse.
        source: the name of the file, for the report.

    Raises:
        ModelError: a tensor on the meta device is not in the file, and nothing initialises it.
    """
    undo, owners = Undo(model), owners_of(model)
    sparse = {id(model.get_parameter(name)) for name in weights}
    record = Record(
        config=config,
        dense={n: "dense in the file" for n, p in model.named_parameters() if id(p) not in sparse},
        ops={name: [] for name in weights},
        positions=dict.fromkeys(weights),
        how=f"the file {source}",
        family=Family(model),
    )

    def finish() -> None:
        model.load_state_dict(rest, strict=False)
        model._topkast = record  # type: ignore[assignment]
        model.eval()

    try:
        for name, weight in weights.items():
            _replace(model, owners[name], name, weight, record)
        record.warnings += _leave_meta(model)
        model.register_load_state_dict_pre_hook(refuse_dense)
    except BaseException:
        carry_out((), undo.back)
        raise
    carry_out((), finish)


def _leave_meta(model: nn.Module) -> list[str]:
    """Make every tensor on the meta device: tensors of a state dict without values, for the file's; all others by the
    model's own initialisers. Returns notes for the user."""
    for places in held(model).values():
        module, attribute = places[0]
        if attribute not in module._non_persistent_buffers_set:
            fresh = like(getattr(module, attribute), torch.device("cpu"))
            for module, attribute in places:
                setattr(module, attribute, fresh)
    if not held(model):
        return []
    plan = rehearse(model, None)
    materialise(plan, torch.device("cpu"), lambda name: None)
    return plan.warnings


def _replace(model: nn.Module, owners: Owners, name: str, weight: ForwardSet, record: Record) -> None:
    """Let every owner of the parameter read the forward set."""
    parameter = model.get_parameter(name)
    place = torch.device("cpu") if parameter.is_meta else parameter.device
    counts = weight.index.row_ptr.diff()
    rule = record.config.rule(bool((counts == counts[0]).all())).replaced(seed=weight.seed)
    site = InferenceSite(name, weight.index.to(place), weight.geometry, rule, record.family)
    values = nn.Parameter(weight.values.to(place).view(site.value_shape), requires_grad=parameter.requires_grad)
    for path, attribute in owners:
        model.get_submodule(path)._parameters[attribute] = values
    site.use(model.get_submodule(owners[0][0]), owners[0][1])
    for path, attribute in owners:
        attach(model.get_submodule(path), attribute, site)
