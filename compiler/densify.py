"""The way back: a plain model of the original classes that holds W_A."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from topkast.compiler.convert.attach import copy_module, detach
from topkast.compiler.convert.sparsify import refresh_before_forward
from topkast.runtime.reference.products import weight
from topkast.runtime.state.copies import settle
from topkast.runtime.state.model import find, owned
from topkast.runtime.state.saved import STATE, refuse_dense
from topkast.runtime.state.site import Site


def densify(model: Any) -> nn.Module:
    """A plain copy of the original architecture that holds W_A.

    No hook, record or site of topkast is left in it, its modules have their own classes again, tied weights
    are one Parameter again and ``parameters()`` has its original order; modes and ``requires_grad`` stay. It is not
    compiled. The model itself is not touched. Tensors that a module keeps of its last forward are copied without their
    graph.

    Args:
        model: a model converted by topkast, or a wrapper of it (what is wrapped is copied).

    Raises:
        ModelError: the model was not converted.
    """
    root, record = find(model)
    found = owned(model)
    settle(site for site, _ in found.values())
    # Sites and their values are not copied: whatever the copy would hold of them is replaced below.
    memo: dict[int, Any] = {id(site): site for site, _ in found.values()}
    memo |= {id(site.original): site.original for site, _ in found.values()}
    memo[id(record)] = record
    # What a model keeps of its last forward (the states of a recurrence) has a graph, which no copy can have.
    kept = [value for module in root.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    memo |= {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf}
    # A GraphModule's own copy keeps only what its graph names, and reads what it names as sparse. From the
    # innermost outwards, because each copies what it contains.
    for module in reversed(list(root.modules())):
        if isinstance(module, torch.fx.GraphModule) and id(module) not in memo:
            copy_module(module, memo)
    twin = copy.deepcopy(root, memo)
    del twin.__dict__["_topkast"]
    for key, hook in list(twin._forward_pre_hooks.items()):
        if hook is refresh_before_forward:
            del twin._forward_pre_hooks[key]
    for key, wrapped in list(twin._load_state_dict_pre_hooks.items()):
        if getattr(wrapped, "hook", None) is refuse_dense:
            del twin._load_state_dict_pre_hooks[key]
    for module in twin.modules():
        module.__dict__.pop("_compiled_call_impl", None)
    _restore(twin, found)
    for module in twin.modules():
        if isinstance(module, torch.fx.GraphModule):
            _own_class(module)
    return twin


def _restore(twin: nn.Module, found: Mapping[str, tuple[Site, list[tuple[str, str]]]]) -> None:
    for site, owners in found.values():
        dense = weight(site.values, site.index, site.geometry)
        plain = nn.Parameter(dense, requires_grad=site.original.requires_grad)
        for path, attribute in owners:
            module = twin.get_submodule(path)
            if STATE in module._modules:  # a module under two paths is done already
                module._parameters[attribute] = plain
    for module in [module for module in twin.modules() if STATE in module._modules]:
        for attribute in list(module._modules[STATE]._modules):  # type: ignore[union-attr]
            detach(module, attribute)
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()


def _own_class(module: torch.fx.GraphModule) -> None:
    """Each GraphModule has a class of its own, into which its graph's ``forward`` is written."""
    base = next(cls for cls in type(module).__mro__ if cls.__qualname__.split(".")[-1] != "GraphModuleImpl")
    module.__class__ = type("GraphModuleImpl", (base,), {})
    module.recompile()
