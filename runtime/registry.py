"""Which sites are alive, and what ran for them.

A compiled graph knows a site only by its ``key``, a tensor with one number in it: the number is data, so the graph is
the same for every site and every process, and compile caches stay valid.
"""

from __future__ import annotations

import itertools
import weakref
from collections import Counter
from typing import Protocol

import torch
from torch import Tensor

from .layout import Geometry
from .reference.dense_gradient import Rows


class Keyed(Protocol):
    """What operators and the planner know of a site."""

    name: str
    key: Tensor
    geometry: Geometry
    n_fwd: int
    n_bwd: int
    ran: Counter[tuple[str, str, str]]  # (product, kernel, reason) -> executions

    @property
    def attached(self) -> bool:
        """Whether a module holds its values."""

    @property
    def grows_by_gradient(self) -> str | None:
        """The name of its method, if that method must see dense gradients; None: no gradient is shown to it."""

    def see_gradient(self, rows: Rows) -> None:
        """A product of a backward has the dense gradient."""


SITES: weakref.WeakValueDictionary[int, Keyed] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def new_key() -> Tensor:
    """A number that no other site has, in an int64 tensor of one element that stays on the CPU."""
    return torch.tensor(next(_numbers), device="cpu")  # whatever the default device is


def register(site: Keyed) -> None:
    """Make a whole site known to graphs and optimizers."""
    SITES[int(site.key)] = site


def unregister(site: Keyed) -> None:
    """Make it unknown again."""
    SITES.pop(int(site.key), None)


def find(key: Tensor) -> Keyed | None:
    """The site of a key; None if it is gone."""
    return SITES.get(int(key))


def all_alive() -> list[Keyed]:
    """All registered sites whose values a module holds. Another thread may register a site meanwhile."""
    found = (reference() for reference in SITES.valuerefs())  # one call makes the list; SITES.values() can fail
    return [site for site in found if site is not None and site.attached]


def count_run(key: Tensor, product: str, kernel: str, why: str = "") -> None:
    """Count one execution of a product for the report."""
    site = SITES.get(int(key))
    if site is not None:
        site.ran[product, kernel, why] += 1
