"""Find sites: by the key that a graph has, by the model that they belong to, by the module that owns them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn

from topkast.runtime import registry

from .family import Family
from .persist.state_dict import STATE
from .site import Site
from .site_module import SiteModule


class SparseState(nn.Module):
    """Holds a module's sites, by the names of their weights.

    A ``ModuleDict`` could not hold a weight that is called as one of its methods is (``values``, ``keys``).
    """


def joined(path: str, name: str) -> str:
    """A name below a module's path, which is empty for the root; with an empty name the prefix of all that is there."""
    return f"{path}.{name}" if path else name


def alive() -> list[SiteModule]:
    """All registered sites whose values a module holds. Another thread may register a site meanwhile."""
    return cast(Any, registry.all_alive())


def site_of(key: Tensor) -> SiteModule | None:
    """The site that a graph knows by this key; None if it is gone."""
    return cast(Any, registry.find(key))


def relatives(sites: Iterable[Site]) -> list[SiteModule]:
    """All sites of the models that these belong to."""
    return members(site.family for site in sites)


def members(families: Iterable[Family]) -> list[SiteModule]:
    """All sites that have one of these marks."""
    wanted = set(map(id, families))
    return [site for site in alive() if id(site.family) in wanted]


def sites_of(module: nn.Module) -> dict[str, SiteModule]:
    """A module's own sites by attribute: those whose values it holds."""
    every, held = all_sites_of(module), module._parameters.items()
    return {n: every[n] for n, v in held if n in every and v is not None and tuple(v.shape) == every[n].value_shape}


def all_sites_of(module: nn.Module) -> dict[str, SiteModule]:
    """The same with those whose values it does not hold now. (An exported program has modules of that name too.)"""
    state = module._modules.get(STATE)
    found: dict[str, Any] = {} if state is None else state._modules
    return {name: site for name, site in found.items() if hasattr(site, "value_shape")}
