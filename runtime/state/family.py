"""The sites of one model, found from any of them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from topkast.runtime import registry

if TYPE_CHECKING:
    from .site import Site


def alive() -> list[Site]:
    """All registered sites whose values a module holds. Another thread may register a site meanwhile."""
    return cast(Any, registry.all_alive())


def site_of(key: Tensor) -> Site | None:
    """The site that a graph knows by this key; None if it is gone."""
    return cast(Any, registry.find(key))


class Family:
    """Marks the sites of one model, which a forward of any part of it refreshes. A copy of the model has a copy of the
    mark.

    Args:
        root: the model; None: not known, as for a copy.
    """

    def __init__(self, root: nn.Module | None = None) -> None:
        self.root = None if root is None else weakref.ref(root)

    def __deepcopy__(self, memo: dict[int, Any]) -> Family:
        memo[id(self)] = twin = Family()
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        return Family, ()


def relatives(sites: Iterable[Site]) -> list[Site]:
    """All sites of the models that these belong to."""
    return members(site.family for site in sites)


def members(families: Iterable[Family]) -> list[Site]:
    """All sites that have one of these marks."""
    wanted = set(map(id, families))
    return [site for site in alive() if id(site.family) in wanted]
