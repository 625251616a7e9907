"""Optimizers that train sparse values are tried out, once per class and settings.

B's values lie in another order than the weights of the dense model, and in another shape. So an optimizer must treat
each by itself, or all alike; and a weight that enters B gets what the optimizer would give to a new parameter.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from topkast.runtime.errors import OptimizerError

from .sandbox import group_of
from .trials import Probe, Start, tried

if TYPE_CHECKING:
    from topkast.runtime.state.site import Site

INSTEAD = "use an elementwise optimizer: SGD, Adam, AdamW, NAdam, RMSprop, Adagrad, Rprop, ..."

_known: weakref.WeakKeyDictionary[type, dict[tuple[Any, ...], Probe]] = weakref.WeakKeyDictionary()
_found: weakref.WeakKeyDictionary[Optimizer, weakref.WeakKeyDictionary[Site, Probe]] = weakref.WeakKeyDictionary()
_elsewhere: weakref.WeakKeyDictionary[Optimizer, dict[str, Start]] = weakref.WeakKeyDictionary()
_told: weakref.WeakSet[type] = weakref.WeakSet()


def check_probed(optimizer: Optimizer, sites: Iterable[Site]) -> None:
    """Refuse an optimizer that cannot train sparse values, before it has moved anything.

    Args:
        sites: those that it is about to update.

    Raises:
        OptimizerError: names the optimizer, the weights and what to use instead.
    """
    new = [site for site in sites if site not in _found.get(optimizer, ())]
    found = [(site.name, _of(optimizer, site)) for site in new]
    refused = [(name, one.refused) for name, one in found if one.refused is not None]
    kind = type(optimizer)
    if refused:
        for site in new:
            _found[optimizer].pop(site)  # refused each time
        names = ", ".join(name for name, _ in refused[:3]) + (", ..." if len(refused) > 3 else "")
        raise OptimizerError(
            f"{kind.__name__} {refused[0][1]}, so it cannot train sparse weights ({names}), whose values lie in an "
            f"order of their own; {INSTEAD}; {kind.__name__} may train dense parameters beside it"
        )
    failed = next((one.failed for _, one in found if one.failed is not None), None)
    if failed is not None and kind not in _told:
        _told.add(kind)
        warnings.warn(
            f"topkast: {kind.__name__} could not be tried out on small tensors ({failed}); it is taken for an "
            "elementwise optimizer whose state starts at zero",
            stacklevel=2,
        )


def start(optimizer: Optimizer, site: Site, entry: str) -> float | None:
    """The number that the optimizer's state begins with for a new weight; None: it begins with the weight's value."""
    found = _of(optimizer, site)
    first = found.starts.get(entry) or _from_elsewhere(optimizer, site, entry)
    if first.value:
        return None
    if first.per_rate == 0:
        return first.constant
    return first.constant + first.per_rate * float(group_of(optimizer, site.original)["lr"])


def _of(optimizer: Optimizer, site: Site) -> Probe:
    # Kept: counts among the settings change with every step.
    if optimizer not in _found:
        _found[optimizer] = weakref.WeakKeyDictionary()
    mine = _found[optimizer]
    if site not in mine:
        mine[site] = probe(optimizer, site.original)
    return mine[site]


def _from_elsewhere(optimizer: Optimizer, site: Site, entry: str) -> Start:
    """How an entry starts that no step of the optimizer makes: its constructor does, or an optimizer around it."""
    known = _elsewhere.setdefault(optimizer, {})
    if entry in known:
        return known[entry]
    around = [
        one
        for one in gc.get_objects()
        if issubclass(type(one), Optimizer) and any(value is optimizer for value in vars(one).values())
    ]
    for one, rebuild in [(optimizer, True), *((one, rebuild) for one in around for rebuild in (False, True))]:
        starts = tried(one, site.original, [entry], (rebuild,)).starts
        if entry in starts:
            return known.setdefault(entry, starts[entry])
    return known.setdefault(entry, Start())


def probe(optimizer: Optimizer, parameter: nn.Parameter) -> Probe:
    """The findings for an optimizer with the settings that it has for one of its parameters."""
    known, key = _known.setdefault(type(optimizer), {}), _settings(optimizer, parameter)
    if key not in known:
        known[key] = tried(optimizer, parameter)
    return known[key]


def _settings(optimizer: Optimizer, parameter: nn.Parameter) -> tuple[Any, ...]:
    """The settings by which two optimizers of a class are told apart; a learning rate and a count of steps are none."""
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
