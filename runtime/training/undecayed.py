"""Notice an optimizer that decays a model's dense matrices but none of its sparse weights.

Some scripts list the names of the parameters to decay. These lists were written for another model, and they leave out
the values of sparse weights by accident.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from typing import Any

import torch

from topkast.runtime.state.site_module import SiteModule

_seen: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()


def notice_undecayed(optimizer: torch.optim.Optimizer, held: Iterable[tuple[SiteModule, dict[str, Any]]]) -> None:
    """At an optimizer's first step: warn if the optimizer decays dense matrices, but no values of a sparse weight.

    Args:
        held: the sites whose values the optimizer updates, each with its parameter group.
    """
    if optimizer in _seen:
        return
    _seen.add(optimizer)
    held = list(held)
    if any(_decays(group) for _, group in held):
        return
    own = {id(site.original) for site, _ in held}
    of_models = _parameters(site for site, _ in held)
    matrices = [
        parameter
        for group in optimizer.param_groups
        if _decays(group)
        for parameter in group["params"]
        if parameter.ndim >= 2 and id(parameter) not in own and (not of_models or id(parameter) in of_models)
    ]
    if matrices:
        warnings.warn(
            f"topkast: {type(optimizer).__name__} decays {len(matrices)} dense matrices and none of the model's "
            f"{len(own)} sparse weights; topkast.param_groups(model, lr, weight_decay) returns groups in which both "
            "are decayed",
            stacklevel=2,
        )


def _decays(group: dict[str, Any]) -> bool:
    return bool(float(group.get("weight_decay") or 0) > 0)


def _parameters(sites: Iterable[SiteModule]) -> set[int]:
    """All parameters of the models that the sites belong to. Empty if the models are not known, for example a copy."""
    roots = {id(site.family): site.family.root for site in sites}
    models = [model for root in roots.values() if root is not None and (model := root()) is not None]
    return {id(parameter) for model in models for parameter in model.parameters()}
