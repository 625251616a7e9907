"""Notice a training loop that moves the weights while the clock stands.

A loop without an optimizer of ``torch.optim`` (``p.data.add_(p.grad, alpha=-lr)``) runs no hook, so its sets would
never be chosen again, without a word. A write through ``.data`` leaves no mark on a tensor: a few values are compared
from one training forward to the next, if a backward came between them and no step. Where steps are counted that is
rare: it happens only while gradients accumulate, after the first, second, fourth, eighth backward.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from topkast.runtime.state.fingerprint import fingerprint
from topkast.runtime.state.registry import Family
from topkast.runtime.state.site import Site

from .optimizer_hooks import gradients
from .steps import under_way

# How often values must have moved in a row. Some programs move them for a moment and take them back (sharpness-aware
# steps by hand, adversarial weights); so more is asked for once the clock has been seen to go.
OFTEN, OFTEN_AFTER_STEPS = 2, 5


@dataclass
class _Seen:
    """The values of a site as they were seen since its clock last moved."""

    step: int
    gradients: int
    backwards: int = 0
    moved: int = 0
    print: tuple[tuple[object, ...], Tensor] | None = None
    stepped: bool = False


_seen: weakref.WeakKeyDictionary[Site, _Seen] = weakref.WeakKeyDictionary()
_told: weakref.WeakKeyDictionary[Family, str] = weakref.WeakKeyDictionary()


@torch._dynamo.disable
@torch.no_grad()
def notice_standing(sites: Iterable[Site]) -> None:
    """A forward that will be differentiated begins: warn, once per model, if its weights move and its clock does not.

    Args:
        sites: those of the model, or of the part that runs.
    """
    if torch._C._current_graph_task_id() != -1 or torch._C._are_functorch_transforms_active() or under_way():
        return
    for site in sites:
        if site.original.requires_grad and site.family not in _told and _moves(site):
            _told[site.family] = (
                f"{site.name} and other weights change after each backward, but no step is counted, so A and B are "
                "never chosen again: a loop without an optimizer of torch.optim calls topkast.step(model, lr=lr) "
                "after each update"
            )
            warnings.warn(f"topkast: {_told[site.family]}", stacklevel=2)


def standing_facts(sites: Iterable[Site]) -> list[str]:
    """For the report: what was warned of."""
    return list({_told[site.family] for site in sites if site.family in _told})


def _moves(site: Site) -> bool:
    """Whether the values of a site have moved often enough since its clock did."""
    count = gradients(site)
    seen = _seen.get(site)
    if seen is None or seen.step != site.step:
        _seen[site] = _Seen(site.step, count, stepped=seen is not None)
        return False
    if count == seen.gradients and seen.print is None:
        return False
    before, again = seen.print, count != seen.gradients
    seen.gradients, seen.backwards = count, seen.backwards + again
    # A second forward before the backward stands in for the first: the values may have been edited between the two.
    wanted = not again or not seen.backwards & (seen.backwards - 1)
    now = _print(site) if wanted or before is not None else None
    if again and before is not None and now is not None and before[0] == now[0]:
        seen.moved += not torch.equal(before[1], now[1])
    seen.print = now if wanted else None
    return seen.moved >= (OFTEN_AFTER_STEPS if seen.stepped else OFTEN)


def _print(site: Site) -> tuple[tuple[object, ...], Tensor]:
    """(Facts that must agree for two to be compared, a number that changes with the values)."""
    values = site.original.detach()
    found = fingerprint(values)
    assert found is not None
    return (site.changes, values.dtype, values.device), found
