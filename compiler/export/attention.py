"""Correct the attention that torch.onnx writes differently from PyTorch's attention."""

from __future__ import annotations

import torch
from torch import fx

from topkast.passes.aten.nodes import aten, emit


def keep_empty_rows(graph: fx.Graph) -> None:
    """Give zeros to queries that a mask keeps from seeing any key, as PyTorch does. Such queries belong to padding. The
    exporter's operators would give NaN for a floating-point mask, and the mean of all values for a boolean mask.

    With a floating-point mask these queries get another mask, because their softmax would be NaN. In both cases their
    results are set to zero afterwards."""
    empty_of = dict[fx.Node, fx.Node]()  # layers share a mask
    for node in graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default):
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        if not isinstance(mask, fx.Node):
            continue
        floating = mask.meta["val"].is_floating_point()
        with graph.inserting_before(node):
            if mask not in empty_of:
                unseen = (aten.eq.Scalar, mask, -torch.inf) if floating else (aten.logical_not.default, mask)
                empty_of[mask] = emit(graph, aten.all.dim, emit(graph, *unseen, like=node), -1, True, like=node)
            empty = empty_of[mask]
            if floating:
                node.replace_input_with(mask, emit(graph, aten.masked_fill.Scalar, mask, empty, 0.0, like=node))
        with graph.inserting_after(node):
            zeroed = emit(graph, aten.masked_fill.Scalar, node, empty, 0.0, like=node)
        node.replace_all_uses_with(zeroed, delete_user_cb=lambda user, new=zeroed: user is not new)
