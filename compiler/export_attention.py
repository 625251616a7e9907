"""Attention where torch.onnx writes another one than PyTorch computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

aten = torch.ops.aten


def keep_empty_rows(graph: fx.Graph) -> None:
    """Queries that a floating-point mask lets see nothing: PyTorch gives them zeros, the exporter's operators the
    softmax of -inf alone, NaN. They get another mask, and their zeros afterwards. Boolean masks are written right."""
    for node in graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default):
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        if not isinstance(mask, fx.Node) or not mask.meta["val"].is_floating_point():
            continue
        with graph.inserting_before(node):
            empty = _call(graph, aten.all.dim, _call(graph, aten.eq.Scalar, mask, -torch.inf), -1, True)
            node.replace_input_with(mask, _call(graph, aten.masked_fill.Scalar, mask, empty, 0.0))
        with graph.inserting_after(node):
            zeroed = _call(graph, aten.masked_fill.Scalar, node, empty, 0.0)
        node.replace_all_uses_with(zeroed, delete_user_cb=lambda user, new=zeroed: user is not new)


def _call(graph: fx.Graph, op: Any, *args: Any) -> fx.Node:
    node = graph.call_function(op, args)
    values = [arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in args]
    mode = next(value.fake_mode for value in values if isinstance(value, FakeTensor))
    with mode:
        node.meta["val"] = op(*values)
    return node
