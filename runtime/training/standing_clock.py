"""Notice a training loop that changes the weights while the clock does not advance.

A loop without an optimizer of ``torch.optim`` (``p.data.add_(p.grad, alpha=-lr)``) runs no hook, so its sets would
never be chosen again, without a message. A write through ``.data`` leaves no mark on a tensor. So a few values are
compared between one training forward and the next, if there was a backward but no step between them. If steps are
counted, this
is rare: it happens only while gradients accumulate, after the first, second, fourth, eighth backward.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from topkast.runtime.state.content.family import Family
from topkast.runtime.state.content.fingerprint import fingerprint
from topkast.runtime.state.content.shards.shard import local
from topkast.runtime.state.site_module import SiteModule
from topkast.runtime.state.when import gradients

from .steps import under_way

# How many times in a row the values must have changed. Some programs change them for a moment and restore them
# (sharpness-aware steps by hand, adversarial weights), so the number is larger after the clock has advanced once.
OFTEN, OFTEN_AFTER_STEPS = 2, 5


@dataclass
class _Seen:
    """The values of a site as they were seen since its clock last advanced."""

    step: int
    gradients: int
    backwards: int = 0
    moved: int = 0
    print: tuple[tuple[object, ...], Tensor] | None = None
    stepped: bool = False


_seen: weakref.WeakKeyDictionary[SiteModule, _Seen] = weakref.WeakKeyDictionary()
_warnings: weakref.WeakKeyDictionary[Family, str] = weakref.WeakKeyDictionary()


@torch._disable_dynamo
@torch.no_grad()
def notice_standing(sites: Iterable[SiteModule]) -> None:
    """Before a forward that will be differentiated: warn, once per model, if its weights change but its clock does not.

    Args:
        sites: the sites of the model, or of the part that runs.
    """
    if torch._C._current_graph_task_id() != -1 or torch._C._are_functorch_transforms_active() or under_way():
        return
    for site in sites:
        if site.original.requires_grad and site.family not in _warnings and _moves(site):
            _warnings[site.family] = (
                f"{site.name} and other weights change after each backward, but no step is counted, so A and B are "
                "never chosen again: a loop without an optimizer of torch.optim calls topkast.step(model, lr=lr) "
                "after each update"
            )
            warnings.warn(f"topkast: {_warnings[site.family]}", stacklevel=2)


def standing_facts(sites: Iterable[SiteModule]) -> list[str]:
    """The texts of the warnings that were given, for the report."""
    return list({_warnings[site.family] for site in sites if site.family in _warnings})


def _moves(site: SiteModule) -> bool:
    """Whether the values of a site have changed often enough since its clock advanced."""
    count = gradients(site)
    seen = _seen.get(site)
    if seen is None or seen.step != site.step:
        _seen[site] = _Seen(site.step, count, stepped=seen is not None)
        return False
    if count == seen.gradients and seen.print is None:
        return False
    before, again = seen.print, count != seen.gradients
    seen.gradients, seen.backwards = count, seen.backwards + again
    # A second forward before the backward replaces the first: the values may have been edited between the two forwards.
    wanted = not again or not seen.backwards & (seen.backwards - 1)
    now = _print(site) if wanted or before is not None else None
    if again and before is not None and now is not None and before[0] == now[0]:
        seen.moved += not torch.equal(before[1], now[1])
    seen.print = now if wanted else None
    return seen.moved >= (OFTEN_AFTER_STEPS if seen.stepped else OFTEN)


def _print(site: SiteModule) -> tuple[tuple[object, ...], Tensor]:
    """(Facts that must be equal before two fingerprints are compared, a number that changes with the values)."""
    values = local(site.original.detach())
    found = fingerprint(values)
    assert found is not None
    return (site.changes, values.dtype, values.device), found
