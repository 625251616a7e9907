"""Attention where torch.onnx writes another one than PyTorch computes."""

from __future__ import annotations

import torch
from torch import fx

from topkast.passes.aten.nodes import aten, emit


def keep_empty_rows(graph: fx.Graph) -> None:
    """Queries that a floating-point mask lets see nothing: PyTorch gives them zeros, the exporter's operators the
    softmax of -inf alone, NaN. They get another mask, and their zeros afterwards. Boolean masks stay as they are."""
    for node in graph.find_nodes(op="call_function", target=aten.scaled_dot_product_attention.default):
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        if not isinstance(mask, fx.Node) or not mask.meta["val"].is_floating_point():
            continue
        with graph.inserting_before(node):
            unseen = emit(graph, aten.eq.Scalar, mask, -torch.inf, like=node)
            empty = emit(graph, aten.all.dim, unseen, -1, True, like=node)
            node.replace_input_with(mask, emit(graph, aten.masked_fill.Scalar, mask, empty, 0.0, like=node))
        with graph.inserting_after(node):
            zeroed = emit(graph, aten.masked_fill.Scalar, node, empty, 0.0, like=node)
        node.replace_all_uses_with(zeroed, delete_user_cb=lambda user, new=zeroed: user is not new)
