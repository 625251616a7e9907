"""Functions that are called after a refresh."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from .content.family import Family
from .site import Site

# The hooks are kept beside the models, so that a copy or a pickle of a model does not carry the user's functions.
_hooks: weakref.WeakKeyDictionary[Family, OrderedDict[int, Callable[[nn.Module, list[str]], Any]]]
_hooks = weakref.WeakKeyDictionary()


def add_hook(family: Family, function: Callable[[nn.Module, list[str]], Any]) -> RemovableHandle:
    """Call ``function(model, names)`` after each refresh of a model's sites.

    Args:
        family: the mark of the model.
        function: gets the model and the names of the refreshed weights.
    """
    own = _hooks.setdefault(family, OrderedDict())
    handle = RemovableHandle(own)
    own[handle.id] = function
    return handle


def call_hooks(sites: Iterable[Site]) -> None:
    """Call the hooks of the models that these sites belong to, once for each model."""
    if not _hooks:
        return
    refreshed: dict[Family, list[str]] = {}
    for site in sites:
        if site.family in _hooks:
            refreshed.setdefault(site.family, []).append(site.name)
    for family, names in refreshed.items():
        root = None if family.root is None else family.root()
        if root is not None:
            for function in list(_hooks[family].values()):
                function(root, names)
