"""The way back: a plain model of the original classes that holds W_A."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from topkast.runtime.reference import weight
from topkast.runtime.site import Site
from topkast.runtime.state import Record, find, sites

from .attach import copy_module
from .sparsify import refresh_before_forward


def densify(model: Any) -> nn.Module:
    """A plain copy of the original architecture that holds W_A.

    No hook, record or parametrization of topkast is left in it, its modules have their own classes again, tied weights
    are one Parameter again and ``parameters()`` has its original order; modes and ``requires_grad`` stay. It is not
    compiled. The model itself is not touched. Tensors that a module keeps of its last forward are copied without their
    graph.

    Args:
        model: a model converted by topkast, or a wrapper of it (what is wrapped is copied).

    Raises:
        ModelError: the model was not converted.
    """
    root, record = find(model)
    found = sites(model)
    # Sites are not copied: whatever the copy would hold of one is replaced below.
    memo: dict[int, Any] = {id(site): _Gone() for site in found.values()}
    memo[id(record)] = record
    # What a model keeps of its last forward (the states of a recurrence) has a graph, which no copy can have.
    kept = [value for module in root.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    memo |= {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf}
    # A GraphModule's own copy keeps only what its graph names, and reads it through the parametrization. From the
    # innermost outwards, because each copies what it contains.
    for module in reversed(list(root.modules())):
        if isinstance(module, torch.fx.GraphModule) and id(module) not in memo:
            copy_module(module, memo)
    twin = copy.deepcopy(root, memo)
    del twin.__dict__["_topkast"]
    for key, hook in list(twin._forward_pre_hooks.items()):
        if hook is refresh_before_forward:
            del twin._forward_pre_hooks[key]
    for module in twin.modules():
        module.__dict__.pop("_compiled_call_impl", None)
    _restore(twin, record, found)
    for module in twin.modules():
        if isinstance(module, torch.fx.GraphModule):
            _own_class(module)
    return twin


class _Gone(nn.Module):
    """Stands for a site in a copy until its weight is put there."""


def _restore(twin: nn.Module, record: Record, found: dict[str, Site]) -> None:
    plain = {}
    for name, site in found.items():
        dense = weight(site.original.detach(), site.index, site.geometry)
        plain[name] = nn.Parameter(dense, requires_grad=site.original.requires_grad)
    owned: dict[str, dict[str, nn.Parameter]] = {}
    for name, owners in record.sites.items():
        for path, attribute in owners:
            owned.setdefault(path, {})[attribute] = plain[name]
    for path, weights in owned.items():
        module = twin.get_submodule(path)
        _unparametrize(module, weights)
        order = record.order.get(path, [])
        rank = {name: i for i, name in enumerate(order)}
        module._parameters = dict(sorted(module._parameters.items(), key=lambda item: rank.get(item[0], len(order))))
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()


def _unparametrize(module: nn.Module, weights: dict[str, nn.Parameter]) -> None:
    """Give the module its class back, and the weights as ordinary parameters.

    The copy shares the class that parametrize made with the original module, so that class itself must not change.
    """
    if not any(parametrize.is_parametrized(module, name) for name in weights):
        return  # a module under two paths, done already
    left = {name: chain for name, chain in module.parametrizations.items() if name not in weights}  # type: ignore[union-attr, operator]
    made = next(cls for cls in type(module).__mro__ if any(name in cls.__dict__ for name in weights))
    module.__class__ = made.__bases__[0]
    if left:
        # Parametrizations that are not ours stay, in a class of this module's own.
        parametrize._inject_new_class(module)
        for name in left:
            parametrize._inject_property(module, name)
        for name in weights:
            del module.parametrizations[name]  # type: ignore[union-attr, operator]
    else:
        del module._modules["parametrizations"]
    module._parameters.update(weights)


def _own_class(module: torch.fx.GraphModule) -> None:
    """Each GraphModule has a class of its own, into which its graph's ``forward`` is written."""
    base = next(cls for cls in type(module).__mro__ if cls.__qualname__.split(".")[-1] != "GraphModuleImpl")
    module.__class__ = type("GraphModuleImpl", (base,), {})
    module.recompile()
