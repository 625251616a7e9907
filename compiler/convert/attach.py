"""Put a site in the place of a parameter, in every module that owns the parameter."""

from __future__ import annotations

import contextlib
import copy
import functools
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from topkast.runtime.errors import ModelError
from topkast.runtime.state.find_sites import SparseState, all_sites_of, sites_of
from topkast.runtime.state.guarded_weight import REPLACE
from topkast.runtime.state.persist.state_dict import STATE, keys, upgrade
from topkast.runtime.state.site_module import SiteModule
from topkast.runtime.training.optimizer_hooks import install_hooks
from topkast.runtime.training.sharded.refused import keep_whole

from .shared_class import inherited, is_foreign, share_class


def copy_module(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Copy a module that owns a site.

    torch's own copy would share the original's compiled code. GraphModule's copy keeps only what its graph names, and
    would lose the site.
    """
    kind: Any = self.__class__
    if is_foreign(self):  # otherwise torch deletes properties from this class when it removes a parametrization
        kind = type(kind)(kind.__name__, kind.__bases__, inherited(kind))
    twin = kind.__new__(kind)
    memo[id(self)] = twin
    twin.__dict__ = copy.deepcopy(
        {k: v for k, v in self.__dict__.items() if k not in ("_compiled_call_impl", "_graph")}, memo
    )
    if isinstance(self, torch.fx.GraphModule):
        graph = copy.deepcopy(self.graph, memo)
        graph.owning_module = twin
        twin.__dict__["_graph"] = graph
    for site in sites_of(twin).values():
        if site.owner is None:  # the site is a copy too
            site.bind(twin)
    return twin


def _follow_flat_weights(kind: Any) -> None:
    """Let a recurrent class read its weights by name, because its list of raw parameters would be out of date."""

    def get(self: nn.Module) -> list[Any]:
        return [getattr(self, name) for name in self._flat_weights_names]  # type: ignore[union-attr]

    def ignore(self: nn.Module, value: Any) -> None:
        """Ignore torch's assignment to the list; ``get`` always computes the list."""

    kind._flat_weights = property(get, ignore)
    # No stored list needs an update. torch's check of the list would make every W_A an output of the graph.
    kind._update_flat_weights = kind._init_flat_weights = lambda self: None
    # Dynamo remembers by a function's code that plain recurrent layers run in Python. New code has no such record.
    given = kind.forward
    own = types.FunctionType(given.__code__.replace(), given.__globals__, given.__name__, None, given.__closure__)
    own.__defaults__, own.__kwdefaults__ = given.__defaults__, given.__kwdefaults__
    kind.forward = functools.update_wrapper(own, given)


@contextlib.contextmanager
def _unseen(module: nn.Module) -> Iterator[dict[str, SiteModule]]:
    """A module's sites by attribute. A read inside the ``with`` is no forward: it neither refreshes nor is counted."""
    found = sites_of(module)
    with contextlib.ExitStack() as stack:
        for site in found.values():
            stack.enter_context(site.uncounted())
        yield found


def _state_with_values(kind: Any) -> None:
    """Let a class save and load values and sets together. The class's own code gets W_A if it reads ``self.weight``."""

    @torch.no_grad()
    def state_dict(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with _unseen(self) as sites:
            found = super(kind, self).state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        keep_vars = kwargs.get("keep_vars", args[2] if len(args) > 2 else False)
        for name, site in sites.items():
            found[prefix + name] = site.original if keep_vars else site.original.detach()
        return found

    @torch.no_grad()
    def load(self: nn.Module, state: Any, prefix: str, local: Any, strict: bool, missing: Any, *rest: Any) -> None:
        with _unseen(self) as sites:
            for name, site in sites.items():
                upgrade(state, prefix, name, site)
                assign = local.get("assign_to_params_buffers", False)
                site.load(state, keys(prefix, name), missing, rest[-1], assign)
            own = {prefix + name for name in sites}
            others = {key: value for key, value in state.items() if key not in own}
            absent: list[str] = []
            super(kind, self)._load_from_state_dict(others, prefix, local, strict, absent, *rest)
        missing += [key for key in absent if key not in own]

    kind.state_dict, kind._load_from_state_dict = state_dict, load


def _accept_new_tensors(kind: Any) -> None:
    """Allow ``to``, ``half`` and similar methods to replace tensors by new ones."""

    def apply(self: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
        super(kind, self)._apply(fn, recurse)
        for site in sites_of(self).values():
            site.accept()
        return self

    kind._apply = apply


def _refuse_new_values(kind: Any) -> None:
    """Make ``reset_parameters`` an error, because it would write into W_A."""

    def reset_parameters(self: nn.Module) -> None:
        names = ", ".join(f"{kind.__bases__[0].__name__}.{name}" for name in sites_of(self))
        raise ModelError(
            f"reset_parameters: {names} is sparse; initialise the model before topkast.compile, or load new values "
            f"with {REPLACE}"
        )

    if hasattr(kind, "reset_parameters"):
        kind.reset_parameters = reset_parameters


def attach(module: nn.Module, attribute: str, site: SiteModule) -> None:
    """Make ``module.attribute`` read W_A from ``site``; several modules may share one site.

    Args:
        module: an owner of the parameter.
        attribute: the parameter's name in the module.
        site: has adopted the parameter already.
    """
    module.__dict__.pop("_flat_weights", None)  # only a recurrent module has this list: see _follow_flat_weights
    if STATE not in module._modules:
        module._modules[STATE] = SparseState()
    found: Any = module._modules[STATE]._modules  # type: ignore[union-attr]
    if attribute in found:
        return  # a module with several names in the model is attached once for each name
    found[attribute] = site
    site.owners.add(module)
    share_class(module, frozenset(found), complete)


def detach(module: nn.Module, attribute: str) -> None:
    """Make ``module.attribute`` the module's plain parameter again."""
    found: Any = module._modules[STATE]._modules  # type: ignore[union-attr]
    del found[attribute]
    if not found:
        del module._modules[STATE]
    share_class(module, frozenset(found), complete)
    if not found and isinstance(module, nn.RNNBase):  # rebuild its list of raw parameters
        module._flat_weights = [module._parameters.get(name) for name in module._flat_weights_names]


def complete(kind: Any) -> None:
    """Give a class of modules with sites everything except the reading of weights: copying, saving, ``to``."""
    base = kind.__bases__[0]
    if getattr(base, "__deepcopy__", None) is None or issubclass(base, torch.fx.GraphModule):
        kind.__deepcopy__ = copy_module
    if issubclass(base, nn.RNNBase):
        _follow_flat_weights(kind)
    _state_with_values(kind)
    _accept_new_tensors(kind)
    _refuse_new_values(kind)
    keep_whole(kind)
    # The hooks are installed here, because a pickled model can be loaded in a process that has converted no model.
    install_hooks()
    if _on_parameter not in torch_module._global_parameter_registration_hooks.values():
        torch_module.register_module_parameter_registration_hook(_on_parameter)


def _on_parameter(module: nn.Module, attribute: str, parameter: nn.Parameter) -> None:
    """The hook for ``module.attribute = parameter``. A dense parameter becomes the module's weight."""
    site = all_sites_of(module).get(attribute)
    if site is None:
        return
    if tuple(parameter.shape) == site.value_shape:
        site.accept(parameter)
    else:
        detach(module, attribute)


keep_whole(SiteModule)
