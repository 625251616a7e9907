"""Nodes of ATen graphs: the namespaces of their operators, adding a node, and small questions about a node."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from topkast.runtime.ops import activated_products, grouped_mm, recurrence  # noqa: F401  (define torch.ops.topkast)

aten, topkast = torch.ops.aten, torch.ops.topkast

# Metadata that describes a node's own arguments and value: wrong for any other node.
STALE = ("val", "tensor_meta", "recompute", "eager_input_vals", "arg_kwarg_vals", "refused")


def lasting_meta(node: fx.Node) -> dict[str, Any]:
    """The metadata that stays right for a node in the place of ``node``: where the call comes from, and the like."""
    return {key: value for key, value in node.meta.items() if key not in STALE}


def emit(graph: fx.Graph, target: Callable[..., Any], *args: Any, like: fx.Node, **kwargs: Any) -> fx.Node:
    """Add a call at the insertion point, with the fake value that later passes read; other meta from ``like``."""
    node = graph.call_function(target, args, kwargs)
    node.meta = lasting_meta(like)
    fake_args, fake_kwargs = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
    near = [*node.all_input_nodes, like]  # a random op has no inputs
    mode = next((t.fake_mode for n in near if isinstance(t := n.meta.get("val"), FakeTensor)), None)
    if mode is None:
        node.meta["val"] = target(*fake_args, **fake_kwargs)
    else:
        with mode:
            node.meta["val"] = target(*fake_args, **fake_kwargs)
    return node


def transposed(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """The node with its last two dims swapped, without stacking a swap on a swap."""
    dims = list(range(node.meta["val"].dim()))
    dims[-2:] = dims[:-3:-1]
    args: Any = node.args
    if node.target is aten.t.default and len(dims) == 2:
        return args[0]
    if node.target is aten.permute.default and list(args[1]) == dims:
        return args[0]
    return emit(graph, aten.permute.default, node, dims, like=node)


def is_cast(node: Any) -> bool:
    """Whether an op changes the dtype and nothing else."""
    if not isinstance(node, fx.Node):
        return False
    if node.target is aten._to_copy.default:
        kept = {"layout": torch.strided, "device": node.args[0].meta["val"].device}  # type: ignore[union-attr]
        return all(key == "dtype" or (key in kept and kept[key] == value) for key, value in node.kwargs.items())
    return node.target is torch.ops.prims.convert_element_type.default


def is_static(node: fx.Node) -> bool:
    """Whether all sizes of a node's value are numbers, and none a symbol."""
    return all(isinstance(size, int) for size in node.meta["val"].shape)


def getitems(node: fx.Node) -> dict[int, fx.Node]:
    """The ``getitem`` users of a node with several outputs."""
    return {user.args[1]: user for user in node.users if user.target is operator.getitem}  # type: ignore[misc]
