"""Put a site in place of a parameter, for every module that owns it."""

from __future__ import annotations

import contextlib
import copy
import functools
import types
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from topkast.runtime.refused import keep_whole
from topkast.runtime.site import Site

from .shared_class import share_class, shares_class


def copy_module(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """How a module that owns a site is copied.

    parametrize's own way would give the copy the original's compiled code, and GraphModule's keeps only what its graph
    names, so that a site would be lost.
    """
    twin = self.__class__.__new__(self.__class__)
    memo[id(self)] = twin
    twin.__dict__ = copy.deepcopy(
        {k: v for k, v in self.__dict__.items() if k not in ("_compiled_call_impl", "_graph")}, memo
    )
    if isinstance(self, torch.fx.GraphModule):
        graph = copy.deepcopy(self.graph, memo)
        graph.owning_module = twin  # type: ignore[assignment]
        twin.__dict__["_graph"] = graph
    return twin


def _follow_flat_weights(kind: Any) -> None:
    """Let a recurrent class read its weights by name: its list of raw parameters would go stale."""

    def get(self: nn.Module) -> list[Any]:
        return [getattr(self, name) for name in self._flat_weights_names]  # type: ignore[union-attr]

    def ignore(self: nn.Module, value: Any) -> None:
        """What torch computes for this list is what ``get`` gives."""

    kind._flat_weights = property(get, ignore)
    # There is no list to keep up to date; looking whether it is would put every W_A into the graph as an output.
    kind._update_flat_weights = kind._init_flat_weights = lambda self: None
    # Dynamo remembers for a function's code that it leaves recurrent layers to Python, as it does for plain ones.
    given = kind.forward
    own = types.FunctionType(given.__code__.replace(), given.__globals__, given.__name__, None, given.__closure__)
    own.__defaults__, own.__kwdefaults__ = given.__defaults__, given.__kwdefaults__
    kind.forward = functools.update_wrapper(own, given)


@contextlib.contextmanager
def _unseen(module: nn.Module) -> Iterator[dict[str, Site]]:
    """A module's sites by attribute. Reading them inside neither refreshes, as it is no forward, nor is counted."""
    chains: Any = module.parametrizations
    sites = {name: site for name, site in chains.items() if isinstance(site, Site)}
    counted = {name: Counter(site.ran) for name, site in sites.items()}
    try:
        yield sites
    finally:
        for name, site in sites.items():
            site.ran = counted[name]


def _leave_state_to_sites(kind: Any) -> None:
    """Code of a class that saves and loads ``self.weight`` itself leaves that to the site."""

    @torch.no_grad()
    def state_dict(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _unseen(self) as sites:
            found = super(kind, self).state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        for name in sites:
            found.pop(prefix + name, None)
        return found

    @torch.no_grad()
    def load(self: nn.Module, state: Any, prefix: str, version: Any, strict: bool, missing: Any, *rest: Any) -> None:
        with _unseen(self) as sites:
            super(kind, self)._load_from_state_dict(state, prefix, version, strict, missing, *rest)
        missing[:] = [key for key in missing if key not in {prefix + name for name in sites}]

    kind.state_dict, kind._load_from_state_dict = state_dict, load


def attach(module: nn.Module, attribute: str, site: Site) -> None:
    """``module.attribute`` becomes what ``site`` gives; several modules may share one site.

    Args:
        module: an owner of the parameter.
        attribute: its name there.
        site: holds the parameter already.
    """
    if attribute not in module._parameters:
        return  # a module that has several names in the model comes once for each
    del module._parameters[attribute]
    module.__dict__.pop("_flat_weights", None)  # of a recurrent module: see _follow_flat_weights
    parametrized = parametrize.is_parametrized(module)
    if not parametrized:
        module.parametrizations = nn.ModuleDict()
    if shares_class(module) or not (parametrized or isinstance(module, torch.fx.GraphModule)):
        share_class(module, attribute, _complete)
    else:
        # Others' parametrizations, or a graph that is its class's forward: the class is this module's own.
        if not parametrized:
            parametrize._inject_new_class(module)
        if "state_dict" not in vars(type(module)):
            _complete(module)
        parametrize._inject_property(module, attribute)
    module.parametrizations[attribute] = site  # type: ignore[index, operator, assignment]


def _complete(module: nn.Module) -> None:
    """What the class of a module with sites must do besides reading them."""
    kind: Any = type(module)
    if getattr(kind.__bases__[0], "__deepcopy__", None) is None or isinstance(module, torch.fx.GraphModule):
        kind.__deepcopy__ = copy_module
    if isinstance(module, nn.RNNBase):
        _follow_flat_weights(kind)
    _leave_state_to_sites(kind)
    keep_whole(kind)
