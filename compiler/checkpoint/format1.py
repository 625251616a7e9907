"""Read checkpoints of format 1. In format 1 a sparse weight had a name under ``parametrizations``, came after the other
parameters of its module, and its values were a vector.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from topkast.runtime.state.find_sites import alive, joined
from topkast.runtime.state.model import owned
from topkast.runtime.state.persist.saved_form import as_held
from topkast.runtime.state.persist.state_dict import keys
from topkast.runtime.state.persist.state_dict import upgrade as upgrade_site


def upgrade(root: nn.Module, state: dict[str, Any]) -> None:
    """Give the tensors of an older state dict of a model their current names and forms, in place."""
    for site, owners in owned(root).values():
        for path, attribute in owners:
            upgrade_site(state, joined(path, ""), attribute, site)


def upgrade_optimizer(root: nn.Module, packed: dict[str, Any], mine: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Convert the description of an optimizer from format 1 to the current format.

    Args:
        root: the model.
        packed: the file's description of its optimizer.
        mine: the description of the user's optimizer.

    Returns:
        (the description, for each group the positions of its parameters in the file). If the two optimizers do not hold
        the same parameters, there are no positions, and only the names in the description are converted.
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
    """The position in ``there`` of each name in ``here``; parameters without a name keep their order."""
    left = list(enumerate(there))
    found = []
    for name in here:
        at = next(i for i, (_, other) in enumerate(left) if other == name)
        found.append(left.pop(at)[0])
    return found


def in_order(content: dict[str, Any], places: list[list[int]], groups_of: list[list[nn.Parameter]]) -> dict[str, Any]:
    """Bring an optimizer's state dict of format 1 to the current order of parameters and the current shapes of values.

    Args:
        content: the state dict.
        places: the positions from :func:`upgrade_optimizer`.
        groups_of: the parameters of each group of the optimizer that loads the state dict.
    """
    state: dict[Any, Any] = {}
    groups, number = [], 0
    held = {id(site.original): site for site in alive()}
    for group, order, mine in zip(content["param_groups"], places, groups_of, strict=True):
        numbers = []
        for place, parameter in zip(order, mine, strict=True):
            old, site = group["params"][place], held.get(id(parameter))
            if old in content["state"]:
                entries = content["state"][old]
                state[number] = {name: _as_values(value, site) for name, value in entries.items()}
            numbers.append(number)
            number += 1
        groups.append({**group, "params": numbers})
    return {**content, "state": state, "param_groups": groups}


def _as_values(value: Any, site: Any) -> Any:
    return as_held(site, "values", value) if site is not None and isinstance(value, Tensor) else value
