"""Which sites are alive, and what ran for them.

A compiled graph knows a site only by its ``key``, a tensor with one number in it: the number is data, so the graph is
the same for every site and every process, and compile caches stay valid.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .state import Site

SITES: weakref.WeakValueDictionary[int, Site] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def enrol(site: Site) -> Tensor:
    """Give a site a number of its own; the int64 tensor of one element that holds it stays on the CPU."""
    number = next(_numbers)
    SITES[number] = site
    return torch.tensor(number, device="cpu")  # whatever the default device is


class Family:
    """Marks the sites of one model, which a forward of any part of it refreshes. A copy of the model has a copy of the
    mark."""


def relatives(sites: Iterable[Site]) -> list[Site]:
    """All sites of the models that these are of."""
    families = {id(site.family) for site in sites}
    return [site for site in list(SITES.values()) if id(site.family) in families]


def note(key: Tensor, product: str, kernel: str, why: str = "") -> None:
    """Count one execution of a product for the report."""
    site = SITES.get(int(key))
    if site is not None:
        site.ran[product, kernel, why] += 1
