"""Put a site in place of a parameter, for every module that owns it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from topkast.runtime.site import Site


def _deepcopy_graph_module(self: torch.fx.GraphModule, memo: dict[int, Any]) -> torch.fx.GraphModule:
    # GraphModule's own copy keeps only what its graph names; a site would be lost.
    import copy

    graph = copy.deepcopy(self.graph, memo)
    twin = self.__class__.__new__(self.__class__)
    memo[id(self)] = twin
    twin.__dict__ = copy.deepcopy({k: v for k, v in self.__dict__.items() if k != "_graph"}, memo)
    graph.owning_module = twin
    twin.__dict__["_graph"] = graph
    return twin


def _follow_flat_weights(module: nn.Module) -> None:
    """Let a recurrent module read its weights by name: its list of raw parameters would go stale."""

    def get(self: nn.Module) -> list[Any]:
        return [getattr(self, name, None) for name in self._flat_weights_names]  # type: ignore[union-attr]

    def ignore(self: nn.Module, value: Any) -> None:
        """What torch computes for this list is what ``get`` gives."""

    module.__dict__.pop("_flat_weights", None)
    module.__class__._flat_weights = property(get, ignore)  # type: ignore[assignment]


def attach(module: nn.Module, attribute: str, site: Site) -> None:
    """``module.attribute`` becomes what ``site`` gives; several modules may share one site.

    Args:
        module: an owner of the parameter.
        attribute: its name there.
        site: holds the parameter already.
    """
    del module._parameters[attribute]
    if not parametrize.is_parametrized(module):
        parametrize._inject_new_class(module)
        module.parametrizations = nn.ModuleDict()
        if isinstance(module, torch.fx.GraphModule):
            module.__class__.__deepcopy__ = _deepcopy_graph_module  # type: ignore[method-assign, assignment]
        if isinstance(module, nn.RNNBase):
            _follow_flat_weights(module)
    parametrize._inject_property(module, attribute)
    module.parametrizations[attribute] = site  # type: ignore[index, operator, assignment]
