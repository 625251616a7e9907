"""Find sites: by the key in a graph, by the model that they belong to, or by the module that owns them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn

from topkast.runtime import registry
from topkast.runtime.state.content.family import Family

from .persist.state_dict import STATE
from .site import Site
from .site_module import SiteModule


class SparseState(nn.Module):
    """Holds a module's sites under the names of their weights.

    A ``ModuleDict`` cannot hold a weight whose name is also the name of its methods (``values``, ``keys``).
    """


def joined(path: str, name: str) -> str:
    """A name below a module's path (empty for the root). With an empty name: the prefix of all names below the path."""
    return f"{path}.{name}" if path else name


def alive() -> list[SiteModule]:
    """All registered sites whose values are held by a module. Another thread may register a site at the same time."""
    return cast(Any, registry.all_alive())


def site_of(key: Tensor) -> SiteModule | None:
    """The site with this key in a graph; None if the site no longer exists."""
    return cast(Any, registry.find(key))


def relatives(sites: Iterable[Site]) -> list[SiteModule]:
    """All sites of the models that the given sites belong to."""
    return members(site.family for site in sites)


def members(families: Iterable[Family]) -> list[SiteModule]:
    """All sites that have one of the given marks."""
    wanted = set(map(id, families))
    return [site for site in alive() if id(site.family) in wanted]


def sites_of(module: nn.Module) -> dict[str, SiteModule]:
    """A module's own sites by attribute, if the module holds their values."""
    every, held = all_sites_of(module), module._parameters.items()
    return {n: every[n] for n, v in held if n in every and v is not None and tuple(v.shape) == every[n].value_shape}


def all_sites_of(module: nn.Module) -> dict[str, SiteModule]:
    """All of a module's sites, also if it does not hold their values now. (Exported programs use the name too.)"""
    state = module._modules.get(STATE)
    found: dict[str, Any] = {} if state is None else state._modules
    return {name: site for name, site in found.items() if hasattr(site, "value_shape")}
