"""Checkpoints of format 1: a sparse weight stood under ``parametrizations``, behind the others of its module, and its
values were a vector.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from topkast.runtime.state.model import owned
from topkast.runtime.state.registry import alive
from topkast.runtime.state.saved import as_values, joined, keys
from topkast.runtime.state.saved import upgrade as upgrade_site


def upgrade(root: nn.Module, state: dict[str, Any]) -> None:
    """Give the tensors of a model's state dict of format 1 their names and shapes of now, in place."""
    for site, owners in owned(root).values():
        for path, attribute in owners:
            upgrade_site(state, joined(path, ""), attribute, site)


def upgrade_optimizer(root: nn.Module, packed: dict[str, Any], mine: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """The description of an optimizer of format 1 as it would be now.

    Args:
        root: the model.
        packed: what the file says of its optimizer.
        mine: the same of the optimizer that is given.

    Returns:
        (the description, for each group where its parameters stood in the file); no places, and the description with
        no more than other names, if the two optimizers do not hold the same parameters.
    """
    shapes: dict[str, tuple[str, list[int]]] = {}
    for name, (site, owners) in owned(root).items():
        for path, attribute in owners:
            old, _ = keys(joined(path, ""), attribute, old=True)
            shapes[old] = name, list(site.value_shape)
    groups = [[list(shapes.get(name, (name, shape))) for name, shape in group] for group in packed["params"]]
    packed = {**packed, "params": groups}
    names = [[name for name, _ in group] for group in groups]
    wanted = [[name for name, _ in group] for group in mine["params"]]
    if [sorted(map(str, group)) for group in names] != [sorted(map(str, group)) for group in wanted]:
        return packed, None
    places = [_places(there, here) for there, here in zip(names, wanted, strict=True)]
    ordered = [[group[place] for place in order] for group, order in zip(groups, places, strict=True)]
    return {**packed, "params": ordered}, places


def _places(there: list[str | None], here: list[str | None]) -> list[int]:
    """Where each of ``here`` stands in ``there``; those without a name keep their order."""
    left = list(enumerate(there))
    found = []
    for name in here:
        at = next(i for i, (_, other) in enumerate(left) if other == name)
        found.append(left.pop(at)[0])
    return found


def in_order(content: dict[str, Any], places: list[list[int]], optimizer: Any) -> dict[str, Any]:
    """An optimizer's state dict of format 1 with its parameters in their order of now, and vectors as values.

    Args:
        content: the state dict.
        places: from :func:`upgrade_optimizer`.
        optimizer: the state dict is for.
    """
    state: dict[Any, Any] = {}
    groups, number = [], 0
    held = {id(site.original): site for site in alive()}
    for group, order, mine in zip(content["param_groups"], places, optimizer.param_groups, strict=True):
        numbers = []
        for place, parameter in zip(order, mine["params"], strict=True):
            old, site = group["params"][place], held.get(id(parameter))
            if old in content["state"]:
                entries = content["state"][old]
                state[number] = {name: _as_values(value, site) for name, value in entries.items()}
            numbers.append(number)
            number += 1
        groups.append({**group, "params": numbers})
    return {**content, "state": state, "param_groups": groups}


def _as_values(value: Any, site: Any) -> Any:
    return as_values(value, site) if site is not None and isinstance(value, Tensor) else value
