"""The sites that are alive, and the products that ran for them.

A compiled graph identifies a site only by its ``key``, a tensor with one number. The number is data, so the graph is
the same for every site and every process, and compile caches stay valid.
"""

from __future__ import annotations

import itertools
import weakref
from collections import Counter
from typing import Protocol

import torch
from torch import Tensor

from .reference.dense_gradient import Rows


class Keyed(Protocol):
    """The part of a site that operators use."""

    name: str
    key: Tensor
    ran: Counter[tuple[str, str, str]]  # (product, kernel, reason) -> executions

    @property
    def attached(self) -> bool:
        """Whether a module holds the site's values."""

    @property
    def grows_by_gradient(self) -> str | None:
        """The name of the site's method, if the method needs dense gradients; None: the site gets no gradients."""

    def check_trainable(self, wanted: str) -> None:
        """Raise ModelError if the site was loaded for inference only."""

    def see_gradient(self, rows: Rows) -> None:
        """Give the rows of a dense gradient, computed in a backward, to the site."""


SITES: weakref.WeakValueDictionary[int, Keyed] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def new_key() -> Tensor:
    """A number that no other site has, in an int64 tensor of one element that stays on the CPU."""
    return torch.tensor(next(_numbers), device="cpu")  # the default device may be another


def register(site: Keyed) -> None:
    """Register a complete site, so that graphs and optimizers can find it."""
    SITES[int(site.key)] = site


def unregister(site: Keyed) -> None:
    """Remove a site from the registry."""
    SITES.pop(int(site.key), None)


def find(key: Tensor) -> Keyed | None:
    """The site with this key; None if the site no longer exists."""
    return SITES.get(int(key))


def all_alive() -> list[Keyed]:
    """All registered sites whose values are held by a module. Another thread may register a site at the same time."""
    found = (reference() for reference in SITES.valuerefs())  # one call makes the list; SITES.values() can fail
    return [site for site in found if site is not None and site.attached]


def count_run(key: Tensor, product: str, kernel: str, why: str = "") -> None:
    """Count one execution of a product for the report."""
    site = SITES.get(int(key))
    if site is not None:
        site.ran[product, kernel, why] += 1
