"""Try out optimizers that train sparse values, once per class and settings.

B's values have another order and another shape than the weights of the dense model. So an optimizer must treat each
weight separately, or treat all weights alike. A weight that enters B gets the state that the optimizer would give to a
new parameter.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from topkast.runtime.errors import OptimizerError

from .sandbox import group_of
from .trials import Probe, Start, tried

INSTEAD = "use an elementwise optimizer: SGD, Adam, AdamW, NAdam, RMSprop, Adagrad, Rprop, ..."

_probes: weakref.WeakKeyDictionary[type, dict[tuple[Any, ...], Probe]] = weakref.WeakKeyDictionary()
_found: weakref.WeakKeyDictionary[Optimizer, WeakIdKeyDictionary] = weakref.WeakKeyDictionary()  # parameter -> Probe
_elsewhere: weakref.WeakKeyDictionary[Optimizer, dict[str, Start]] = weakref.WeakKeyDictionary()
_warned: weakref.WeakSet[type] = weakref.WeakSet()


def check_probed(optimizer: Optimizer, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Refuse an optimizer that cannot train sparse values, before the optimizer has changed anything.

    Args:
        parameters: (name, values) of the sparse weights that the optimizer is about to update.

    Raises:
        OptimizerError: the message names the optimizer, the weights and an alternative.
    """
    new = [(name, values) for name, values in parameters if values not in _found.get(optimizer, ())]
    found = [(name, _of(optimizer, values)) for name, values in new]
    refused = [(name, one.refused) for name, one in found if one.refused is not None]
    kind = type(optimizer)
    if refused:
        for _, values in new:
            _found[optimizer].pop(values)  # the next call refuses again
        names = ", ".join(name for name, _ in refused[:3]) + (", ..." if len(refused) > 3 else "")
        raise OptimizerError(
            f"{kind.__name__} {refused[0][1]}, so it cannot train sparse weights ({names}), whose values lie in an "
            f"order of their own; {INSTEAD}; {kind.__name__} may train dense parameters beside it"
        )
    failed = next((one.failed for _, one in found if one.failed is not None), None)
    if failed is not None and kind not in _warned:
        _warned.add(kind)
        warnings.warn(
            f"topkast: {kind.__name__} could not be tried out on small tensors ({failed}); it is taken for an "
            "elementwise optimizer whose state starts at zero",
            stacklevel=2,
        )


def start(optimizer: Optimizer, parameter: nn.Parameter, entry: str) -> float | None:
    """The number that the optimizer's state starts with for a new weight; None: the weight's value."""
    found = _of(optimizer, parameter)
    first = found.starts.get(entry) or _from_elsewhere(optimizer, parameter, entry)
    if first.value:
        return None
    if first.per_rate == 0:
        return first.constant
    return first.constant + first.per_rate * float(group_of(optimizer, parameter)["lr"])


def _of(optimizer: Optimizer, parameter: nn.Parameter) -> Probe:
    # Keep the result: counts among the settings change with every step.
    if optimizer not in _found:
        _found[optimizer] = WeakIdKeyDictionary()
    mine = _found[optimizer]
    if parameter not in mine:
        mine[parameter] = probe(optimizer, parameter)
    return mine[parameter]


def _from_elsewhere(optimizer: Optimizer, parameter: nn.Parameter, entry: str) -> Start:
    """The start of an entry that no step of the optimizer makes: its constructor or an outer optimizer makes it."""
    known = _elsewhere.setdefault(optimizer, {})
    if entry in known:
        return known[entry]
    around = [
        one
        for one in gc.get_objects()
        if issubclass(type(one), Optimizer) and any(value is optimizer for value in vars(one).values())
    ]
    for one, rebuild in [(optimizer, True), *((one, rebuild) for one in around for rebuild in (False, True))]:
        starts = tried(one, parameter, [entry], (rebuild,)).starts
        if entry in starts:
            return known.setdefault(entry, starts[entry])
    return known.setdefault(entry, Start())


def probe(optimizer: Optimizer, parameter: nn.Parameter) -> Probe:
    """The findings for an optimizer with the settings of one of its parameters."""
    probes, key = _probes.setdefault(type(optimizer), {}), _settings(optimizer, parameter)
    if key not in probes:
        probes[key] = tried(optimizer, parameter)
    return probes[key]


def _settings(optimizer: Optimizer, parameter: nn.Parameter) -> tuple[Any, ...]:
    """The settings that distinguish two optimizers of a class. A learning rate or a count of steps does not count."""
    found: list[Any] = [type(optimizer)]
    for source in (group_of(optimizer, parameter), vars(optimizer)):
        for name, value in sorted(source.items()):
            if isinstance(value, Optimizer) and value is not optimizer:
                found.append(_settings(value, parameter))
            elif name not in ("lr", "initial_lr", "params") and _plain(value):
                found.append((name, value))
    return tuple(found)


def _plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
