"""Turn a sparse model back into a plain model of the original classes that holds W_A."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from topkast.compiler.convert.attach import copy_module, detach
from topkast.compiler.convert.sparsify import refresh_before_forward
from topkast.compiler.convert.wrong_model import refuse_dense
from topkast.runtime.reference.products import weight
from topkast.runtime.state.model import find, owned
from topkast.runtime.state.persist.state_dict import STATE
from topkast.runtime.state.site_module import SiteModule
from topkast.runtime.state.snapshots import restore_snapshots


def densify(model: Any) -> nn.Module:
    """Make a plain copy of the original architecture that holds W_A.

    The copy has no hook, record or site of topkast. Its modules have their own classes again, tied weights are one
    Parameter again, and ``parameters()`` has its original order. Modes and ``requires_grad`` are kept. The copy is not
    compiled. The model itself is not changed. If a module keeps tensors of its last forward, they are copied without
    their graph.

    Args:
        model: a model converted by topkast, or a wrapper of such a model (the wrapped model is copied).

    Raises:
        ModelError: the model was not converted.
    """
    root, record = find(model)
    found = owned(model)
    restore_snapshots(site for site, _ in found.values())
    for site, _ in found.values():
        site.refuse_shard("topkast.densify")
    # Sites and their values are not copied, because the copy's references to them are replaced below.
    memo: dict[int, Any] = {id(site): site for site, _ in found.values()}
    memo |= {id(site.original): site.original for site, _ in found.values()}
    memo[id(record)] = record
    # Tensors that a model keeps of its last forward (the states of a recurrence) have a graph, which cannot be copied.
    kept = [value for module in root.modules() for value in vars(module).values() if isinstance(value, torch.Tensor)]
    memo |= {id(tensor): tensor.detach().clone() for tensor in kept if not tensor.is_leaf}
    # A GraphModule's own copy keeps only the attributes that its graph names, and reads them as sparse weights. The
    # innermost modules come first, because each copy contains copies of its children.
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


def _restore(twin: nn.Module, found: Mapping[str, tuple[SiteModule, list[tuple[str, str]]]]) -> None:
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
    """Give a GraphModule its own class, because torch writes its graph's ``forward`` into the class."""
    base = next(cls for cls in type(module).__mro__ if cls.__qualname__.split(".")[-1] != "GraphModuleImpl")
    module.__class__ = type("GraphModuleImpl", (base,), {})
    module.recompile()
