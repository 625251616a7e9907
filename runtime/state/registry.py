"""Which sites are alive, and what ran for them.

A compiled graph knows a site only by its ``key``, a tensor with one number in it: the number is data, so the graph is
the same for every site and every process, and compile caches stay valid.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .model import Site

SITES: weakref.WeakValueDictionary[int, Site] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def new_key() -> Tensor:
    """A number that no other site has, in an int64 tensor of one element that stays on the CPU."""
    return torch.tensor(next(_numbers), device="cpu")  # whatever the default device is


def enrol(site: Site) -> None:
    """Make a whole site known to graphs and optimizers."""
    SITES[int(site.key)] = site


def strike(site: Site) -> None:
    """Make it unknown again."""
    SITES.pop(int(site.key), None)


def alive() -> list[Site]:
    """All sites that are known and whose values a module holds. Another thread may enrol one meanwhile."""
    found = (reference() for reference in SITES.valuerefs())  # one call makes the list; SITES.values() can fail
    return [site for site in found if site is not None and site.attached]


class Family:
    """Marks the sites of one model, which a forward of any part of it refreshes. A copy of the model has a copy of the
    mark.

    Args:
        root: the model; None: not known, as of a copy.
    """

    def __init__(self, root: nn.Module | None = None) -> None:
        self.root = None if root is None else weakref.ref(root)

    def __deepcopy__(self, memo: dict[int, Any]) -> Family:
        memo[id(self)] = twin = Family()
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        return Family, ()


def relatives(sites: Iterable[Site]) -> list[Site]:
    """All sites of the models that these are of."""
    return members(site.family for site in sites)


def members(families: Iterable[Family]) -> list[Site]:
    """All sites that have one of these marks."""
    wanted = set(map(id, families))
    return [site for site in alive() if id(site.family) in wanted]


def note(key: Tensor, product: str, kernel: str, why: str = "") -> None:
    """Count one execution of a product for the report."""
    site = SITES.get(int(key))
    if site is not None:
        site.ran[product, kernel, why] += 1
